//! Loss masks against transformers (`tests/golden/masks/make.py`): before each answer the same tokens, and of it the same tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine_core::policy::TrainSequence;
use schemas::TableName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::SftTrain;
use crate::test_support::{FakeBackend, MemoryIo, config, conversation_batch, model_folder, run};

/// Tokens before an answer, and those of the answer.
type Answer = (Vec<u32>, Vec<u32>);

#[derive(Deserialize)]
struct Golden {
    conversations: Vec<Vec<Turn>>,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Template {
    template: String,
    answers: Vec<Vec<Answer>>,
}

fn golden() -> Golden {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/masks/masks.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The small model folder with another chat template.
fn folder_with(template: &str, folder: &Path) {
    for entry in std::fs::read_dir(model_folder()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("tokenizer_config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    settings["chat_template"] = template.into();
    std::fs::write(&path, settings.to_string()).unwrap();
}

/// What is learnt of a conversation.
fn learnt(turns: &[Turn], folder: &Path) -> Vec<TrainSequence> {
    let (last, before) = turns.split_last().unwrap();
    let before: Vec<(&str, &str)> = before
        .iter()
        .map(|turn| (turn.role.as_str(), turn.content.as_str()))
        .collect();
    let rows = [("a", before.as_slice(), last.content.as_str())];
    let mut io = MemoryIo::new()
        .with_table(
            "examples",
            TableName::Examples,
            vec![conversation_batch(&rows)],
        )
        .with_model("model", folder.to_owned());
    let stage: SftTrain = config(json!({
        "epochs": 1, "sequences-per-step": 1, "turns": "all", "learning-rate": 0.1, "warmup-steps": 0,
    }));
    let backend = FakeBackend::new(Vec::new());
    run(&stage, &backend, &mut io).unwrap();
    backend.learnt().concat()
}

/// The answers of a sequence, each with all tokens before it.
fn answers(sequence: &TrainSequence) -> Vec<Answer> {
    let mut mask = sequence.loss_mask.clone();
    mask.resize(sequence.completion.len(), true);
    let mut answers: Vec<Answer> = Vec::new();
    for (place, token) in sequence.completion.iter().enumerate() {
        if !mask[place] {
            continue;
        }
        if place == 0 || !mask[place - 1] {
            let prompt = &sequence.prompt.token_ids;
            answers.push(([prompt, &sequence.completion[..place]].concat(), Vec::new()));
        }
        answers.last_mut().unwrap().1.push(*token);
    }
    answers
}

#[test]
fn answers_and_what_stands_before_them_are_those_of_transformers() {
    let golden = golden();
    let mut sequences = BTreeMap::new();
    for (name, template) in &golden.templates {
        let folder = tempfile::tempdir().unwrap();
        folder_with(&template.template, folder.path());
        for (turns, expected) in golden.conversations.iter().zip(&template.answers) {
            let learnt = learnt(turns, folder.path());
            let mut found: Vec<Answer> = learnt.iter().flat_map(answers).collect();
            // Steps come in an order of their own.
            found.sort_by_key(|(before, _)| before.len());
            let mut expected = expected.clone();
            expected.sort_by_key(|(before, _)| before.len());
            assert_eq!(found, expected, "{name}");
            *sequences.entry(name.as_str()).or_insert(0) += learnt.len();
        }
    }
    // One sequence for each conversation, as long as no earlier answer is changed later.
    assert_eq!(sequences["plain"], golden.conversations.len());
    assert!(sequences["thoughts"] > golden.conversations.len());
}
