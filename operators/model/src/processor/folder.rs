//! Files of a model folder that tell how text becomes tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine_core::error::ModelError;
use serde_json::Value;

use super::chat_template::ChatTemplate;
use super::image::ImageProcessor;

/// Names that `tokenizer_config.json` and `special_tokens_map.json` give to special tokens; a token is text or an object with
/// `content`.
pub(super) fn special_tokens(
    folder: &Path,
    tokenizer_config: &Value,
) -> Result<BTreeMap<String, String>, ModelError> {
    let map = read_optional_json(&folder.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
    // Tokens with names of their own, such as `image_token`.
    let extra = tokenizer_config
        .get("extra_special_tokens")
        .unwrap_or(&Value::Null);
    let mut tokens = BTreeMap::new();
    for source in [&map, extra, tokenizer_config] {
        let entries = source.as_object().into_iter().flatten();
        tokens.extend(
            entries
                .filter(|(key, _)| key.ends_with("_token"))
                .filter_map(|(key, token)| {
                    let text = token
                        .as_str()
                        .or_else(|| token.get("content").and_then(Value::as_str))?;
                    Some((key.clone(), text.to_owned()))
                }),
        );
    }
    Ok(tokens)
}

/// The template of conversations, and the one for conversations with tools where the folder has one of its own.
pub(super) fn load_templates(
    folder: &Path,
    tokenizer_config: &Value,
    special_tokens: &BTreeMap<String, String>,
) -> Result<(ChatTemplate, Option<ChatTemplate>), ModelError> {
    let jinja = folder.join("chat_template.jinja");
    let json = folder.join("chat_template.json");
    let tools = folder.join("additional_chat_templates/tool_use.jinja");
    let compile = |path: &Path, source: String| {
        ChatTemplate::new(source, special_tokens.clone())
            .map_err(|message| file_fault(path, format!("chat template: {message}")))
    };
    let missing = |path: &Path| {
        file_fault(
            path,
            "no chat template; add `chat_template` or a file chat_template.jinja beside it",
        )
    };
    if let Some(source) = read_optional_text(&jinja)? {
        let with_tools = match read_optional_text(&tools)? {
            Some(source) => Some(compile(&tools, source)?),
            None => None,
        };
        return Ok((compile(&jinja, source)?, with_tools));
    }
    let (path, file) = match read_optional_json(&json)? {
        Some(file) => (json, file),
        None => (
            folder.join("tokenizer_config.json"),
            tokenizer_config.clone(),
        ),
    };
    let source = template_source(&file, "default").ok_or_else(|| missing(&path))?;
    let with_tools = match named_source(&file, "tool_use") {
        Some(source) => Some(compile(&path, source)?),
        None => None,
    };
    Ok((compile(&path, source)?, with_tools))
}

/// `chat_template` is the source, or a list of named sources.
fn template_source(file: &Value, name: &str) -> Option<String> {
    match file.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        _ => named_source(file, name),
    }
}

fn named_source(file: &Value, name: &str) -> Option<String> {
    let list = file.get("chat_template")?.as_array()?;
    let entry = list
        .iter()
        .find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?;
    let source = entry.get("template").and_then(Value::as_str)?;
    Some(source.to_owned())
}

/// The image processor of `preprocessor_config.json`, or of the newer `processor_config.json` that holds those of all kinds.
pub(super) fn load_images(folder: &Path) -> Result<Option<ImageProcessor>, ModelError> {
    let path = folder.join("preprocessor_config.json");
    if let Some(file) = read_optional_json(&path)? {
        return ImageProcessor::from_json(&path, file).map(Some);
    }
    let path = folder.join("processor_config.json");
    let file = read_optional_json(&path)?;
    match file.as_ref().and_then(|file| file.get("image_processor")) {
        Some(images) => ImageProcessor::from_json(&path, images.clone()).map(Some),
        None => Ok(None),
    }
}

pub(super) fn integer(config: &Value, key: &str) -> Option<u32> {
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

fn read_optional_text(path: &Path) -> Result<Option<String>, ModelError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| file_fault(path, error))
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_optional(path)?.ok_or_else(|| file_fault(path, "it is missing"))
}

pub(super) fn read_optional_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| file_fault(path, error))
}

pub(super) fn read_json(path: &Path) -> Result<Value, ModelError> {
    read_optional_json(path)?.ok_or_else(|| file_fault(path, "it is missing"))
}

pub(super) fn file_fault(path: &Path, message: impl ToString) -> ModelError {
    ModelError::File {
        path: PathBuf::from(path),
        message: message.to_string(),
    }
}
