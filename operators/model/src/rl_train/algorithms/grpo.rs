//! GRPO: group relative policy optimization.
//!
//! ```text
//! J   = E[ 1/G sum_i 1/|o_i| sum_t min( r_it A_i, clip(r_it, 1 - clip-low, 1 + clip-high) A_i ) ]
//! A_i = (R_i - mean R) / std R
//! ```
//!
//! DeepSeekMath (arXiv 2402.03300), eq. 3 and section 4.1.2, without its divergence term, which `kl: {coefficient: 0.04}` adds; the
//! two bounds are those of DAPO. The paper does not say how wide the clip is, so both keys are required; 0.2 is usual.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Clip, Recipe, Statistics, normalised};
use crate::rl_train::aggregation::Aggregation;
use crate::rl_train::filter::{Bounds, Filter};

/// Settings of `grpo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Grpo {
    /// The probability ratio is clipped at 1 less this.
    pub clip_low: f64,
    /// The probability ratio is clipped at 1 plus this.
    pub clip_high: f64,
    /// The ratio is cut to at most this before anything else (MM-EUREKA has 3). Default: not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_cap: Option<f64>,
    /// For negative advantages, the loss of a token is at most this times the advantage (Ye et al. 2020; 3 is usual). Default:
    /// unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
}

impl Grpo {
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
            aggregation: Aggregation::SequenceMean,
            filter: Filter::Drop(Bounds::default()),
            least_answers: 2,
        }
    }
}
