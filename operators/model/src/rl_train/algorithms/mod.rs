//! The algorithms, one file each: what it is, its keys with the defaults of its paper, and what it is made of.
//!
//! Notation of the formulas: `G` answers `o_i` to a prompt with rewards `R_i`, token ratios `r_it` of the current over the
//! sampling policy, advantages `A`. All formulas are maximised.

mod cispo;
mod dapo;
mod dr_grpo;
mod grpo;
mod gspo;
mod reinforce_plus_plus;
mod rloo;

use engine_core::policy::{RatioLevel, Surrogate};
use operators_verdict::Advantage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use cispo::Cispo;
pub use dapo::Dapo;
pub use dr_grpo::DrGrpo;
pub use grpo::Grpo;
pub use gspo::Gspo;
pub use reinforce_plus_plus::ReinforcePlusPlus;
pub use rloo::Rloo;

use super::aggregation::Aggregation;
use super::filter::Filter;
use super::kl::Kl;
use crate::faults::ValueFaults;

/// How rewards become gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Algorithm {
    /// Advantages by group mean and standard deviation, clipped ratios, mean over sequences of the mean over tokens, no
    /// divergence term. Groups whose answers are all right or all wrong are dropped.
    Grpo(Grpo),
    /// GRPO with the mean over all tokens, a higher upper clip, and sampling that goes on until enough groups teach.
    Dapo(Dapo),
    /// GRPO without its two biases: no division by the standard deviation, none by the length.
    DrGrpo(DrGrpo),
    /// Ratios of whole sequences.
    Gspo(Gspo),
    /// GSPO whose gradient is that of each token's own probability.
    GspoToken(Gspo),
    /// The other answers to the prompt are the baseline.
    Rloo(Rloo),
    /// Advantages normalised over the batch, with no group needed.
    ReinforcePlusPlus(ReinforcePlusPlus),
    /// The clipped ratio is a weight, so that no token loses its gradient.
    Cispo(Cispo),
}

/// What an algorithm is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recipe {
    pub(super) surrogate: Surrogate,
    pub(super) advantage: AdvantageRule,
    /// Where the pipeline names none.
    pub(super) aggregation: Aggregation,
    /// Where the pipeline names none.
    pub(super) filter: Filter,
    /// Fewest answers with a verdict that a group can be learnt from with.
    pub(super) least_answers: usize,
}

/// How advantages come from rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdvantageRule {
    /// Each answer has one.
    Answers(Advantage),
    /// Each token has one, normalised with mean and standard deviation over all tokens of the rollouts that are learnt from.
    Tokens {
        /// Whether the mean of the group is taken off first.
        group_baseline: bool,
    },
}

/// Which rewards an advantage is divided by the standard deviation of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Statistics {
    /// Those of the group.
    Group,
    /// Those of all groups that are learnt from ("Tricks or Traps", arXiv 2508.08221, section 4.1).
    Batch,
}

/// Keys beside the algorithm that not every one of them can have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knobs<'a> {
    pub(super) aggregation: Option<Aggregation>,
    pub(super) statistics: Option<Statistics>,
    pub(super) kl: Option<&'a Kl>,
}

