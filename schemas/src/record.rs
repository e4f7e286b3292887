//! What a run leaves behind: readable JSON objects in the store, and the `runs` and `stages` tables of SQL.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Written when a run starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStarted {
    /// Sortable identity: start time and random digits.
    pub run: String,
    /// Name in the pipeline file.
    pub pipeline: String,
    /// The pipeline file's text.
    pub text: String,
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Version of metis-flow.
    pub version: String,
    /// Names of the stages in topological order.
    pub stages: Vec<String>,
}

/// Written when a stage of a run ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Name in the pipeline file.
    pub stage: String,
    /// Operator kind.
    pub kind: String,
    /// Stage key; absent when an input was never made.
    pub key: Option<String>,
    /// How it ended.
    pub status: StageStatus,
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Rows of the first output table.
    pub rows: Option<u64>,
    /// Digest of each output by port.
    pub outputs: BTreeMap<String, String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// Its output was in the store.
    Cached,
    /// It ran and its output was committed.
    Done,
    /// It failed.
    Failed,
    /// It was not started, because a stage before it failed or the run was interrupted.
    Skipped,
    /// The run was interrupted while it was running.
    Interrupted,
}

impl StageStatus {
    /// The word for people and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Written when a run ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEnded {
    /// The run.
    pub run: String,
    /// End, RFC 3339 in UTC.
    pub ended: String,
    /// `done`, `failed` or `interrupted`.
    pub status: String,
    /// Wall-clock seconds.
    pub seconds: f64,
}
