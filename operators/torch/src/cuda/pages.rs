//! Pages of the key-value cache: who has which. A request takes all that it can ever need when it enters, so memory is never
//! promised twice; one that does not fit yet waits.

/// The pages that nobody has.
#[derive(Debug)]
pub(super) struct Pages {
    free: Vec<i32>,
    total: usize,
}

impl Pages {
    pub(super) fn new(total: usize) -> Self {
        let highest = i32::try_from(total).unwrap_or(i32::MAX);
        Self {
            // The lowest come out first.
            free: (0..highest).rev().collect(),
            total,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes pages; none if there are not as many.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<i32>> {
        let start = self.free.len().checked_sub(count)?;
        let mut taken = self.free.split_off(start);
        taken.reverse();
        Some(taken)
    }

    pub(super) fn give_back(&mut self, pages: Vec<i32>) {
        self.free.extend(pages.into_iter().rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_had_by_one_at_a_time_and_come_back() {
        let mut pages = Pages::new(5);
        let (first, second) = (pages.take(2).unwrap(), pages.take(3).unwrap());
        assert_eq!(
            (first.as_slice(), second.as_slice()),
            (&[0, 1][..], &[2, 3, 4][..])
        );
        assert!(pages.take(1).is_none());
        pages.give_back(first);
        assert_eq!(pages.free(), 2);
        assert!(pages.take(3).is_none(), "all or none");
        assert_eq!(pages.take(2).unwrap(), [0, 1]);
        assert_eq!(pages.take(0).unwrap(), [] as [i32; 0]);
        assert_eq!(pages.total(), 5);
    }
}