impl Algorithm {
    /// The word in a pipeline.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Grpo(_) => "grpo",
            Self::Dapo(_) => "dapo",
            Self::DrGrpo(_) => "dr-grpo",
            Self::Gspo(_) => "gspo",
            Self::GspoToken(_) => "gspo-token",
            Self::Rloo(_) => "rloo",
            Self::ReinforcePlusPlus(_) => "reinforce-plus-plus",
            Self::Cispo(_) => "cispo",
        }
    }

    /// What it is made of. `statistics` is the key of that name.
    pub(super) fn recipe(&self, statistics: Option<Statistics>) -> Recipe {
        let statistics = statistics.unwrap_or(Statistics::Group);
        match self {
            Self::Grpo(grpo) => grpo.recipe(statistics),
            Self::Dapo(dapo) => dapo.recipe(statistics),
            Self::DrGrpo(dr_grpo) => dr_grpo.recipe(),
            Self::Gspo(gspo) => gspo.recipe(RatioLevel::Sequence, statistics),
            Self::GspoToken(gspo) => gspo.recipe(RatioLevel::SequenceToken, statistics),
            Self::Rloo(rloo) => rloo.recipe(),
            Self::ReinforcePlusPlus(reinforce) => reinforce.recipe(),
            Self::Cispo(cispo) => cispo.recipe(statistics),
        }
    }

    /// Collects values of its own keys that are out of range.
    pub(super) fn check_values(&self, faults: &mut ValueFaults) {
        match self {
            Self::Grpo(grpo) => grpo.clip().check(faults),
            Self::Dapo(dapo) => dapo.clip().check(faults),
            Self::DrGrpo(dr_grpo) => dr_grpo.clip().check(faults),
            Self::Gspo(gspo) | Self::GspoToken(gspo) => gspo.check_values(faults),
            Self::Rloo(rloo) => rloo.clip().check(faults),
            Self::ReinforcePlusPlus(reinforce) => reinforce.clip().check(faults),
            Self::Cispo(cispo) => cispo.check_values(faults),
        }
    }

    /// Collects keys beside the algorithm that do not go with it.
    pub(super) fn check_knobs(&self, knobs: &Knobs<'_>, faults: &mut ValueFaults) {
        match self {
            Self::Grpo(_) | Self::Cispo(_) => {}
            Self::Dapo(_) => dapo::check_knobs(knobs, faults),
            Self::DrGrpo(_) => dr_grpo::check_knobs(knobs, faults),
            Self::Gspo(_) | Self::GspoToken(_) => gspo::check_knobs(self.name(), knobs, faults),
            Self::Rloo(_) => rloo::check_knobs(knobs, faults),
            Self::ReinforcePlusPlus(reinforce) => reinforce.check_knobs(knobs, faults),
        }
    }
}

/// The advantage of group statistics, or with the standard deviation of the batch.
fn normalised(statistics: Statistics) -> AdvantageRule {
    AdvantageRule::Answers(match statistics {
        Statistics::Group => Advantage::Grpo,
        Statistics::Batch => Advantage::BatchStd,
    })
}

/// Settings of the clipped surrogate of tokens.
#[derive(Clone, Copy, Debug)]
struct Clip {
    low: f64,
    high: f64,
    ratio_cap: Option<f64>,
    dual_clip: Option<f64>,
}

impl Clip {
    fn surrogate(self) -> Surrogate {
        Surrogate::Clipped {
            clip_low: self.low,
            clip_high: self.high,
            level: RatioLevel::Token,
            ratio_cap: self.ratio_cap,
            dual_clip: self.dual_clip,
        }
    }

    fn check(self, faults: &mut ValueFaults) {
        faults.below_one("clip-low", self.low);
        faults.not_negative("clip-high", self.high);
        if let Some(cap) = self.ratio_cap
            && !(cap.is_finite() && cap >= 1.0 + self.high)
        {
            let message = format!(
                "`ratio-cap` is {cap}, below the upper clip at {}, which would never be reached; set it to {} or more, for example 3, or leave it out",
                1.0 + self.high,
                1.0 + self.high
            );
            faults.fault("ratio-cap", message);
        }
        let Some(dual) = self.dual_clip else { return };
        if !(dual.is_finite() && dual > 1.0) {
            let message = format!("`dual-clip` is {dual} and must be above 1, for example 3");
            faults.fault("dual-clip", message);
        } else if let Some(cap) = self.ratio_cap
            && dual >= cap
        {
            let message = format!(
                "`dual-clip: {dual}` has no effect with `ratio-cap: {cap}`, which no ratio is above; lower it, or leave one of them out"
            );
            faults.fault("dual-clip", message);
        }
    }
}
