//! GSPO: group sequence policy optimization, and GSPO-token.
//!
//! ```text
//! s_i  = exp( 1/|o_i| sum_t log r_it )
//! J    = E[ 1/G sum_i min( s_i A_i, clip(s_i, 1 - clip-low, 1 + clip-high) A_i ) ]
//! A_i  = (R_i - mean R) / std R
//! GSPO-token: s_it = sg[s_i] p_it / sg[p_it], the same value with the gradient of each token
//! ```
//!
//! arXiv 2507.18071, eq. 5 to 7 and 13 to 14. The ratio of a sequence is the geometric mean of its tokens' ratios, so its clip is
//! narrow; the defaults are those of section 5.1. It differs from GRPO only where a rollout is learnt from in several updates: the paper
//! has `updates-per-rollout: 4`. With one advantage for each answer, as here, both variants have the same gradient (eq. 17).

use engine_core::policy::{RatioLevel, Surrogate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Knobs, Recipe, Statistics, normalised};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::Aggregation;
use crate::rl_train::filter::Filter;

/// Settings of `gspo` and `gspo-token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Gspo {
    /// The ratio of a sequence is clipped at 1 less this. Default 3e-4.
    pub clip_low: f64,
    /// The ratio of a sequence is clipped at 1 plus this. Default 4e-4.
    pub clip_high: f64,
}

impl Default for Gspo {
    fn default() -> Self {
        Self {
            clip_low: 3e-4,
            clip_high: 4e-4,
        }
    }
}

impl Gspo {
    pub(super) fn recipe(&self, level: RatioLevel, statistics: Statistics) -> Recipe {
        Recipe {
            surrogate: Surrogate::Clipped {
                clip_low: self.clip_low,
                clip_high: self.clip_high,
                level,
                ratio_cap: None,
                dual_clip: None,
            },
            advantage: normalised(statistics),
            // A mean over the tokens of a sequence that all have the value of the sequence.
            aggregation: Aggregation::SequenceMean,
            filter: Filter::None,
            least_answers: 2,
        }
    }

    pub(super) fn check_values(&self, faults: &mut ValueFaults) {
        faults.below_one("clip-low", self.clip_low);
        faults.not_negative("clip-high", self.clip_high);
    }
}

pub(super) fn check_knobs(name: &str, knobs: &Knobs<'_>, faults: &mut ValueFaults) {
    if knobs
        .aggregation
        .is_some_and(|aggregation| aggregation != Aggregation::SequenceMean)
    {
        let message = format!(
            "`{name}` weighs whole sequences, and any other mean would weigh long ones more: leave `aggregation` out, or use `grpo`"
        );
        faults.fault("aggregation", message);
    }
}
