//! Doubles for unit tests: a store in memory, and a policy that learns which of a few completions pays.

mod fake_policy;
mod fake_session;
mod memory_io;
mod tables;

pub(crate) use fake_policy::{Call, FakeBackend};
pub(crate) use memory_io::MemoryIo;
pub(crate) use tables::{conversation_batch, example_batch, prompt_batch};

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use engine_core::operator::{Family, OperatorConfig, StageContext};
use engine_core::{
    MapOperator, MapOutput, MapPart, OperatorError, PortType, PortTypes, Registry, map_whole,
};

/// The tokenizer and processor that the golden files use, as a model folder without weights.
pub(crate) fn model_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor/model")
}

/// Runs a stage with seed 17 on the fake backend.
pub(crate) fn run(
    config: &dyn OperatorConfig,
    backend: &FakeBackend,
    io: &mut MemoryIo,
) -> Result<(), OperatorError> {
    run_with_seed(config, backend, io, 17)
}

/// Runs a stage on the fake backend.
pub(crate) fn run_with_seed(
    config: &dyn OperatorConfig,
    backend: &FakeBackend,
    io: &mut MemoryIo,
    seed: u64,
) -> Result<(), OperatorError> {
    let root = PathBuf::from("/nowhere");
    let context = StageContext {
        stage: "test",
        seed,
        root: &root,
        backend: Some(backend),
    };
    let Some(operator) = config.as_map() else {
        return config.run(&context, io);
    };
    io.written = map_whole(operator, &context, io)?;
    // A port without rows is left out by the operator and has its schema nevertheless.
    for (port, types) in config.output_types(&PortTypes::new()).unwrap() {
        if let [PortType::Table { schema, .. }] = types.as_slice() {
            let batches = io.written.entry(port).or_default();
            if batches.is_empty() {
                batches.push(RecordBatch::new_empty(Arc::clone(schema)));
            }
        }
    }
    Ok(())
}

/// Computes some slices of a part that holds these prompts, with seed 17.
pub(crate) fn apply(
    operator: &dyn MapOperator,
    backend: &FakeBackend,
    io: &MemoryIo,
    rows: &RecordBatch,
    slices: &[Range<u32>],
) -> Result<MapOutput, OperatorError> {
    let root = PathBuf::from("/nowhere");
    let context = StageContext {
        stage: "test",
        seed: 17,
        root: &root,
        backend: Some(backend),
    };
    operator.start(&context, io)?.apply(&MapPart {
        rows,
        first_row: 0,
        slices,
    })
}

/// A configuration from JSON, as a pipeline gives it.
pub(crate) fn config<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
    serde_json::from_value(json).unwrap()
}

#[test]
fn every_kind_is_registered_once() {
    let mut registry = Registry::default();
    crate::register(&mut registry);
    let kinds: Vec<&str> = registry.entries().map(|entry| entry.kind).collect();
    assert_eq!(
        kinds,
        [
            "augment",
            "cast-model",
            "init-model",
            "load-model",
            "rl-train",
            "rollout",
            "sft-train"
        ]
    );
}

#[test]
fn the_operators_of_the_map_family_are_those_that_run_by_parts() {
    let mut registry = Registry::default();
    crate::register(&mut registry);
    let settings = serde_json::json!({
        "rl-train": {
            "algorithm": {"grpo": {"clip-low": 0.2, "clip-high": 0.28}}, "steps": 1, "prompts-per-step": 1, "samples": 2,
            "temperature": 1.0, "max-new-tokens": 4, "verify": {"math": {}}, "score": {"accuracy": 1.0, "format": 0.5},
            "learning-rate": 0.1, "warmup-steps": 0,
        },
        "sft-train": {"steps": 1, "sequences-per-step": 1, "learning-rate": 0.1, "warmup-steps": 0},
        "rollout": {"samples": 2, "temperature": 1.0, "max-new-tokens": 4},
        "augment": {"expert": {"solutions": {}}, "verify": {"math": {}}, "require-format": true},
        "load-model": {"path": "base"},
        "init-model": {"config": "base"},
        "cast-model": {"precision": "bfloat16"},
    });
    for entry in registry.entries() {
        let config = (entry.from_json)(settings[entry.kind].clone()).unwrap();
        assert_eq!(
            config.as_map().is_some(),
            entry.family == Family::Map,
            "{}",
            entry.kind
        );
    }
}
