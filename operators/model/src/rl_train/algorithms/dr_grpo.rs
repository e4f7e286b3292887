//! Dr. GRPO: GRPO done right.
//!
//! ```text
//! J   = E[ 1/G sum_i 1/L sum_t min( r_it A_i, clip(r_it, 1 - clip, 1 + clip) A_i ) ]
//! A_i = R_i - mean R
//! ```
//!
//! arXiv 2503.20783, section 3.2 and listing 1. `L` is a constant, in the authors' code the most tokens of an answer: `aggregation:
//! {token-sum: {over: L}}`. Dividing by the length favours short right and long wrong answers, and dividing by the standard
//! deviation weighs very easy and very hard prompts more. Groups without signal are not dropped, since the mean counts them; they
//! have advantages of 0 and cost no update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdvantageRule, Clip, Knobs, Recipe};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::{Aggregation, TokenSum};
use crate::rl_train::filter::Filter;

/// Settings of `dr-grpo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DrGrpo {
    /// The probability ratio is clipped at 1 less this. Default 0.2.
    pub clip_low: f64,
    /// The probability ratio is clipped at 1 plus this. Default 0.2.
    pub clip_high: f64,
    /// The ratio is cut to at most this before anything else. Default: not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_cap: Option<f64>,
    /// For negative advantages, the loss of a token is at most this times the advantage. Default: unbounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
}

impl Default for DrGrpo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            ratio_cap: None,
            dual_clip: None,
        }
    }
}

impl DrGrpo {
    pub(super) fn clip(&self) -> Clip {
        Clip {
            low: self.clip_low,
            high: self.clip_high,
            ratio_cap: self.ratio_cap,
            dual_clip: self.dual_clip,
        }
    }

    pub(super) fn recipe(&self) -> Recipe {
        Recipe {
            surrogate: self.clip().surrogate(),
            advantage: AdvantageRule::Answers(operators_verdict::Advantage::DrGrpo),
            aggregation: Aggregation::TokenSum(TokenSum { over: None }),
            filter: Filter::None,
            least_answers: 2,
        }
    }
}

pub(super) fn check_knobs(knobs: &Knobs<'_>, faults: &mut ValueFaults) {
    if matches!(
        knobs.aggregation,
        Some(Aggregation::SequenceMean | Aggregation::TokenMean)
    ) {
        let message = "`dr-grpo` is there to take the division by the length away: leave `aggregation` out, set `token-sum`, or use `grpo`";
        faults.fault("aggregation", message.to_owned());
    }
    if knobs.statistics.is_some() {
        let message =
            "`dr-grpo` divides by no standard deviation: leave `statistics` out, or use `grpo`";
        faults.fault("statistics", message.to_owned());
    }
}
