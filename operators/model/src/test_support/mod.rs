//! Doubles for unit tests: a store in memory, and a policy that learns which of a few completions pays.

mod fake_policy;
mod memory_io;
mod tables;

pub(crate) use fake_policy::{Call, FakeBackend};
pub(crate) use memory_io::MemoryIo;
pub(crate) use tables::{example_batch, prompt_batch};

use std::path::PathBuf;

use engine_core::operator::{OperatorConfig, StageContext};
use engine_core::{OperatorError, Registry};

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
    config.run(&context, io)
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
