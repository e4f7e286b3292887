//! RLOO: REINFORCE leave-one-out.
//!
//! ```text
//! J   = E[ 1/G sum_i A_i log p(o_i) ]
//! A_i = R_i - 1/(G - 1) sum_{j != i} R_j
//! ```
//!
//! arXiv 2402.14740, section 2.3. A whole answer is the action, so the sum over its tokens is not divided by its length: that is
//! `aggregation: {token-sum: {over: 1}}`. In the first update of a rollout all ratios are 1 and the gradient is the one above; in later
//! ones the ratio of each token is clipped as in PPO. The paper has its divergence term in the reward: `kl: {coefficient: 0.03, in:
//! reward}`. Groups without signal are not dropped, since the mean counts them; they have advantages of 0 and cost no update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdvantageRule, Clip, Knobs, Recipe};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::{Aggregation, TokenSum};
use crate::rl_train::filter::Filter;

/// Settings of `rloo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Rloo {
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

impl Default for Rloo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            ratio_cap: None,
            dual_clip: None,
        }
    }
}

impl Rloo {
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
            advantage: AdvantageRule::Answers(operators_verdict::Advantage::Rloo),
            aggregation: Aggregation::TokenSum(TokenSum { over: Some(1) }),
            filter: Filter::None,
            least_answers: 2,
        }
    }
}

pub(super) fn check_knobs(knobs: &Knobs<'_>, faults: &mut ValueFaults) {
    if knobs.statistics.is_some() {
        let message =
            "`rloo` divides by no standard deviation: leave `statistics` out, or use `grpo`";
        faults.fault("statistics", message.to_owned());
    }
}
