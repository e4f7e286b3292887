//! What the two processes of a server say to each other: the first reads the command line, the second has the model.

use std::net::IpAddr;
use std::path::PathBuf;

use engine_core::policy::Precision;
use serde::{Deserialize, Serialize};

/// First line to the process with the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServeSetup {
    /// Version of the command; another version refuses.
    pub(super) version: String,
    /// The model's folder.
    pub(super) folder: PathBuf,
    /// Its name for clients.
    pub(super) name: String,
    pub(super) host: IpAddr,
    pub(super) port: u16,
    /// It goes through a pipe, so that no list of processes shows it.
    pub(super) api_key: Option<String>,
    pub(super) limits: Limits,
    /// `auto`, `cpu` or `cuda:N`.
    pub(super) device: String,
    pub(super) threads: usize,
    pub(super) precision: Precision,
}

/// How much is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Sequences decoded together.
    pub(super) concurrent: usize,
    /// Sequences that may wait for these.
    pub(super) waiting: usize,
    /// Tokens of a prompt and its answer; what the model has, and 4,096 at most, when left out.
    pub(super) tokens: Option<usize>,
    /// Size of a request.
    pub(super) body_mib: u32,
}

/// A line from the process with the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromServer {
    /// It listens; the model is being loaded.
    Bound { address: String },
    /// It answers.
    Ready { backend: String, max_tokens: usize },
    /// It cannot go on.
    Failed { message: String },
}
