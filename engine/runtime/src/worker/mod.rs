//! Worker processes: the stages that need a model backend run there, so that this process never loads one.
//!
//! A worker reads one JSON object a line on its standard input, first its set-up and then one request for each stage, and
//! writes one a line on its standard output. Its log goes to standard error. It opens the store by itself, and it
//! ends when its input closes, which also happens when this process is killed.

mod client;
mod protocol;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use client::WorkerPool;
pub use protocol::WorkerSetup;
pub(crate) use protocol::{OutputPort, StageRequest};
pub use serve::serve;

/// How workers are started and watched.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The program.
    pub program: PathBuf,
    /// A worker that says nothing for so long is killed; it has a heartbeat of two seconds.
    pub silence: Duration,
    /// How often a stage is started again when its worker was killed by something else than this process.
    pub retries: u32,
}

impl WorkerOptions {
    /// The usual limits for this program.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            silence: Duration::from_mins(1),
            retries: 1,
        }
    }
}
