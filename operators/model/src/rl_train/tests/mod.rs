//! The loop with a policy that has two or three completions.

mod algorithms;
mod basics;
mod filters;
mod judges;
mod reference;
mod refusals;
mod resuming;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use arrow::record_batch::RecordBatch;
use schemas::TableName;
use serde_json::json;

use super::config::RlTrain;
use crate::processor::Processor;
use crate::test_support::{MemoryIo, config, model_folder, prompt_batch};

/// Reward 1.5 for the gold answer 7.
const RIGHT: &str = "<think>3 + 4</think><answer>7</answer>";
/// Reward 0.5 for the gold answer 7, for its form.
const WRONG: &str = "<think>3</think><answer>8</answer>";
/// Reward 0 for the gold answer 7.
const PLAIN: &str = "8";

fn tokens(texts: &[&str]) -> Vec<Vec<u32>> {
    let processor = Processor::load(&model_folder()).unwrap();
    texts
        .iter()
        .map(|text| processor.encode_completion(text).unwrap())
        .collect()
}

/// One step of GRPO with four answers, with these keys changed.
fn rl_train(changes: &serde_json::Value) -> RlTrain {
    let mut settings = json!({
        "algorithm": {"grpo": {"clip-low": 0.2, "clip-high": 0.28}},
        "steps": 1, "prompts-per-step": 1, "samples": 4, "temperature": 1.0, "max-new-tokens": 40,
        "verify": {"math": {}}, "score": {"accuracy": 1.0, "format": 0.5}, "learning-rate": 0.1, "warmup-steps": 0,
    });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config(settings)
}

fn io(rows: &[(&str, &str, Option<&str>, Option<&str>)]) -> MemoryIo {
    MemoryIo::new()
        .with_table("prompts", TableName::Prompts, vec![prompt_batch(rows)])
        .with_model("model", model_folder())
}

fn one_prompt() -> MemoryIo {
    io(&[("p1", "How much is 3 + 4?", Some("7"), None)])
}

/// Prompts p0, p1, ... with these gold answers.
fn prompts(golds: &[&str]) -> MemoryIo {
    let ids: Vec<String> = (0..golds.len()).map(|index| format!("p{index}")).collect();
    let rows: Vec<_> = ids
        .iter()
        .zip(golds)
        .map(|(id, gold)| (id.as_str(), "How much?", Some(*gold), None))
        .collect();
    io(&rows)
}

fn ten_prompts() -> MemoryIo {
    prompts(&["7"; 10])
}

fn metric(metrics: &RecordBatch, step: i64, name: &str) -> Option<f64> {
    let steps = metrics.column(0).as_primitive::<Int64Type>();
    let names = metrics.column(1).as_string::<i64>();
    let values = metrics.column(2).as_primitive::<Float64Type>();
    (0..metrics.num_rows())
        .find(|row| steps.value(*row) == step && names.value(*row) == name)
        .map(|row| values.value(row))
}

fn text_column<'a>(batch: &'a RecordBatch, name: &str) -> Vec<&'a str> {
    let column = batch.column_by_name(name).unwrap().as_string::<i64>();
    column.iter().map(Option::unwrap).collect()
}

fn count_column(batch: &RecordBatch, name: &str) -> Vec<i64> {
    let column = batch.column_by_name(name).unwrap();
    column.as_primitive::<Int64Type>().values().to_vec()
}

fn number_column(batch: &RecordBatch, name: &str) -> Vec<Option<f64>> {
    let column = batch.column_by_name(name).unwrap();
    column.as_primitive::<Float64Type>().iter().collect()
}

/// Everything that a run leaves.
fn outcome(io: &MemoryIo) -> (RecordBatch, RecordBatch, Vec<String>, Vec<String>) {
    let model = io.written_models["model"].clone();
    (
        io.output("metrics"),
        io.output("rollouts"),
        model,
        io.warnings(),
    )
}
