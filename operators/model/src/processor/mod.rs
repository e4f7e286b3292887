//! From messages to token ids and patches, and back to text: tokenizer, chat template and image processor of a model folder.

mod chat;
mod chat_template;
mod decode_image;
mod encoder;
mod folder;
#[cfg(test)]
mod format_golden;
mod generation;
mod image;
mod jpeg;
mod methods;
mod python;
mod resize;
mod stream;
#[cfg(test)]
mod template_golden;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use engine_core::Digest;
use engine_core::error::ModelError;
use engine_core::policy::{PatchedImage, TokenizedPrompt};
use serde_json::Value;
use tokenizers::Tokenizer;

pub use chat::Chat;
pub use chat_template::ChatTemplate;
pub use encoder::PromptEncoder;
pub use generation::GenerationDefaults;
pub use image::ImageProcessor;
pub use stream::{StopFilter, StopStrings, TextStream};

use self::folder::{file_fault, integer, read_file, read_json, read_optional_json};
use crate::prompt_rows::Message;

/// Tokenizer, chat template and image processor of one model folder.
#[derive(Debug)]
pub struct Processor {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// For conversations with tools, where the folder has a template of its own for them.
    tool_template: Option<ChatTemplate>,
    images: Option<ImageProcessor>,
    image_token: Option<u32>,
    defaults: GenerationDefaults,
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
        let special_tokens = folder::special_tokens(folder, &tokenizer_config)?;
        let defaults = GenerationDefaults::read(folder, &config)?;
        let end_token = special_tokens
            .get("eos_token")
            .and_then(|token| tokenizer.token_to_id(token))
            .filter(|id| defaults.eos_token_ids.contains(id))
            .unwrap_or(defaults.eos_token_ids[0]);
        let (template, tool_template) =
            folder::load_templates(folder, &tokenizer_config, &special_tokens)?;
        Ok(Self {
            template,
            tool_template,
            image_token: integer(&config, "image_token_id")
                .or_else(|| tokenizer.token_to_id("<|image_pad|>")),
            images: folder::load_images(folder)?,
            defaults,
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
        &self.defaults.eos_token_ids
    }

    /// How the makers of the model sample from it: defaults that a caller may use.
    #[must_use]
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.defaults
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

    /// Whether [`Self::decode`] leaves this token out.
    fn is_silent(&self, token_id: u32) -> bool {
        let token = self.tokenizer.id_to_token(token_id);
        token.is_none_or(|token| {
            self.tokenizer
                .get_added_vocabulary()
                .is_special_token(&token)
        })
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

    /// The text of one token by itself, special tokens included. It has replacement characters where the token is a part
    /// of a character.
    #[must_use]
    pub fn token_text(&self, token_id: u32) -> String {
        let text = self.tokenizer.decode(&[token_id], false);
        text.ok()
            .or_else(|| self.tokenizer.id_to_token(token_id))
            .unwrap_or_default()
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
        self.tokenize_chat(&Chat::from_messages(messages), images)
    }

    /// The text of a conversation, as the chat template makes it.
    ///
    /// # Errors
    /// When the template fails; a lower-case fragment.
    pub fn render(&self, chat: &Chat) -> Result<String, String> {
        let template = match &self.tool_template {
            Some(with_tools) if chat.tools.is_some() => with_tools,
            _ => &self.template,
        };
        template.render(chat)
    }

    /// A conversation with tools and variables as the model sees it. `images` are those of the messages, in order.
    ///
    /// # Errors
    /// When the template fails, or text of a message spells the image placeholder; a lower-case fragment.
    pub fn tokenize_chat(
        &self,
        chat: &Chat,
        images: Vec<Arc<PatchedImage>>,
    ) -> Result<TokenizedPrompt, String> {
        self.tokenize_text(&self.render(chat)?, images)
    }

    /// A text as the model sees it, without a template. It has a placeholder for each image.
    ///
    /// # Errors
    /// When the tokenizer fails or placeholders and images differ in number; a lower-case fragment.
    pub fn tokenize_text(
        &self,
        text: &str,
        images: Vec<Arc<PatchedImage>>,
    ) -> Result<TokenizedPrompt, String> {
        let token_ids = self.encode(text)?;
        if images.is_empty() {
            return Ok(TokenizedPrompt { token_ids, images });
        }
        let (Some(processor), Some(image_token)) = (&self.images, self.image_token) else {
            return Err(NO_IMAGES.to_owned());
        };
        let found = token_ids.iter().filter(|id| **id == image_token).count();
        if found != images.len() {
            return Err(format!(
                "its text has {found} image placeholders for {} images; remove placeholder tokens from its text",
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

    /// A text that stands for itself, with the special tokens that the tokenizer puts around one.
    ///
    /// # Errors
    /// When the tokenizer fails; a lower-case fragment.
    pub fn tokenize_plain(&self, text: &str) -> Result<TokenizedPrompt, String> {
        Ok(TokenizedPrompt {
            token_ids: self.encode_with(text, true)?,
            images: Vec::new(),
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
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special_tokens)
            .map_err(|error| format!("cannot tokenise: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }
}

const NO_IMAGES: &str = "the model takes no images: its folder has no preprocessor_config.json and no `image_processor` in processor_config.json";
