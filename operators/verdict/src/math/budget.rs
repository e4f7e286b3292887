//! A limit on work: every loop that an answer can lengthen draws on it, so that no answer costs more than its limit.

use std::cell::Cell;

/// Work of one verdict. One unit is about ten nanoseconds.
const UNITS: u64 = 1_000_000;

/// The work that is left.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Cell<u64>,
}

/// The work was used up, or a result is beyond the limits of size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            left: Cell::new(UNITS),
        }
    }

    /// A budget of its own for a part of the work that may fail without the whole: half of what is left.
    pub(crate) fn half(&self) -> Self {
        let half = self.left.get() / 2;
        self.left.set(self.left.get() - half);
        Self {
            left: Cell::new(half),
        }
    }

    /// Takes back what is left of a part.
    pub(crate) fn take_back(&self, part: &Self) {
        self.left.set(self.left.get() + part.left.get());
    }

    /// Whether nothing is left.
    pub(crate) fn is_spent(&self) -> bool {
        self.left.get() == 0
    }

    /// Takes units away.
    pub(crate) fn spend(&self, units: u64) -> Result<(), Exhausted> {
        match self.left.get().checked_sub(units) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Exhausted)
            }
        }
    }
}
