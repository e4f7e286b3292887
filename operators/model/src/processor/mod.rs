//! From messages to token ids and patches, and back to text: tokenizer, chat template and image processor of a model folder.

mod chat_template;
mod encoder;
mod image;
mod resize;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::Digest;
use engine_core::error::ModelError;
use engine_core::policy::{PatchedImage, TokenizedPrompt};
use serde_json::Value;
use tokenizers::Tokenizer;

pub use chat_template::ChatTemplate;
pub use encoder::PromptEncoder;
pub use image::ImageProcessor;

use crate::prompt_rows::Message;

/// Tokenizer, chat template and image processor of one model folder.
#[derive(Debug)]
pub struct Processor {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    images: Option<ImageProcessor>,
    image_token: Option<u32>,
    stop_token_ids: Vec<u32>,
    end_token: u32,
    tokenizer_digest: Digest,
    /// Rows of the model's embedding, where the configuration says how many.
    vocab_size: Option<u32>,
}

impl Processor {
    /// Reads `tokenizer.json`, the chat template, `preprocessor_config.json` (if there is one) and the end tokens.
    ///
    /// # Errors
    /// When a file is missing or cannot be understood; the message names it.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_file(&path)?;
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|error| file_fault(&path, error))?;
        // Both belong to training of other tasks; a prompt is never cut or padded here.
        tokenizer
            .with_truncation(None)
            .map_err(|error| file_fault(&path, error))?;
        tokenizer.with_padding(None);
        let config = read_json(&folder.join("config.json"))?;
        let tokenizer_config =
            read_optional_json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
        let special_tokens = special_tokens(&tokenizer_config);
        let stop_token_ids = stop_tokens(folder, &config)?;
        let end_token = special_tokens
            .get("eos_token")
            .and_then(|token| tokenizer.token_to_id(token))
            .filter(|id| stop_token_ids.contains(id))
            .unwrap_or(stop_token_ids[0]);
        let preprocessor = folder.join("preprocessor_config.json");
        let images = match read_optional(&preprocessor)? {
            Some(bytes) => Some(ImageProcessor::from_json(&preprocessor, &bytes)?),
            None => None,
        };
        Ok(Self {
            template: load_template(folder, &tokenizer_config, special_tokens)?,
            image_token: integer(&config, "image_token_id")
                .or_else(|| tokenizer.token_to_id("<|image_pad|>")),
            images,
            stop_token_ids,
            end_token,
            tokenizer_digest: Digest::of(&bytes),
            vocab_size: integer(&config, "vocab_size")
                .or_else(|| integer(config.get("text_config")?, "vocab_size")),
            tokenizer,
        })
    }

    /// Tokens that end a completion.
    #[must_use]
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// The token that ends an assistant's turn, which a completion given as text gets appended.
    #[must_use]
    pub fn end_token(&self) -> u32 {
        self.end_token
    }

    /// Digest of `tokenizer.json`: token ids mean the same under equal digests.
    #[must_use]
    pub fn tokenizer_digest(&self) -> &Digest {
        &self.tokenizer_digest
    }

    /// Whether the model can read this id. Models often have more embeddings than their tokenizer has tokens, and then
    /// sample, once in a long while, an id that stands for no text.
    #[must_use]
    pub fn knows(&self, token_id: u32) -> bool {
        self.vocab_size.is_some_and(|size| token_id < size)
            || self.tokenizer.id_to_token(token_id).is_some()
    }

    /// Text of a completion without special tokens. Added tokens that are not special (tags) are kept.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails; a lower-case fragment.
    pub fn decode(&self, token_ids: &[u32]) -> Result<String, String> {
        self.tokenizer
            .decode(token_ids, true)
            .map_err(|error| format!("cannot decode the completion: {error}"))
    }

    /// Token ids of a completion given as text, with the end token.
    ///
    /// # Errors
    /// When the tokenizer fails; a lower-case fragment.
    pub fn encode_completion(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut token_ids = self.encode(text)?;
        if token_ids.last() != Some(&self.end_token) {
            token_ids.push(self.end_token);
        }
        Ok(token_ids)
    }

    /// A conversation as the model sees it. `images` are those of the messages, in order.
    ///
    /// # Errors
    /// When the template fails, or text of a message spells the image placeholder; a lower-case fragment.
    pub fn tokenize(
        &self,
        messages: &[Message],
        images: Vec<Arc<PatchedImage>>,
    ) -> Result<TokenizedPrompt, String> {
        let token_ids = self.encode(&self.template.render(messages)?)?;
        if images.is_empty() {
            return Ok(TokenizedPrompt { token_ids, images });
        }
        let (Some(processor), Some(image_token)) = (&self.images, self.image_token) else {
            return Err(NO_IMAGES.to_owned());
        };
        let found = token_ids.iter().filter(|id| **id == image_token).count();
        if found != images.len() {
            return Err(format!(
                "its rendered text has {found} image placeholders for {} images; remove placeholder tokens from its text",
                images.len()
            ));
        }
        let mut pending = images.iter();
        let mut expanded = Vec::with_capacity(token_ids.len());
        for id in token_ids {
            let image = if id == image_token {
                pending.next()
            } else {
                None
            };
            let repeats = match image {
                Some(image) => processor.placeholders(image.grid_thw),
                None => 1,
            };
            expanded.extend(std::iter::repeat_n(id, repeats));
        }
        Ok(TokenizedPrompt {
            token_ids: expanded,
            images,
        })
    }

    /// Preprocesses an image file.
    ///
    /// # Errors
    /// When the model takes no images or this is none; a lower-case fragment.
    pub fn patches(&self, bytes: &[u8]) -> Result<PatchedImage, String> {
        self.images.as_ref().ok_or(NO_IMAGES)?.process(bytes)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| format!("cannot tokenise: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }
}

const NO_IMAGES: &str = "the model takes no images: its folder has no preprocessor_config.json";

/// Names that `tokenizer_config.json` gives to special tokens; a token is text or an object with `content`.
fn special_tokens(tokenizer_config: &Value) -> BTreeMap<String, String> {
    let entries = tokenizer_config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, token)| {
            let text = token
                .as_str()
                .or_else(|| token.get("content").and_then(Value::as_str))?;
            Some((key.clone(), text.to_owned()))
        })
        .collect()
}

