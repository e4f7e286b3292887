//! Runs a plan: which stages are cached, which run where, what happens when one fails or the user breaks off.
//!
//! The scheduler is one thread with a queue of messages. A stage runs on a thread of its own, either in this process or by
//! driving a worker process; it reads and writes the store and commits its manifest itself, so that nothing that was
//! finished depends on the scheduler.

mod assess;
mod cancel;
mod clock;
mod event;
mod execute;
mod failure;
mod io;
mod keys;
mod map;
mod outcome;
mod retry;
mod scheduler;
mod stage;
mod task;
#[cfg(test)]
mod testing;
pub mod worker;

pub use assess::{Assessment, Reason, StageState, assess};
pub use cancel::CancelToken;
pub use event::{RunEvent, RunObserver};
pub use execute::{CHECKPOINT_EVERY, MEMORY_BUDGET, Pin, RunOptions, Selection, execute};
pub use failure::{Domain, Failure, RunError};
pub use outcome::{RunOutcome, RunStatus, StageOutcome};
pub use worker::WorkerOptions;

/// Limits the threads that this process computes with. Has an effect once, before anything is computed.
pub fn limit_threads(threads: usize) {
    // An error says that the pool exists already, with the limit of whoever was first.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
}
