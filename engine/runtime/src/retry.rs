//! Runs a stage again when it failed for a reason that passes: its worker was killed or went silent, the store was away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine_core::StageEvent;

use crate::failure::Failure;
use crate::io::StageListener;
use crate::worker::WorkerOptions;

/// How long a pause is at most.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often a pause looks at the wish to stop.
const TICK: Duration = Duration::from_millis(50);

/// Tries until it succeeds, fails for good, or failed too often in a row without having committed anything. Returns how often
/// it was tried again.
pub(crate) fn with_retries<T>(
    options: &WorkerOptions,
    listener: &dyn StageListener,
    mut attempt: impl FnMut(&dyn StageListener) -> Result<T, Failure>,
) -> Result<(T, u32), Failure> {
    let mut retries = 0;
    let mut in_vain = 0;
    loop {
        let watcher = CommitWatcher {
            listener,
            has_committed: AtomicBool::new(false),
        };
        let failure = match attempt(&watcher) {
            Ok(done) => return Ok((done, retries)),
            Err(failure) => failure,
        };
        if watcher.has_committed.load(Ordering::SeqCst) {
            in_vain = 0;
        }
        if !failure.is_transient || in_vain >= options.retries || listener.is_cancelled() {
            return Err(failure);
        }
        listener.notice(format!("{failure}; the stage was started again"));
        pause(options.backoff, in_vain, listener);
        in_vain += 1;
        retries += 1;
        if listener.is_cancelled() {
            return Err(Failure::interrupted());
        }
    }
}

fn pause(first: Duration, in_vain: u32, listener: &dyn StageListener) {
    let pause = first
        .saturating_mul(2_u32.saturating_pow(in_vain))
        .min(LONGEST_PAUSE);
    let begun = Instant::now();
    while begun.elapsed() < pause && !listener.is_cancelled() {
        std::thread::sleep(TICK.min(pause));
    }
}

/// Notices whether an attempt came further than the one before.
struct CommitWatcher<'a> {
    listener: &'a dyn StageListener,
    has_committed: AtomicBool,
}

impl StageListener for CommitWatcher<'_> {
    fn event(&self, event: StageEvent) {
        self.listener.event(event);
    }

    fn is_cancelled(&self) -> bool {
        self.listener.is_cancelled()
    }

    fn committed(&self) {
        self.has_committed.store(true, Ordering::SeqCst);
        self.listener.committed();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::failure::Domain;

    struct Silent;

    impl StageListener for Silent {
        fn event(&self, _event: StageEvent) {}

        fn is_cancelled(&self) -> bool {
            false
        }
    }

    fn options(retries: u32) -> WorkerOptions {
        let mut options = WorkerOptions::new("worker".into());
        options.retries = retries;
        options.backoff = Duration::ZERO;
        options
    }

    fn away() -> Failure {
        Failure {
            is_transient: true,
            ..Failure::new(Domain::Store, "away")
        }
    }

    #[test]
    fn only_what_passes_is_tried_again_and_not_for_ever() {
        let tries = Cell::new(0);
        let mut attempt = |_: &dyn StageListener| -> Result<(), Failure> {
            tries.set(tries.get() + 1);
            Err(away())
        };
        assert!(with_retries(&options(3), &Silent, &mut attempt).is_err());
        assert_eq!(tries.take(), 4);
        let wrong = |_: &dyn StageListener| -> Result<(), Failure> {
            tries.set(tries.get() + 1);
            Err(Failure::new(Domain::Data, "wrong"))
        };
        assert!(with_retries(&options(3), &Silent, wrong).is_err());
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn an_attempt_that_committed_something_was_not_in_vain() {
        let tries = Cell::new(0_u32);
        let attempt = |listener: &dyn StageListener| {
            tries.set(tries.get() + 1);
            if tries.get() == 10 {
                return Ok(());
            }
            if tries.get().is_multiple_of(2) {
                listener.committed();
            }
            Err(away())
        };
        assert_eq!(
            with_retries(&options(2), &Silent, attempt).unwrap(),
            ((), 9)
        );
    }
}
