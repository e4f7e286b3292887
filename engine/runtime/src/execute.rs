//! The way in: a plan, a store and how to run.

use std::path::PathBuf;
use std::sync::Arc;

use engine_plan::Plan;
use engine_store::Store;

use crate::cancel::CancelToken;
use crate::event::RunObserver;
use crate::failure::RunError;
use crate::outcome::RunOutcome;
use crate::scheduler::Scheduler;
use crate::worker::WorkerOptions;

/// How to run a plan; nothing here can change a result.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Project folder, where relative external paths start.
    pub root: PathBuf,
    /// Version of metis-flow.
    pub version: String,
    /// Stages that run side by side in this process.
    pub engine_slots: usize,
    /// Stages that run side by side in workers; they share the device and the cores.
    pub worker_slots: usize,
    /// Threads that a worker computes with.
    pub threads: usize,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// How workers are started and watched.
    pub worker: WorkerOptions,
}

/// Runs a plan. Stages whose result is in the store do not run. When one fails, none is started any more and those that
/// run may finish. What was finished is committed, whatever happens afterwards.
///
/// # Errors
/// When the store cannot be read or the run's records not written; a stage that fails is an outcome, not an error.
pub fn execute(
    plan: &Arc<Plan>,
    store: &Store,
    options: &RunOptions,
    cancel: &CancelToken,
    observer: &mut dyn RunObserver,
) -> Result<RunOutcome, RunError> {
    Scheduler::new(plan, store, options, cancel, observer).run()
}
