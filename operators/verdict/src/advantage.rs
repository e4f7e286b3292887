//! Advantages of rewards within a group of answers to one prompt, and within a batch of groups. Pure functions.
//!
//! One definition for the columns of `score` and for what `rl-train` learns from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Added to the standard deviation, so that nearly equal rewards do not give huge advantages.
pub const STD_EPSILON: f64 = 1e-6;

/// What the usable answers to one prompt say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSignal {
    /// Some answers are right and some are not: the group teaches.
    Mixed,
    /// Every answer is right.
    AllRight,
    /// No answer is right.
    AllWrong,
    /// Fewer than two answers could be judged.
    TooFew,
}

/// Signal of a group, by the accuracy of each of its usable answers: 1 right, 0 wrong.
#[must_use]
pub fn group_signal(accuracies: &[f64]) -> GroupSignal {
    let right = accuracies
        .iter()
        .filter(|accuracy| **accuracy > 0.0)
        .count();
    match accuracies.len() {
        0 | 1 => GroupSignal::TooFew,
        _ if right == 0 => GroupSignal::AllWrong,
        answers if right == answers => GroupSignal::AllRight,
        _ => GroupSignal::Mixed,
    }
}

/// `(reward - mean) / (std + STD_EPSILON)` within a group: [`Advantage::Grpo`].
#[must_use]
pub fn group_advantages(rewards: &[f64]) -> Vec<f64> {
    Advantage::Grpo.of_group(rewards)
}

/// How much better an answer is than others. `mean` and `std` are those of the group, with Bessel's correction in `std`;
/// a group of equal rewards has exactly 0 wherever the group's mean is taken off.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Advantage {
    /// `(r - mean) / (std + 1e-6)`. DeepSeekMath (arXiv 2402.03300), section 4.1.2; the correction is that of `torch.std`.
    Grpo,
    /// `r - mean`, without bias by difficulty. Dr. GRPO (arXiv 2503.20783), section 3.2.
    DrGrpo,
    /// `r` less the mean of the other answers of the group. RLOO (arXiv 2402.14740), section 2.3.
    Rloo,
    /// `(r - mean of the batch) / (std of the batch + 1e-6)`. REINFORCE++ (arXiv 2501.03262), without a baseline by prompt.
    ReinforcePlusPlus,
    /// `r - mean`, then `(a - mean of the batch) / (std of the batch + 1e-6)` of these. REINFORCE++ (arXiv 2501.03262) with
    /// its baseline for several answers to a prompt.
    ReinforcePlusPlusBaseline,
    /// `(r - mean) / (std of the rewards of the batch + 1e-6)`. "Tricks or Traps" (arXiv 2508.08221), section 4.1, also known as
    /// Lite PPO.
    BatchStd,
    /// `(r - mean) / (mean + 1e-6)`, which weighs a prompt by one over its pass rate. MaxRL (arXiv 2602.02710). For rewards of 0 and
    /// more; 0 where the mean is not above 0.
    MaxRl,
}

/// What an advantage is normalised with, over all groups of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalised {
    /// With nothing: every group stands for itself.
    Not,
    /// With mean and standard deviation of these values.
    MeanAndStd,
    /// With the standard deviation of the rewards.
    RewardStd,
}

