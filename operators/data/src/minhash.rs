//! MinHash with bands: finds texts whose sets of n-grams are much alike among millions, without comparing all pairs.
//!
//! Each text gets [`HASHES`] numbers; two texts agree in one with a probability of the Jaccard similarity of their sets. The numbers
//! are taken together in bands so that a pair at the threshold shares a band with a probability of at least 99 %. A pair that shares
//! one is compared by all its numbers, of which one byte each is kept: the estimate has a standard error of about 0.04.

use crate::buckets::{Bucket, Buckets};
use crate::hash::mix;

/// Numbers of a text.
const HASHES: usize = 128;
/// Bands are not more than so many: each takes memory for each text.
const MOST_BANDS: usize = 32;
/// A pair at the threshold is found with at least this probability.
const RECALL: f64 = 0.99;
/// Texts with one band that are looked at: what thousands of texts share says little, and the cost must not grow with their
/// number. Such pairs are still found by other bands.
const MOST_LOOKS: usize = 16;
/// Bits of the table of texts that were compared already.
const SEEN: usize = 512;

/// What is known of a text.
#[derive(Debug)]
pub(crate) struct Sketch {
    bytes: [u8; HASHES],
    bands: Vec<u64>,
}

/// Sketches by their bands.
#[derive(Debug)]
pub(crate) struct Similar {
    /// Numbers that must be equal of two texts that are alike.
    least_equal: u32,
    bands: usize,
    rows: usize,
    sketches: Vec<[u8; HASHES]>,
    buckets: Buckets,
}

impl Similar {
    /// An index without texts. `threshold` is the similarity from which on texts count as alike.
    pub(crate) fn new(threshold: f64) -> Self {
        let (bands, rows) = banding(threshold);
        // Bytes agree by chance once in 256 times.
        let chance = 1.0 / 256.0;
        let is_enough = |equal: &usize| {
            let share = *equal as f64 / HASHES as f64;
            (share - chance) / (1.0 - chance) >= threshold
        };
        Self {
            least_equal: (0..=HASHES).find(is_enough).unwrap_or(HASHES + 1) as u32,
            bands,
            rows,
            sketches: Vec::new(),
            buckets: Buckets::new(MOST_LOOKS),
        }
    }

    /// The sketch of a set of hashes.
    pub(crate) fn sketch(&self, set: &[u64]) -> Sketch {
        let mut least = [u32::MAX; HASHES];
        for item in set {
            let item = mix(*item) as u32;
            for (least, (flip, factor)) in least.iter_mut().zip(FUNCTIONS) {
                let mut value = (item ^ flip).wrapping_mul(factor);
                value ^= value >> 15;
                value = value.wrapping_mul(0x2c1b_3c6d);
                *least = (*least).min(value);
            }
        }
        let bands = least.chunks_exact(self.rows).take(self.bands).enumerate();
        let bands = bands.map(|(band, rows)| {
            rows.iter()
                .fold(mix(band as u64 + 1), |sum, row| mix(sum ^ u64::from(*row)))
        });
        Sketch {
            bands: bands.collect(),
            bytes: least.map(|value| value as u8),
        }
    }

    /// Whether a text of the index is alike.
    pub(crate) fn has(&self, sketch: &Sketch) -> bool {
        // All buckets first and then all sketches: what is far away in memory comes while other work is done.
        let mut found = [Bucket::default(); MOST_BANDS];
        for (bucket, band) in found.iter_mut().zip(&sketch.bands) {
            *bucket = self.buckets.find(half(*band));
        }
        // Texts that share one band share others, and are compared once, as far as the little table can tell.
        let mut seen = [u32::MAX; SEEN];
        let mut is_alike = |number: u32| {
            let last = &mut seen[number as usize % SEEN];
            if std::mem::replace(last, number) == number {
                return false;
            }
            equal(&self.sketches[number as usize], &sketch.bytes) >= self.least_equal
        };
        let found = &found[..sketch.bands.len()];
        (found.iter()).any(|bucket| self.buckets.members(bucket).iter().any(|n| is_alike(*n)))
    }

    /// Adds a text.
    pub(crate) fn add(&mut self, sketch: &Sketch) {
        let number = self.sketches.len() as u32;
        self.sketches.push(sketch.bytes);
        for band in &sketch.bands {
            self.buckets.add(half(*band), number);
        }
    }
}

/// What names a band: half of its hash.
fn half(band: u64) -> u32 {
    (band >> 32) as u32
}

/// How many bytes are equal.
fn equal(left: &[u8; HASHES], right: &[u8; HASHES]) -> u32 {
    // Sums side by side, which one instruction can add.
    let mut sums = [0_u8; 32];
    for (left, right) in left.chunks_exact(32).zip(right.chunks_exact(32)) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += u8::from(left == right);
        }
    }
    sums.iter().map(|sum| u32::from(*sum)).sum()
}

