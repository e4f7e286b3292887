//! One stage from its inputs to its outputs, in the process that calls.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use engine_core::{Digest, OperatorConfig, PortType, StageContext};
use engine_plan::{QuarantineBudget, Stage, StageKey};
use engine_store::{MapPartRef, Store};
use schemas::record::{PartCounts, PartSpan};
use serde::{Deserialize, Serialize};

use crate::execute::RunOptions;
use crate::failure::Failure;
use crate::io::{StageListener, StoreIo};
use crate::keys::{Inputs, Outputs};
use crate::map::run_map;

/// What a stage needs beyond its configuration and inputs, in this process or in a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageJob {
    /// Key of the stage.
    pub(crate) key: Digest,
    /// Operator kind.
    pub(crate) kind: String,
    /// Version of the operator.
    pub(crate) version: u32,
    /// The configuration as it is in the stage key.
    pub(crate) config: serde_json::Value,
    /// Whether the seed can change the output.
    pub(crate) uses_seed: bool,
    /// How many rows may fail.
    pub(crate) quarantine: Option<Budget>,
    /// Whether parts are computed although they are there.
    pub(crate) is_forced: bool,
    /// Parts of an earlier result that may be taken over.
    pub(crate) replay: Vec<MapPartRef>,
    /// Bytes of input rows that are held at a time.
    pub(crate) memory_budget: u64,
    /// How long a train stage goes on between two checkpoints.
    pub(crate) checkpoint_every: Duration,
    /// Parts that are computed side by side in the engine's process.
    pub(crate) threads: usize,
}

/// How many rows of a map stage may fail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Budget {
    Rows(u64),
    Share(f64),
}

impl From<QuarantineBudget> for Budget {
    fn from(budget: QuarantineBudget) -> Self {
        match budget {
            QuarantineBudget::Rows(rows) => Self::Rows(rows),
            QuarantineBudget::Share(share) => Self::Share(share),
        }
    }
}

impl StageJob {
    pub(crate) fn new(stage: &Stage, key: &StageKey, options: &RunOptions) -> Self {
        Self {
            key: key.digest.clone(),
            kind: stage.kind.to_owned(),
            version: stage.version,
            config: key.material["config"].clone(),
            uses_seed: stage.uses_seed,
            quarantine: stage.quarantine.map(Budget::from),
            is_forced: false,
            replay: Vec::new(),
            memory_budget: options.memory_budget,
            checkpoint_every: options.checkpoint_every,
            threads: options.threads,
        }
    }
}

/// What a stage made; its objects are stored and not yet committed as a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageDone {
    pub(crate) outputs: Outputs,
    /// The parts of a map stage, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parts: Vec<MapPartRef>,
    /// What became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counts: Option<PartCounts>,
    /// When they were computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) spans: Vec<PartSpan>,
}

/// Runs a stage and closes its output ports.
pub(crate) fn run_stage(
    config: &dyn OperatorConfig,
    context: &StageContext<'_>,
    store: &Store,
    inputs: Inputs,
    outputs: &[(String, PortType)],
    job: &StageJob,
    listener: &dyn StageListener,
) -> Result<StageDone, Failure> {
    let run = || {
        let mut io = StoreIo::try_new(store, inputs, outputs, job, listener)?;
        if let Some(operator) = config.as_map() {
            return run_map(config, operator, context, &io, job);
        }
        config.run(context, &mut io)?;
        Ok(StageDone {
            outputs: io.finish()?,
            ..StageDone::default()
        })
    };
    // Nothing that the closure touches is used after a panic, except the store, which has no state in memory.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Ok(result.map_err(|error: engine_core::OperatorError| Failure::from(error))?),
        Err(payload) => Err(Failure::panic(payload.as_ref())),
    }
}
