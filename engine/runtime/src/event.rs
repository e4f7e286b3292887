//! What a run tells while it goes on.

use engine_core::{Digest, StageEvent};
use schemas::record::StageRecord;

use crate::outcome::RunOutcome;

/// Something that happened in a run. Stages are named by their place in the plan.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    /// The run started.
    Started {
        /// Its identity.
        run: &'a str,
    },
    /// A stage began to run.
    StageStarted {
        /// Place in the plan.
        index: usize,
        /// Key of its result.
        key: &'a Digest,
    },
    /// A running stage tells something.
    Stage {
        /// Place in the plan.
        index: usize,
        /// What it tells.
        event: &'a StageEvent,
    },
    /// A stage ended, was found in the store, or will not run.
    StageEnded {
        /// Place in the plan.
        index: usize,
        /// How it ended.
        record: &'a StageRecord,
    },
    /// The user asked to stop; running stages are being ended.
    Stopping,
    /// The run ended.
    Ended {
        /// How it ended.
        outcome: &'a RunOutcome,
    },
}

/// Terminal, tests: whoever wants to know. Called on the scheduler's thread.
pub trait RunObserver {
    /// Hears of an event.
    fn observe(&mut self, event: RunEvent<'_>);
}

/// Nobody listens.
impl RunObserver for () {
    fn observe(&mut self, _event: RunEvent<'_>) {}
}
