//! How many bytes of rows a stage holds at a time: whoever reads waits until others are done with theirs.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often somebody who waits looks whether the stage still goes on.
const TICK: Duration = Duration::from_millis(50);

/// A number of bytes that is shared out.
#[derive(Debug)]
pub(super) struct ByteBudget {
    limit: u64,
    used: Mutex<Used>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    most: u64,
}

/// Bytes that somebody has; they go back when it is dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    budget: &'a ByteBudget,
    bytes: u64,
}

impl ByteBudget {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Waits until there is room for so many bytes. Somebody who is alone gets any number, so that rows that are larger than
    /// the budget go through one by one. None when `has_ended` says that waiting is of no use any more.
    pub(super) fn take(&self, bytes: u64, has_ended: impl Fn() -> bool) -> Option<Share<'_>> {
        let mut used = self.lock();
        while used.bytes > 0 && used.bytes + bytes > self.limit {
            if has_ended() {
                return None;
            }
            used = self
                .returned
                .wait_timeout(used, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        used.bytes += bytes;
        used.most = used.most.max(used.bytes);
        Some(Share {
            budget: self,
            bytes,
        })
    }

    /// The most bytes that were ever out at a time.
    pub(super) fn most(&self) -> u64 {
        self.lock().most
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.budget.lock().bytes -= self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_late_waits_and_nobody_waits_for_ever() {
        let budget = ByteBudget::new(100);
        let first = budget.take(60, || false).unwrap();
        assert!(budget.take(60, || true).is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| budget.take(60, || false).map(|share| share.bytes));
            drop(first);
            assert_eq!(second.join().unwrap(), Some(60));
        });
        assert_eq!(budget.take(1000, || false).unwrap().bytes, 1000);
        assert_eq!(budget.most(), 1000);
        assert_eq!(budget.lock().bytes, 0);
    }
}
