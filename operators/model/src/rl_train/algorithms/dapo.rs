//! DAPO: decoupled clip and dynamic sampling policy optimization.
//!
//! ```text
//! J   = E[ 1/(sum_i |o_i|) sum_i sum_t min( r_it A_i, clip(r_it, 1 - clip-low, 1 + clip-high) A_i ) ]
//!       where some, but not all, of the G answers are right
//! A_i = (R_i - mean R) / std R
//! ```
//!
//! arXiv 2503.14476, eq. 8 to 12 and algorithm 1. Its other parts are keys that every algorithm has: `mask-truncated` (overlong
//! filtering, section 3.4) and `overlong` of `score` (soft punishment, eq. 13). Where no `filter` is given, sampling goes on for up to
//! ten rounds, as in the authors' code, and then trains on the groups that are there with a warning; the authors' code fails.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Clip, Knobs, Recipe, Statistics, normalised};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::Aggregation;
use crate::rl_train::filter::{Fallback, Filter, Resample};

/// Rounds of sampling, as in the authors' code.
const ROUNDS: u32 = 10;

/// Settings of `dapo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Dapo {
    /// The probability ratio is clipped at 1 less this. Default 0.2.
    pub clip_low: f64,
    /// The probability ratio is clipped at 1 plus this. Default 0.28.
    pub clip_high: f64,
    /// The ratio is cut to at most this before anything else. Default: not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_cap: Option<f64>,
    /// For negative advantages, the loss of a token is at most this times the advantage. Default: unbounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
}

impl Default for Dapo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.28,
            ratio_cap: None,
            dual_clip: None,
        }
    }
}

impl Dapo {
    pub(super) fn clip(&self) -> Clip {
        Clip {
            low: self.clip_low,
            high: self.clip_high,
            ratio_cap: self.ratio_cap,
            dual_clip: self.dual_clip,
        }
    }

    pub(super) fn recipe(&self, statistics: Statistics) -> Recipe {
        Recipe {
            surrogate: self.clip().surrogate(),
            advantage: normalised(statistics),
            aggregation: Aggregation::TokenMean,
            filter: Filter::Resample(Resample::within(ROUNDS, Fallback::Train)),
            least_answers: 2,
        }
    }
}

pub(super) fn check_knobs(knobs: &Knobs<'_>, faults: &mut ValueFaults) {
    if knobs
        .aggregation
        .is_some_and(|aggregation| aggregation != Aggregation::TokenMean)
    {
        let message = "`dapo` is the mean over all tokens: leave `aggregation` out, or use `grpo` with `clip-low: 0.2, clip-high: 0.28`";
        faults.fault("aggregation", message.to_owned());
    }
}
