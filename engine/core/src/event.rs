//! What a running stage tells: the terminal, the record writer and the tests listen.

use serde::{Deserialize, Serialize};

/// How far a stage is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all, when known.
    pub total: Option<u64>,
    /// What is counted, in the plural: `rows`, `steps`, `rollouts`.
    pub unit: String,
    /// Tokens generated or trained on so far; 0 for stages without a model.
    pub tokens: u64,
    /// A figure worth watching, for example `reward 0.71`.
    pub note: String,
}

/// Something a running stage tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageEvent {
    /// How far it is.
    Progress(Progress),
    /// Something the user should know; kept in the run's record.
    Warning(String),
    /// A fact for the reader, such as a plan of memory: shown once, no cause for worry.
    Note(String),
    /// Numbers of a step of training as they come, for those who watch. The `metrics` table is the record.
    Metrics {
        /// Counted from 1.
        step: u64,
        /// Names and values.
        values: Vec<(String, f64)>,
    },
}
