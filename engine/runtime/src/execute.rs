//! The way in: a plan, a store and how to run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine_plan::Plan;
use engine_store::{Manifest, Store};

use crate::cancel::CancelToken;
use crate::event::RunObserver;
use crate::failure::RunError;
use crate::outcome::RunOutcome;
use crate::scheduler::Scheduler;
use crate::worker::WorkerOptions;

/// Bytes of input rows that one map stage holds at a time, unless the user says otherwise.
pub const MEMORY_BUDGET: u64 = 256 << 20;

/// How long a train stage goes on between two checkpoints, unless the user says otherwise.
pub const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);

/// Which stages run although they are cached, which do not run although they are not, and whose results are taken from
/// elsewhere. Stages are named by their place in the plan.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Stages that run, with all their parts, although they are cached. A result that differs stands beside the old one
    /// as a new generation.
    pub force: BTreeSet<usize>,
    /// A map stage that runs although it is cached, for the rows in its quarantine.
    pub replay: Option<usize>,
    /// Stages that may run; all when absent. The others must be cached.
    pub only: Option<BTreeSet<usize>>,
    /// Results that are taken as they are, whatever the key of the stage.
    pub pins: BTreeMap<usize, Pin>,
}

/// A result of another run.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The run that it is from.
    pub run: String,
    /// What the stage made then.
    pub manifest: Manifest,
}

impl Selection {
    /// Whether a stage may run.
    #[must_use]
    pub fn may_run(&self, index: usize) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&index))
    }

    /// Whether a stage runs even when it is cached.
    #[must_use]
    pub fn must_run(&self, index: usize) -> bool {
        self.may_run(index) && (self.force.contains(&index) || self.replay == Some(index))
    }
}

/// How to run a plan; but for the selection nothing here can change a result.
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
    /// Bytes of input rows that one map stage holds at a time ([`MEMORY_BUDGET`]).
    pub memory_budget: u64,
    /// How long a train stage goes on between two checkpoints ([`CHECKPOINT_EVERY`]); zero for one after each step.
    pub checkpoint_every: Duration,
    /// Which stages run.
    pub selection: Selection,
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
    Scheduler::try_new(plan, store, options, cancel, observer)?.run()
}
