//! Sets of samples of prompts, a bit each: there may be very many.

use std::collections::HashMap;

/// Samples in a word.
const BITS: u32 = u64::BITS;

/// A set of pairs of a prompt's number and a sample. The first 64 samples of a prompt take eight bytes.
#[derive(Debug)]
pub(super) struct SampleSet {
    first: Vec<u64>,
    /// Further samples, by prompt and the number of their word.
    more: HashMap<(u32, u32), u64>,
}

impl SampleSet {
    /// A set without samples, for so many prompts.
    pub(super) fn new(prompts: usize) -> Self {
        Self {
            first: vec![0; prompts],
            more: HashMap::new(),
        }
    }

    /// Adds a pair; whether it is new.
    pub(super) fn insert(&mut self, prompt: u32, sample: u32) -> bool {
        let word = match sample / BITS {
            0 => &mut self.first[prompt as usize],
            place => self.more.entry((prompt, place)).or_default(),
        };
        let bit = 1 << (sample % BITS);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether a pair is in the set.
    pub(super) fn has(&self, prompt: u32, sample: u32) -> bool {
        let word = match sample / BITS {
            0 => self.first[prompt as usize],
            place => self.more.get(&(prompt, place)).copied().unwrap_or(0),
        };
        word >> (sample % BITS) & 1 == 1
    }
}

/// Numbers for the pairs of a set, without gaps: places of what is known of each.
#[derive(Debug)]
pub(super) struct Ranks<'a> {
    set: &'a SampleSet,
    first: Vec<usize>,
    more: HashMap<(u32, u32), usize>,
    len: usize,
}

impl<'a> Ranks<'a> {
    /// The numbers of a set.
    pub(super) fn new(set: &'a SampleSet) -> Self {
        let mut len = 0;
        let mut first = Vec::with_capacity(set.first.len());
        for word in &set.first {
            first.push(len);
            len += word.count_ones() as usize;
        }
        let mut keys: Vec<&(u32, u32)> = set.more.keys().collect();
        keys.sort_unstable();
        let mut more = HashMap::with_capacity(keys.len());
        for key in keys {
            more.insert(*key, len);
            len += set.more[key].count_ones() as usize;
        }
        Self {
            set,
            first,
            more,
            len,
        }
    }

    /// How many pairs there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number of a pair, if it is in the set.
    pub(super) fn get(&self, prompt: u32, sample: u32) -> Option<usize> {
        if !self.set.has(prompt, sample) {
            return None;
        }
        let (word, start) = match sample / BITS {
            0 => (self.set.first[prompt as usize], self.first[prompt as usize]),
            place => (self.set.more[&(prompt, place)], self.more[&(prompt, place)]),
        };
        let before = word & ((1 << (sample % BITS)) - 1);
        Some(start + before.count_ones() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_in_once_and_have_numbers_without_gaps() {
        let mut set = SampleSet::new(3);
        let pairs = [(2, 63), (0, 0), (2, 64), (1, u32::MAX), (2, 0), (2, 127)];
        for (prompt, sample) in pairs {
            assert!(!set.has(prompt, sample));
            assert!(set.insert(prompt, sample));
            assert!(!set.insert(prompt, sample));
        }
        assert!(!set.has(1, 63) && !set.has(0, 64));
        let ranks = Ranks::new(&set);
        let mut numbers: Vec<usize> = pairs
            .iter()
            .map(|(prompt, sample)| ranks.get(*prompt, *sample).unwrap())
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        assert_eq!((ranks.len(), ranks.get(0, 1)), (6, None));
    }
}