impl Advantage {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Grpo,
        Self::DrGrpo,
        Self::Rloo,
        Self::ReinforcePlusPlus,
        Self::ReinforcePlusPlusBaseline,
        Self::BatchStd,
        Self::MaxRl,
    ];

    /// The word in a pipeline, with `_` for `-`.
    #[must_use]
    pub fn column(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::DrGrpo => "dr_grpo",
            Self::Rloo => "rloo",
            Self::ReinforcePlusPlus => "reinforce_plus_plus",
            Self::ReinforcePlusPlusBaseline => "reinforce_plus_plus_baseline",
            Self::BatchStd => "batch_std",
            Self::MaxRl => "max_rl",
        }
    }

    /// Advantages of all answers of a batch, group by group.
    #[must_use]
    pub fn of_groups(self, groups: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut values: Vec<Vec<f64>> = groups.iter().map(|group| self.of_group(group)).collect();
        let mut spread = Spread::default();
        match self.normalised() {
            Normalised::Not => return values,
            Normalised::MeanAndStd => values.iter().flatten().for_each(|value| spread.add(*value)),
            Normalised::RewardStd => groups.iter().flatten().for_each(|value| spread.add(*value)),
        }
        for value in values.iter_mut().flatten() {
            *value = self.in_batch(*value, &spread);
        }
        values
    }

    /// What a batch has to know for [`Advantage::in_batch`].
    #[must_use]
    pub fn normalised(self) -> Normalised {
        match self {
            Self::Grpo | Self::DrGrpo | Self::Rloo | Self::MaxRl => Normalised::Not,
            Self::ReinforcePlusPlus | Self::ReinforcePlusPlusBaseline => Normalised::MeanAndStd,
            Self::BatchStd => Normalised::RewardStd,
        }
    }

    /// The first half, over one group. It is the whole where nothing is normalised over the batch.
    #[must_use]
    pub fn of_group(self, rewards: &[f64]) -> Vec<f64> {
        if self == Self::ReinforcePlusPlus {
            return rewards.to_vec();
        }
        // Compared, not computed: the mean of equal numbers can differ from them in the last bit.
        if rewards.windows(2).all(|pair| pair[0] == pair[1]) {
            return vec![0.0; rewards.len()];
        }
        let count = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / count;
        let divisor = match self {
            Self::Grpo => std(rewards, mean) + STD_EPSILON,
            // The mean of the others is `(count * mean - r) / (count - 1)`.
            Self::Rloo => (count - 1.0) / count,
            Self::MaxRl if mean > 0.0 => mean + STD_EPSILON,
            Self::MaxRl => f64::INFINITY,
            _ => 1.0,
        };
        rewards
            .iter()
            .map(|reward| (reward - mean) / divisor)
            .collect()
    }

    /// The second half: a value of [`Advantage::of_group`] among those of the whole batch. `spread` is over what
    /// [`Advantage::normalised`] says. A batch of equal values gives exactly 0 where its mean is taken off.
    #[must_use]
    pub fn in_batch(self, value: f64, spread: &Spread) -> f64 {
        match self.normalised() {
            Normalised::Not => value,
            Normalised::MeanAndStd if spread.is_flat() => 0.0,
            Normalised::MeanAndStd => (value - spread.mean()) / (spread.std() + STD_EPSILON),
            Normalised::RewardStd => value / (spread.std() + STD_EPSILON),
        }
    }
}

/// Standard deviation with Bessel's correction, of at least two values.
fn std(values: &[f64], mean: f64) -> f64 {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// Mean and standard deviation of values that come one by one (Welford).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    count: u64,
    mean: f64,
    squares: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    /// Takes one more value.
    pub fn add(&mut self, value: f64) {
        if self.count == 0 {
            (self.lowest, self.highest) = (value, value);
        }
        self.lowest = self.lowest.min(value);
        self.highest = self.highest.max(value);
        self.count += 1;
        let difference = value - self.mean;
        self.mean += difference / self.count as f64;
        self.squares += difference * (value - self.mean);
    }

    /// Mean of the values; 0 without any.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Standard deviation with Bessel's correction; 0 for fewer than two values.
    #[must_use]
    pub fn std(&self) -> f64 {
        if self.count < 2 || self.is_flat() {
            return 0.0;
        }
        (self.squares / (self.count - 1) as f64).sqrt()
    }

    /// Whether all values are equal.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        self.lowest == self.highest
    }
}

/// What a group's rewards are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupStatistics {
    /// Mean reward.
    pub mean: f64,
    /// Standard deviation with Bessel's correction; 0 for a single reward or equal ones.
    pub std: f64,
    /// Smallest reward.
    pub lowest: f64,
    /// Largest reward.
    pub highest: f64,
}

impl GroupStatistics {
    /// Of a group with at least one reward.
    #[must_use]
    pub fn of(rewards: &[f64]) -> Self {
        let lowest = rewards.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if lowest == highest {
            return Self {
                mean: lowest,
                std: 0.0,
                lowest,
                highest,
            };
        }
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        Self {
            mean,
            std: std(rewards, mean),
            lowest,
            highest,
        }
    }
}

/// Place of each reward in its group: 1 for the highest; equal rewards share the first of their places.
#[must_use]
pub fn group_ranks(rewards: &[f64]) -> Vec<u32> {
    let mut sorted = rewards.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    rewards
        .iter()
        .map(|reward| sorted.partition_point(|other| other > reward) as u32 + 1)
        .collect()
}

#[cfg(test)]
#[path = "advantage_tests.rs"]
mod tests;
