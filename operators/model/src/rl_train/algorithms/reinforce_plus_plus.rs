//! REINFORCE++, with and without a baseline by prompt.
//!
//! ```text
//! J    = E[ 1/|o| sum_t min( r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t ) ]
//! a_t  = R - beta sum_{s >= t} k_s               k: divergence of a token, with `kl: {in: reward}`
//!        with `group-baseline`: R - mean R
//! A_t  = (a_t - mean of the batch) / std of the batch
//! ```
//!
//! arXiv 2501.03262, section 3. Mean and standard deviation are over the tokens of all answers that are learnt from, as the index in
//! the paper's formula and the authors' code have it; the columns of `score` count each answer once. A group needs no second answer
//! without the baseline. Groups without signal are not dropped: against the batch, an answer that is right among right ones still counts.
//! With the baseline, the paper has its divergence in the loss: `kl: {coefficient: ..., estimator: k2}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdvantageRule, Clip, Knobs, Recipe};
use crate::faults::ValueFaults;
use crate::rl_train::aggregation::Aggregation;
use crate::rl_train::filter::Filter;
use crate::rl_train::kl::KlPlace;

/// Settings of `reinforce-plus-plus`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ReinforcePlusPlus {
    /// Whether the mean reward of the group is taken off first. Default false.
    pub group_baseline: bool,
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

impl Default for ReinforcePlusPlus {
    fn default() -> Self {
        Self {
            group_baseline: false,
            clip_low: 0.2,
            clip_high: 0.2,
            ratio_cap: None,
            dual_clip: None,
        }
    }
}

impl ReinforcePlusPlus {
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
            advantage: AdvantageRule::Tokens {
                group_baseline: self.group_baseline,
            },
            aggregation: Aggregation::SequenceMean,
            filter: Filter::None,
            least_answers: if self.group_baseline { 2 } else { 1 },
        }
    }

    pub(super) fn check_knobs(&self, knobs: &Knobs<'_>, faults: &mut ValueFaults) {
        if knobs.statistics.is_some() {
            let message = "`reinforce-plus-plus` always has the statistics of the batch: leave `statistics` out";
            faults.fault("statistics", message.to_owned());
        }
        let in_reward = knobs.kl.is_some_and(|kl| kl.place == KlPlace::Reward);
        if self.group_baseline && in_reward {
            let message = "`group-baseline` has its divergence in the loss: set `in: loss` and `estimator: k2`, or leave `group-baseline` out";
            faults.nested("kl", "in", message.to_owned());
        }
    }
}
