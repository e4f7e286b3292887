//! CISPO: clipped importance sampling weight policy optimization.
//!
//! ```text
//! J   = E[ 1/(sum_i |o_i|) sum_i sum_t sg[clip(r_it, 1 - clip-low, 1 + clip-high)] A_i log p_it ]
//! A_i = (R_i - mean R) / std R
//! ```
//!
//! MiniMax-M1 (arXiv 2506.13585), eq. 4 and 5. The weight of a token is cut, but no token loses its gradient. The paper sets no lower
//! bound and does not say how wide the upper one is, so `clip-high` is required; values up to 5 are usual. It also takes DAPO's dynamic
//! sampling, which is `filter: {resample: ...}`.

use engine_core::policy::Surrogate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Recipe, Statistics, normalised};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::Aggregation;
use crate::rl_train::filter::{Bounds, Filter};

/// Settings of `cispo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cispo {
    /// The weight is cut at 1 less this; 1: it has no lower bound. Default 1.
    #[serde(default = "unbounded")]
    pub clip_low: f64,
    /// The weight is cut at 1 plus this.
    pub clip_high: f64,
}

fn unbounded() -> f64 {
    1.0
}

impl Cispo {
    pub(super) fn recipe(&self, statistics: Statistics) -> Recipe {
        Recipe {
            surrogate: Surrogate::CutWeight {
                clip_low: self.clip_low,
                clip_high: self.clip_high,
            },
            advantage: normalised(statistics),
            aggregation: Aggregation::TokenMean,
            filter: Filter::Drop(Bounds::default()),
            least_answers: 2,
        }
    }

    pub(super) fn check_values(&self, faults: &mut ValueFaults) {
        faults.not_negative("clip-high", self.clip_high);
        if !(0.0..=1.0).contains(&self.clip_low) {
            let message = format!(
                "`clip-low` is {} and must be between 0 and 1, where 1 is no lower bound",
                self.clip_low
            );
            faults.fault("clip-low", message);
        }
    }
}
