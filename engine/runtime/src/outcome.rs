//! How a run ended.

use std::collections::BTreeMap;

use engine_core::Artifact;
use schemas::record::{StageRecord, StageStatus};

use crate::failure::Failure;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// All stages are committed.
    Done,
    /// A stage failed.
    Failed,
    /// The user broke off.
    Interrupted,
}

impl RunStatus {
    /// The word for people and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a stage ended.
#[derive(Clone, Debug)]
pub struct StageOutcome {
    /// The record, as it is kept in the store.
    pub record: StageRecord,
    /// Artifacts by port; empty unless the stage is committed.
    pub outputs: BTreeMap<String, Artifact>,
    /// Seconds that the work took when it was done, now or in an earlier run.
    pub work_seconds: Option<f64>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl StageOutcome {
    /// A stage that made nothing.
    pub(crate) fn without_result(record: StageRecord) -> Self {
        Self {
            record,
            outputs: BTreeMap::new(),
            work_seconds: None,
            failure: None,
        }
    }

    /// Whether there is nothing left to do for it in this run.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(
            self.record.status,
            StageStatus::Cached | StageStatus::Done | StageStatus::NotSelected
        )
    }
}

/// How a run ended, stage by stage.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// Identity of the run.
    pub run: String,
    /// How it ended.
    pub status: RunStatus,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// The stages in the order of the plan.
    pub stages: Vec<StageOutcome>,
}
