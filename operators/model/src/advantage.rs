//! Advantages, of which `operators-verdict` has the one definition, and loss weights. Pure functions.

pub use operators_verdict::{
    Advantage, GroupSignal, GroupStatistics, Normalised, STD_EPSILON, Spread, group_advantages,
    group_ranks, group_signal,
};

/// Weight of each token so that the loss is the mean over sequences of the mean over their tokens.
#[must_use]
pub fn sequence_mean_weight(sequences: usize, tokens_of_sequence: usize) -> f32 {
    (1.0 / (sequences as f64 * tokens_of_sequence as f64)) as f32
}

/// Weight of each token so that the loss is the mean over all tokens.
#[must_use]
pub fn token_mean_weight(tokens: usize) -> f32 {
    (1.0 / tokens as f64) as f32
}