fn load_template(
    folder: &Path,
    tokenizer_config: &Value,
    special_tokens: BTreeMap<String, String>,
) -> Result<ChatTemplate, ModelError> {
    let jinja = folder.join("chat_template.jinja");
    let json = folder.join("chat_template.json");
    let (path, source) = if let Some(bytes) = read_optional(&jinja)? {
        let source = String::from_utf8(bytes).map_err(|error| file_fault(&jinja, error))?;
        (jinja, Some(source))
    } else if let Some(file) = read_optional_json(&json)? {
        (json, template_source(&file))
    } else {
        (
            folder.join("tokenizer_config.json"),
            template_source(tokenizer_config),
        )
    };
    let source = source.ok_or_else(|| {
        file_fault(
            &path,
            "no chat template; add `chat_template` or a file chat_template.jinja beside it",
        )
    })?;
    ChatTemplate::new(source, special_tokens)
        .map_err(|message| file_fault(&path, format!("chat template: {message}")))
}

/// `chat_template` is the source, or a list of named sources of which `default` is the one for conversations.
fn template_source(file: &Value) -> Option<String> {
    match file.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let default = named
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            default
                .get("template")
                .and_then(Value::as_str)
                .map(str::to_owned)
        }
        _ => None,
    }
}

/// End tokens of `generation_config.json`, else of `config.json`, in their order and without repetition.
fn stop_tokens(folder: &Path, config: &Value) -> Result<Vec<u32>, ModelError> {
    let generation =
        read_optional_json(&folder.join("generation_config.json"))?.unwrap_or(Value::Null);
    let places = [
        generation.get("eos_token_id"),
        config.get("eos_token_id"),
        config.pointer("/text_config/eos_token_id"),
    ];
    for value in places.into_iter().flatten() {
        let listed = value
            .as_array()
            .map_or_else(|| vec![value], |list| list.iter().collect());
        let mut seen = BTreeSet::new();
        let ids: Vec<u32> = listed
            .into_iter()
            .filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .filter(|id| seen.insert(*id))
            .collect();
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Err(file_fault(
        &folder.join("config.json"),
        "no `eos_token_id` here or in generation_config.json; completions could not end",
    ))
}

fn integer(config: &Value, key: &str) -> Option<u32> {
    config
        .get(key)
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok())
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_fault(path, error)),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_optional(path)?.ok_or_else(|| file_fault(path, "it is missing"))
}

fn read_optional_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| file_fault(path, error))
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    read_optional_json(path)?.ok_or_else(|| file_fault(path, "it is missing"))
}

fn file_fault(path: &Path, message: impl ToString) -> ModelError {
    ModelError::File {
        path: PathBuf::from(path),
        message: message.to_string(),
    }
}