/// How many bands of how many numbers: as many numbers as possible, so that few unlike texts share a band.
fn banding(threshold: f64) -> (usize, usize) {
    let found = (1..=HASHES).rev().find_map(|rows| {
        let bands = (HASHES / rows).min(MOST_BANDS);
        let missed = (1.0 - threshold.powi(rows as i32)).powi(bands as i32);
        (1.0 - missed >= RECALL).then_some((bands, rows))
    });
    found.unwrap_or((MOST_BANDS, 1))
}

/// What tells the hash functions apart: bits to flip and an odd factor.
const FUNCTIONS: [(u32, u32); HASHES] = functions();

const fn functions() -> [(u32, u32); HASHES] {
    let mut functions = [(0, 0); HASHES];
    let mut state = 0x853c_49e6_748f_ea9b_u64;
    let mut index = 0;
    while index < HASHES {
        // The splitmix64 sequence.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        functions[index] = (mixed as u32, (mixed >> 32) as u32 | 1);
        index += 1;
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ngram::{Words, jaccard};
    use engine_core::seed::derive;

    /// Texts of about 120 words, of which each but the first of ten has some words changed.
    fn texts() -> Vec<Vec<u64>> {
        let word = |number: u64| format!("w{}", number % 4000);
        let texts = (0..120).flat_map(|family: u64| {
            (0..10).map(move |member: u64| {
                let words: Vec<String> = (0..120)
                    .map(|place: u64| {
                        let purpose = format!("{family} {member} {place}");
                        let is_changed = derive(1, &purpose) % 400 < member * 6;
                        word(derive(
                            2,
                            &if is_changed {
                                purpose
                            } else {
                                format!("{family} {place}")
                            },
                        ))
                    })
                    .collect();
                Words::of(&words.join(" ")).shingles(3)
            })
        });
        texts.collect()
    }

    #[test]
    fn what_brute_force_finds_is_found() {
        let sets = texts();
        for threshold in [0.5, 0.7, 0.8, 0.9] {
            let (mut alike, mut found, mut unlike, mut mistaken) = (0, 0, 0, 0);
            for (place, set) in sets.iter().enumerate() {
                // One pair at a time, so that every pair counts.
                for other in &sets[place.saturating_sub(9)..place] {
                    let mut index = Similar::new(threshold);
                    index.add(&index.sketch(other));
                    let has = index.has(&index.sketch(set));
                    let similarity = jaccard(set, other);
                    if similarity >= threshold + 0.1_f64.min((1.0 - threshold) / 2.0) {
                        alike += 1;
                        found += usize::from(has);
                    } else if similarity < threshold - 0.15 {
                        unlike += 1;
                        mistaken += usize::from(has);
                    }
                }
            }
            let recall = f64::from(found as u32) / f64::from(alike);
            assert!(
                alike > 50 && recall >= 0.98,
                "{threshold}: {recall} of {alike}"
            );
            assert!(
                mistaken * 500 <= unlike,
                "{threshold}: {mistaken} of {unlike}"
            );
        }
    }

    #[test]
    fn pairs_are_found_among_many() {
        let sets = texts();
        let mut index = Similar::new(0.8);
        let mut kept: Vec<&Vec<u64>> = Vec::new();
        let mut missed = 0;
        for set in &sets {
            let sketch = index.sketch(set);
            let nearest = kept
                .iter()
                .map(|other| jaccard(set, other))
                .fold(0.0, f64::max);
            if index.has(&sketch) {
                assert!(nearest > 0.6, "{nearest}");
                continue;
            }
            missed += usize::from(nearest >= 0.9);
            index.add(&sketch);
            kept.push(set);
        }
        assert!(kept.len() > 200 && kept.len() < 1000, "{}", kept.len());
        assert!(missed <= 2, "{missed}");
    }

    #[test]
    fn a_thousand_equal_texts_cost_no_more_than_some() {
        let mut index = Similar::new(0.8);
        let sketch = index.sketch(&[1, 2, 3]);
        for _ in 0..1000 {
            index.add(&sketch);
        }
        for band in &sketch.bands {
            let bucket = index.buckets.find(half(*band));
            assert_eq!(index.buckets.members(&bucket).len(), MOST_LOOKS);
        }
        assert!(index.has(&sketch));
        assert!(!index.has(&index.sketch(&[4, 5, 6])));
    }

    #[test]
    fn as_many_bytes_as_the_threshold_says_must_be_equal() {
        let mut other = [7_u8; HASHES];
        for changed in 0..=HASHES {
            assert_eq!(equal(&[7; HASHES], &other), (HASHES - changed) as u32);
            if changed < HASHES {
                other[changed] = 8;
            }
        }
        // An estimate of 102 in 128 and a little less by chance is under 0.8.
        assert_eq!(Similar::new(0.8).least_equal, 103);
        assert_eq!(Similar::new(1.0).least_equal, 128);
    }

    #[test]
    fn bands_find_pairs_at_the_threshold() {
        assert_eq!(banding(0.8), (21, 6));
        for threshold in [0.3, 0.5, 0.9, 0.95, 1.0] {
            let (bands, rows) = banding(threshold);
            assert!(bands * rows <= HASHES && bands <= MOST_BANDS);
        }
    }
}
