//! `generation_config.json`: how the makers of a model sample from it, and the tokens that end a completion.

use std::collections::BTreeSet;
use std::path::Path;

use engine_core::error::ModelError;
use serde_json::Value;

use super::folder::{file_fault, read_optional_json};

/// What a model folder says about sampling; `None` where it says nothing. Nothing here applies by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; greedy decoding otherwise.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Only this many of the most likely tokens; 0: all.
    pub top_k: Option<usize>,
    /// Only the most likely tokens whose probabilities add up to this.
    pub top_p: Option<f64>,
    /// Only tokens with at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Divides the positive and multiplies the negative logits of tokens that were there before.
    pub repetition_penalty: Option<f64>,
    /// Upper limit of completion tokens.
    pub max_new_tokens: Option<usize>,
    /// The token that batches are filled up with.
    pub pad_token_id: Option<u32>,
    /// Tokens that end a completion, here or else in config.json; never empty.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` of a model folder, where there is one. `config` is what config.json holds.
    pub(super) fn read(folder: &Path, config: &Value) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        let file = read_optional_json(&path)?.unwrap_or(Value::Null);
        let own = |message: String| file_fault(&path, message);
        let mut defaults = Self::parse(&file).map_err(own)?;
        let config_path = folder.join("config.json");
        for config_ids in [
            config.get("eos_token_id"),
            config.pointer("/text_config/eos_token_id"),
        ] {
            if defaults.eos_token_ids.is_empty() {
                defaults.eos_token_ids =
                    token_ids(config_ids).map_err(|message| file_fault(&config_path, message))?;
            }
        }
        if defaults.eos_token_ids.is_empty() {
            return Err(file_fault(
                &config_path,
                "no `eos_token_id` here or in generation_config.json; completions could not end",
            ));
        }
        Ok(defaults)
    }

    fn parse(file: &Value) -> Result<Self, String> {
        let number = |key: &str, fits: fn(f64) -> bool, range: &str| -> Result<_, String> {
            let Some(value) = present(file, key) else {
                return Ok(None);
            };
            match value.as_f64().filter(|value| fits(*value)) {
                Some(value) => Ok(Some(value)),
                None => Err(format!("`{key}` is {value}; expected {range}")),
            }
        };
        let count = |key: &str| -> Result<Option<usize>, String> {
            let Some(value) = present(file, key) else {
                return Ok(None);
            };
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            match count {
                Some(count) => Ok(Some(count)),
                None => Err(format!(
                    "`{key}` is {value}; expected 0 or a positive integer"
                )),
            }
        };
        let do_sample = match present(file, "do_sample") {
            None => None,
            Some(Value::Bool(value)) => Some(*value),
            Some(value) => return Err(format!("`do_sample` is {value}; expected true or false")),
        };
        Ok(Self {
            do_sample,
            temperature: number("temperature", |value| value >= 0.0, "0 or more")?,
            top_k: count("top_k")?,
            top_p: number(
                "top_p",
                |value| value > 0.0 && value <= 1.0,
                "more than 0 and at most 1",
            )?,
            min_p: number(
                "min_p",
                |value| (0.0..=1.0).contains(&value),
                "a number from 0 to 1",
            )?,
            repetition_penalty: number("repetition_penalty", |value| value > 0.0, "more than 0")?,
            max_new_tokens: count("max_new_tokens")?,
            pad_token_id: match present(file, "pad_token_id") {
                Some(value) => Some(token_id("pad_token_id", value)?),
                None => None,
            },
            eos_token_ids: token_ids(file.get("eos_token_id"))?,
        })
    }
}

fn present<'a>(file: &'a Value, key: &str) -> Option<&'a Value> {
    file.get(key).filter(|value| !value.is_null())
}

/// `eos_token_id` is an id or a list of ids; in their order and without repetition.
fn token_ids(value: Option<&Value>) -> Result<Vec<u32>, String> {
    let listed = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for value in listed {
        let id = token_id("eos_token_id", value)?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn token_id(key: &str, value: &Value) -> Result<u32, String> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| format!("`{key}` has {value}, which is no token id"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(generation: &Value, config: &Value) -> Result<GenerationDefaults, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        std::fs::write(path, generation.to_string()).unwrap();
        GenerationDefaults::read(folder.path(), config).map_err(|error| error.to_string())
    }

    #[test]
    fn published_values_are_read() {
        let file = json!({"bos_token_id": 151_643, "pad_token_id": 151_643, "do_sample": true, "eos_token_id": [151_645, 151_643, 151_645],
            "repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.49.0"});
        let defaults = read(&file, &Value::Null).unwrap();
        assert_eq!(defaults.do_sample, Some(true));
        assert_eq!(defaults.temperature, Some(1e-6));
        assert_eq!((defaults.top_k, defaults.top_p), (Some(20), Some(0.95)));
        assert_eq!((defaults.min_p, defaults.max_new_tokens), (None, None));
        assert_eq!(defaults.repetition_penalty, Some(1.05));
        assert_eq!(defaults.pad_token_id, Some(151_643));
        assert_eq!(defaults.eos_token_ids, [151_645, 151_643]);
    }

    #[test]
    fn end_tokens_come_from_the_first_file_that_has_some() {
        let text = json!({"text_config": {"eos_token_id": 7}, "eos_token_id": null});
        assert_eq!(read(&json!({}), &text).unwrap().eos_token_ids, [7]);
        let both = json!({"text_config": {"eos_token_id": 7}, "eos_token_id": 3});
        assert_eq!(read(&json!({}), &both).unwrap().eos_token_ids, [3]);
        let error = read(&json!({}), &json!({})).unwrap_err();
        assert!(
            error.contains("config.json") && error.contains("eos_token_id"),
            "{error}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_named_with_their_file() {
        for (file, word) in [
            (
                json!({"eos_token_id": 1, "temperature": -1}),
                "`temperature` is -1",
            ),
            (json!({"eos_token_id": 1, "top_p": 0}), "`top_p` is 0"),
            (json!({"eos_token_id": 1, "top_k": 1.5}), "`top_k` is 1.5"),
            (
                json!({"eos_token_id": 1, "repetition_penalty": "1"}),
                "`repetition_penalty` is \"1\"",
            ),
            (
                json!({"eos_token_id": [1, "<end>"]}),
                "`eos_token_id` has \"<end>\"",
            ),
            (
                json!({"eos_token_id": 1, "do_sample": 1}),
                "`do_sample` is 1",
            ),
        ] {
            let error = read(&file, &Value::Null).unwrap_err();
            assert!(error.contains(word), "{error}");
            assert!(error.contains("generation_config.json"), "{error}");
        }
    }
}
