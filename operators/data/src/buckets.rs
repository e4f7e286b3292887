//! Numbers by a key, a few for each key: a table for hundreds of millions of keys of which most have one number.
//!
//! A key is found with one look at the table, where its only number stands, or where its numbers stand side by side: those of a key
//! that many share are near each other in memory.

/// Places of the table at first.
const LEAST_PLACES: usize = 1024;
/// Numbers of a small block.
const FEW: usize = 4;
/// The number of a place in a block where nothing is.
const NONE: u32 = u32::MAX;

/// An entry's two lowest bits: what the 30 bits above them are. No entry is 0.
const ONE: u32 = 1;
const SMALL: u32 = 2;
const LARGE: u32 = 3;

/// Numbers by their keys.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// Most numbers of a key; more are not kept.
    most: usize,
    /// Open addressing: a key above what it has, and 0 where nothing is.
    table: Vec<u64>,
    keys: usize,
    /// Blocks of `FEW` and of `most` numbers, one after the other.
    small: Vec<u32>,
    large: Vec<u32>,
    /// Small blocks that were given up for large ones.
    free: Vec<u32>,
}

/// What a key has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    entry: u32,
    one: [u32; 1],
}

impl Buckets {
    /// Without numbers. A key gets at most so many, the first ones.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            table: vec![0; LEAST_PLACES],
            keys: 0,
            small: Vec::new(),
            large: Vec::new(),
            free: Vec::new(),
        }
    }

    /// What a key has.
    pub(crate) fn find(&self, key: u32) -> Bucket {
        let entry = self.table[self.place(key)] as u32;
        Bucket {
            entry,
            one: [entry >> 2],
        }
    }

    /// The numbers of a bucket, in the order in which they were added.
    pub(crate) fn members<'a>(&'a self, bucket: &'a Bucket) -> &'a [u32] {
        let index = (bucket.entry >> 2) as usize;
        let (block, size) = match bucket.entry & 3 {
            ONE => return &bucket.one,
            SMALL => (&self.small, FEW),
            LARGE => (&self.large, self.most),
            _ => return &[],
        };
        let block = &block[index * size..(index + 1) * size];
        let count = block.iter().position(|number| *number == NONE);
        &block[..count.unwrap_or(size)]
    }

    /// Adds a number, below 2^30, unless the key has as many as it may.
    pub(crate) fn add(&mut self, key: u32, number: u32) {
        assert!(number < 1 << 30, "a bucket has room for 30 bits");
        let place = self.place(key);
        let bucket = self.find(key);
        let members = self.members(&bucket);
        let count = members.len();
        if count >= self.most {
            return;
        }
        let entry = match bucket.entry & 3 {
            SMALL if count == FEW => {
                let mut block = members.to_vec();
                block.push(number);
                block.resize(self.most, NONE);
                self.free.push(bucket.entry >> 2);
                self.large.extend(block);
                ((self.large.len() / self.most - 1) as u32) << 2 | LARGE
            }
            SMALL => {
                self.small[(bucket.entry >> 2) as usize * FEW + count] = number;
                return;
            }
            LARGE => {
                self.large[(bucket.entry >> 2) as usize * self.most + count] = number;
                return;
            }
            ONE => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.small.extend([NONE; FEW]);
                    (self.small.len() / FEW - 1) as u32
                });
                let block = &mut self.small[index as usize * FEW..][..FEW];
                block.fill(NONE);
                (block[0], block[1]) = (bucket.one[0], number);
                index << 2 | SMALL
            }
            _ => {
                self.keys += 1;
                number << 2 | ONE
            }
        };
        self.table[place] = u64::from(key) << 32 | u64::from(entry);
        if self.keys * 3 > self.table.len() * 2 {
            self.grow();
        }
    }

    /// Where a key is, or where it would be.
    fn place(&self, key: u32) -> usize {
        let mask = self.table.len() - 1;
        let mut place = key as usize & mask;
        while self.table[place] != 0 && self.table[place] >> 32 != u64::from(key) {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let larger = vec![0; self.table.len() * 2];
        let entries = std::mem::replace(&mut self.table, larger);
        for entry in entries.into_iter().filter(|entry| *entry != 0) {
            let place = self.place((entry >> 32) as u32);
            self.table[place] = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engine_core::seed::derive;

    use super::*;

    #[test]
    fn every_key_has_its_first_numbers() {
        let mut buckets = Buckets::new(16);
        let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for number in 0..60_000 {
            // Keys with one number, with some, and with very many.
            let drawn = derive(3, &number.to_string());
            let key = match drawn % 4 {
                0 => drawn as u32,
                1 => (drawn >> 8) as u32 % 9_000,
                2 => (drawn >> 8) as u32 % 2_000,
                _ => (drawn >> 8) as u32 % 3,
            };
            buckets.add(key, number);
            let numbers = expected.entry(key).or_default();
            if numbers.len() < 16 {
                numbers.push(number);
            }
        }
        let sizes: Vec<usize> = expected.values().map(Vec::len).collect();
        assert!([1, 2, 4, 5, 16].iter().all(|size| sizes.contains(size)));
        for (key, numbers) in &expected {
            assert_eq!(buckets.members(&buckets.find(*key)), numbers, "{key}");
        }
        assert_eq!(buckets.members(&buckets.find(9_999_999)), [0_u32; 0]);
        let small = buckets.small.len() / FEW - buckets.free.len();
        let few = sizes.iter().filter(|size| (2..=FEW).contains(size)).count();
        assert_eq!(small, few, "blocks are used again");
    }
}
