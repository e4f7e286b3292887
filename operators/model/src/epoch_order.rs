//! The order in which a training stage visits its data: a fresh permutation for each epoch, from the seed alone.

use engine_core::seed;

/// Permutations of `0..len`, one for each epoch.
#[derive(Debug)]
pub(crate) struct EpochOrder {
    seed: u64,
    len: usize,
    current: Option<(u64, Vec<usize>)>,
}

impl EpochOrder {
    /// The orders under a stage's seed.
    pub(crate) fn new(seed: u64, len: usize) -> Self {
        Self {
            seed,
            len,
            current: None,
        }
    }

    /// The order of an epoch, counted from 0.
    pub(crate) fn epoch(&mut self, epoch: u64) -> &[usize] {
        if self
            .current
            .as_ref()
            .is_none_or(|(known, _)| *known != epoch)
        {
            let order =
                seed::permutation(seed::derive(self.seed, &format!("epoch {epoch}")), self.len);
            self.current = Some((epoch, order));
        }
        self.current
            .as_ref()
            .map(|(_, order)| order.as_slice())
            .expect("the order was just set")
    }

    /// Item `position` of the epochs one after the other.
    pub(crate) fn at(&mut self, position: u64) -> usize {
        let len = self.len as u64;
        self.epoch(position / len)[(position % len) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_item_once_in_another_order() {
        let mut order = EpochOrder::new(5, 20);
        let first: Vec<usize> = (0..20).map(|position| order.at(position)).collect();
        let second: Vec<usize> = (20..40).map(|position| order.at(position)).collect();
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn it_depends_on_the_seed_alone() {
        assert_eq!(
            EpochOrder::new(5, 20).epoch(3),
            EpochOrder::new(5, 20).epoch(3)
        );
        assert_ne!(
            EpochOrder::new(5, 20).epoch(3),
            EpochOrder::new(6, 20).epoch(3)
        );
    }
}
