//! The part `repetition`: punishment of completions that say the same again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Faults;

/// The share of n-grams of tokens that occur before, as a negative number: 0 where none is repeated, near -1 where one
/// thing is said all the time. Completions of fewer tokens than `ngram` have 0.
///
/// # Source
/// "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), appendix C.2, with n-grams of 40 tokens; as one
/// number for a completion in TRL and Open-R1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Repetition {
    /// Weight of the part: the largest punishment.
    pub weight: f64,
    /// Tokens of an n-gram, for example 20.
    pub ngram: u32,
}

/// Multiplier of the rolling hash: odd, with its bits spread.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

impl Repetition {
    pub(super) fn check(&self, faults: &mut Faults) {
        faults.finite("repetition.weight", self.weight);
        if self.ngram == 0 {
            faults.range("repetition.ngram", "is 0");
        }
    }

    pub(super) fn value(&self, token_ids: &[u32]) -> f64 {
        let width = self.ngram as usize;
        if token_ids.len() < width {
            return 0.0;
        }
        let total = token_ids.len() - width + 1;
        let distinct = distinct_ngrams(token_ids, width);
        if distinct == total {
            return 0.0;
        }
        -(1.0 - distinct as f64 / total as f64)
    }
}

/// How many different n-grams there are. The cost does not grow with their width, save where they are repeated.
fn distinct_ngrams(token_ids: &[u32], width: usize) -> usize {
    let total = token_ids.len() - width + 1;
    // Open addressing over the starts of the n-grams seen, counted from 1; 0 is free.
    let mut table = vec![0_u32; (total * 2).next_power_of_two()];
    let mut hashes = vec![0_u64; total];
    let mask = table.len() - 1;
    let shift = 64 - table.len().trailing_zeros().max(1);
    // What the token that leaves the window was multiplied with.
    let top = (1..width).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = 0_u64;
    let mut distinct = 0;
    for (end, token) in token_ids.iter().enumerate() {
        if end >= width {
            let left = u64::from(token_ids[end - width]) + 1;
            hash = hash.wrapping_sub(left.wrapping_mul(top));
        }
        hash = hash.wrapping_mul(BASE).wrapping_add(u64::from(*token) + 1);
        let Some(start) = (end + 1).checked_sub(width) else {
            continue;
        };
        hashes[start] = hash;
        let ngram = &token_ids[start..=end];
        let mut slot = (hash.wrapping_mul(BASE) >> shift) as usize & mask;
        loop {
            match table[slot] {
                0 => {
                    table[slot] = start as u32 + 1;
                    distinct += 1;
                    break;
                }
                seen => {
                    let seen = seen as usize - 1;
                    if hashes[seen] == hash && &token_ids[seen..seen + width] == ngram {
                        break;
                    }
                    slot = (slot + 1) & mask;
                }
            }
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn counts_equal_those_of_a_set() {
        let mut state = 1_u64;
        for case in 0..400_usize {
            let tokens: Vec<u32> = (0..=case % 90)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 33) as u32 % (1 + case as u32 % 7)
                })
                .collect();
            for width in 1..=tokens.len().min(6) {
                let expected: BTreeSet<&[u32]> = tokens.windows(width).collect();
                assert_eq!(distinct_ngrams(&tokens, width), expected.len());
            }
        }
    }
}
