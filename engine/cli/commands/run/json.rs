//! The outcome of a run for programs.

use engine_core::Artifact;
use engine_plan::Plan;
use engine_runtime::RunOutcome;
use engine_store::Store;
use serde_json::{Map, Value, json};

pub(crate) fn outcome(plan: &Plan, store: &Store, outcome: &RunOutcome) -> Value {
    let stages: Vec<Value> = outcome
        .stages
        .iter()
        .map(|stage| {
            let outputs: Map<_, _> = stage
                .outputs
                .iter()
                .map(|(port, artifact)| (port.clone(), artifact_json(artifact)))
                .collect();
            json!({
                "stage": stage.record.stage,
                "operator": stage.record.kind,
                "status": stage.record.status.as_str(),
                "key": stage.record.key,
                "generation": stage.record.generation,
                "seconds": stage.record.seconds,
                "work_seconds": stage.work_seconds,
                "rows": stage.record.rows,
                "parts": stage.record.parts,
                "tokens": stage.record.tokens,
                "resumed_from": stage.record.resumed_from,
                "retries": stage.record.retries,
                "pinned": stage.record.pinned,
                "outputs": outputs,
                "warnings": stage.record.warnings,
                "notes": stage.record.notes,
                "error": stage.record.error,
            })
        })
        .collect();
    json!({
        "run": outcome.run,
        "pipeline": plan.name,
        "store": store.url(),
        "status": outcome.status.as_str(),
        "seconds": outcome.seconds,
        "stages": stages,
    })
}

/// What people and scripts want to know of an artifact.
pub(crate) fn artifact_json(artifact: &Artifact) -> Value {
    match artifact {
        Artifact::Dataset(dataset) => json!({
            "digest": dataset.digest,
            "table": dataset.table,
            "rows": dataset.rows,
            "parts": dataset.parts.len(),
        }),
        Artifact::Model(model) => json!({
            "digest": model.digest,
            "files": model.files.iter().map(|file| &file.name).collect::<Vec<_>>(),
            "bytes": model.files.iter().map(|file| file.bytes).sum::<u64>(),
        }),
    }
}
