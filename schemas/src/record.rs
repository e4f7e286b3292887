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
    /// The plain DAG that the file resolved to, as YAML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<String>,
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Version of metis-flow.
    pub version: String,
    /// Names of the stages in topological order.
    pub stages: Vec<String>,
}

/// Written when a stage of a run ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Facts that it told, such as what a server was asked and what that cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why it failed, or why it could not be started.
    pub error: Option<String>,
    /// Parts of a map stage that ran, or came from an earlier run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<PartCounts>,
    /// When the parts were computed; at most [`PartSpan::KEPT`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<PartSpan>,
    /// Tokens that were sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Step of the checkpoint that a train stage went on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u64>,
    /// How often its worker was started again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Which result of the key it is: above 0 after `--force` or `replay`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u32,
    /// The run whose result was taken with `--pin`, without a look at the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What became of the parts of a map stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartCounts {
    /// Parts in all: pieces of the input, each counted once for each slice.
    pub total: u64,
    /// Parts that an earlier run had committed.
    pub reused: u64,
    /// Parts that this run computed and committed.
    pub computed: u64,
    /// Input rows of all parts, each counted once.
    pub rows: u64,
    /// Input rows in quarantine.
    pub quarantined: u64,
}

/// A part that was computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSpan {
    /// First digits of the part's key.
    pub part: String,
    /// Input rows.
    pub rows: u64,
    /// Seconds from the start of the stage.
    pub start: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Which of those that work side by side computed it.
    pub lane: u32,
}

impl PartSpan {
    /// Spans that a record keeps; a stage of very many parts has the first of them.
    pub const KEPT: usize = 4096;
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// Its output was in the store.
    Cached,
    /// It ran and its output was committed.
    Done,
    /// It failed.
    Failed,
    /// It was not started, because a stage before it failed or the run was interrupted.
    #[default]
    Skipped,
    /// It has no result and the user did not choose it to run.
    NotSelected,
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
            Self::NotSelected => "not-selected",
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
