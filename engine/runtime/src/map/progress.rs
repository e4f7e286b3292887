//! How far a map stage is: the parts that are done, and in a worker how far the one part is that is being computed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use engine_core::operator::StageView as _;
use engine_core::{Progress, StageEvent};

use crate::io::StoreIo;

/// Adds up what is done and tells it.
pub(super) struct MapProgress<'a> {
    io: &'a StoreIo<'a>,
    /// Whether one part is computed at a time, so that an operator's own count makes sense.
    is_one_by_one: bool,
    state: Mutex<Progress>,
}

impl<'a> MapProgress<'a> {
    pub(super) fn new(
        io: &'a StoreIo<'a>,
        total: Option<u64>,
        unit: &str,
        is_one_by_one: bool,
    ) -> Self {
        let state = Mutex::new(Progress {
            total,
            unit: unit.to_owned(),
            ..Progress::default()
        });
        Self {
            io,
            is_one_by_one,
            state,
        }
    }

    /// Tells that nothing is done yet.
    pub(super) fn begin(&self) {
        let now = self.lock().clone();
        self.io.event(StageEvent::Progress(now));
    }

    /// Some rows are done.
    pub(super) fn add(&self, done: u64, tokens: u64) {
        let mut state = self.lock();
        state.done += done;
        state.tokens += tokens;
        let now = state.clone();
        drop(state);
        self.io.event(StageEvent::Progress(now));
    }

    /// The operator tells how far it is inside a part.
    pub(super) fn inside(&self, done: u64, tokens: u64, note: String) {
        if !self.is_one_by_one {
            return;
        }
        let mut state = self.lock();
        state.note = note;
        let mut now = state.clone();
        drop(state);
        now.done += done;
        now.tokens += tokens;
        if let Some(total) = now.total {
            now.done = now.done.min(total);
        }
        self.io.event(StageEvent::Progress(now));
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
