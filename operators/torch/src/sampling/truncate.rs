//! Truncation of a row's distribution: `top_k`, `top_p` and `min_p`, each on what the one before left.

use engine_core::policy::SamplingParams;

/// Tokens that are put in order at first; four times as many each time that they do not suffice.
const FIRST_SORTED: usize = 256;

/// Which tokens a row can lose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncation {
    top_k: usize,
    top_p: f64,
    min_p: f64,
}

/// The possible tokens of a row from the most likely one on, put in order as far as they are asked for.
#[derive(Debug)]
pub(super) struct Ranked {
    /// Keys that order tokens: the more likely, and the lower of two that are equally likely, is less.
    keys: Vec<u64>,
    tokens: Vec<u32>,
}

impl Ranked {
    /// # Shapes
    /// - `logprobs`: `[v]`
    pub(super) fn new(logprobs: &[f32]) -> Self {
        let possible = logprobs.iter().enumerate();
        let possible = possible.filter(|(_, logprob)| **logprob > f32::NEG_INFINITY);
        // Log-probabilities are not above zero, so their bits grow as they fall.
        let key = |(token, logprob): (usize, &f32)| {
            let logprob = logprob.min(0.0).abs();
            u64::from(logprob.to_bits()) << 32 | token as u64
        };
        Self {
            keys: possible.map(key).collect(),
            tokens: Vec::new(),
        }
    }

    /// Tokens that are possible.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The most likely tokens, at most this many.
    pub(super) fn first(&mut self, count: usize) -> &[u32] {
        let count = count.min(self.keys.len());
        let sorted = self.tokens.len();
        if count > sorted {
            let rest = &mut self.keys[sorted..];
            if count - sorted < rest.len() {
                rest.select_nth_unstable(count - sorted);
            }
            rest[..count - sorted].sort_unstable();
            let fresh = rest[..count - sorted].iter();
            self.tokens
                .extend(fresh.map(|key| (key & u64::from(u32::MAX)) as u32));
        }
        &self.tokens[..count]
    }
}

impl Truncation {
    /// Keeps all tokens.
    pub(super) const NONE: Self = Self {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    pub(super) fn new(params: &SamplingParams) -> Self {
        Self {
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
        }
    }

    /// Whether a row can lose tokens.
    pub(super) fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// The tokens that are kept, in their order; always the most likely one.
    ///
    /// # Shapes
    /// - `probs`: `[v]`
    pub(super) fn kept(&self, ranked: &mut Ranked, probs: &[f32]) -> Vec<u32> {
        let prob = |token: &u32| f64::from(probs[*token as usize]);
        let mut count = ranked.len();
        if self.top_k > 0 {
            count = count.min(self.top_k);
        }
        if self.top_p < 1.0 {
            let mass = if count < ranked.len() {
                ranked.first(count).iter().map(prob).sum()
            } else {
                probs.iter().map(|prob| f64::from(*prob)).sum::<f64>()
            };
            count = nucleus(ranked, count, self.top_p * mass, prob);
        }
        if self.min_p > 0.0 {
            let least = self.min_p * ranked.first(1).first().map_or(0.0, prob);
            let mut looked = FIRST_SORTED.min(count);
            loop {
                let tokens = ranked.first(looked);
                let likely = tokens.partition_point(|token| prob(token) >= least);
                if likely < looked || looked == count {
                    count = likely.max(1);
                    break;
                }
                looked = (looked * 4).min(count);
            }
        }
        let mut kept = ranked.first(count).to_vec();
        kept.sort_unstable();
        kept
    }
}

/// The fewest of the `count` most likely tokens that have this much of the probability.
fn nucleus(ranked: &mut Ranked, count: usize, wanted: f64, prob: impl Fn(&u32) -> f64) -> usize {
    let (mut sum, mut looked, mut sorted) = (0.0, 0, FIRST_SORTED.min(count));
    loop {
        for token in &ranked.first(sorted)[looked..] {
            sum += prob(token);
            looked += 1;
            if sum >= wanted {
                return looked;
            }
        }
        if sorted == count {
            return count.max(1);
        }
        sorted = (sorted * 4).min(count);
    }
}
