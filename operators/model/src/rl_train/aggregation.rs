//! How the losses of tokens become the loss of a minibatch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::advantage::{sequence_mean_weight, token_mean_weight};

/// How the losses of tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Aggregation {
    /// The mean over the answers of the mean over their tokens: every answer weighs the same.
    SequenceMean,
    /// The mean over all tokens of all answers of an update: every token weighs the same.
    TokenMean,
    /// The mean over the answers of the sum over their tokens, divided by a constant.
    TokenSum(TokenSum),
}

/// Settings of `token-sum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TokenSum {
    /// The constant. Default: `max-new-tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<u32>,
}

/// What the answers of an update add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sequences: usize,
    pub(super) tokens: usize,
}

impl Aggregation {
    /// Weight of each token of a sequence of this length.
    pub(super) fn token_weight(self, length: usize, all: Extent, max_new_tokens: u32) -> f32 {
        match self {
            Self::SequenceMean => sequence_mean_weight(all.sequences, length),
            Self::TokenMean => token_mean_weight(all.tokens),
            Self::TokenSum(TokenSum { over }) => {
                sequence_mean_weight(all.sequences, over.unwrap_or(max_new_tokens) as usize)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_all_tokens_add_up_to_the_mean_they_stand_for() {
        // Sequences of 2 and 6 tokens, limit 10.
        let all = Extent {
            sequences: 2,
            tokens: 8,
        };
        let weight = |aggregation: Aggregation, length| aggregation.token_weight(length, all, 10);
        assert_eq!(weight(Aggregation::SequenceMean, 2), 0.25);
        assert_eq!(
            weight(Aggregation::SequenceMean, 6),
            (1.0 / 12.0_f64) as f32
        );
        assert_eq!(weight(Aggregation::TokenMean, 2), 0.125);
        assert_eq!(weight(Aggregation::TokenMean, 6), 0.125);
        let sum = |over| Aggregation::TokenSum(TokenSum { over });
        assert_eq!(weight(sum(None), 2), 0.05);
        assert_eq!(weight(sum(Some(1)), 6), 0.5);
    }
}
