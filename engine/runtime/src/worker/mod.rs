//! Worker processes: the stages that need a model backend run there, so that this process never loads one.
//!
//! A worker reads one JSON object a line on its standard input, first its set-up and then one request for each stage, and
//! writes one a line on its standard output. Its log goes to standard error. It opens the store by itself, and it
//! ends when its input closes, which also happens when this process is killed.

mod client;
mod protocol;
mod serve;
#[cfg(test)]
mod tests;

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
    /// Variables that are added to its environment.
    pub environment: Vec<(&'static str, &'static str)>,
    /// A worker that is not ready after so long is killed: it loads the model library and opens the device.
    pub start: Duration,
    /// A worker that says nothing for so long is killed; it has a heartbeat of two seconds.
    pub silence: Duration,
    /// A worker whose stage comes no further for so long is killed, even if its heart beats.
    pub stall: Duration,
    /// How often a stage is started again, without having come further, when its worker was killed by something else
    /// than this process, was silent or stalled, or the store failed for a while.
    pub retries: u32,
    /// The pause before the first of these attempts; each further one is twice as long.
    pub backoff: Duration,
}

impl WorkerOptions {
    /// The usual limits for this program.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            environment: Vec::new(),
            start: Duration::from_mins(2),
            silence: Duration::from_mins(1),
            stall: Duration::from_mins(30),
            retries: 3,
            backoff: Duration::from_secs(1),
        }
    }
}
