//! Which groups are learnt from: groups whose answers are all right or all wrong say nothing about what to do better.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;

/// What happens to groups by the accuracy of their answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Filter {
    /// All groups are learnt from.
    None,
    /// Groups out of bounds are dropped; a step learns from those that are left, however few.
    Drop(Bounds),
    /// Groups out of bounds are dropped, the others wait in a buffer. A step that finds enough of them there learns from the
    /// oldest ones, another step makes no update (MM-EUREKA).
    Buffer(Buffer),
    /// Groups out of bounds are dropped, and other prompts are sampled until enough are there (DAPO).
    Resample(Resample),
}

/// Accuracies of the groups that are learnt from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Bounds {
    /// Smallest share of right answers, itself included. Default: at least one is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_accuracy: Option<f64>,
    /// Largest share of right answers, itself included. Default: at least one is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_accuracy: Option<f64>,
}

/// Settings of `buffer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Buffer {
    /// As in `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_accuracy: Option<f64>,
    /// As in `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_accuracy: Option<f64>,
    /// Groups of an update. Default: `prompts-per-step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_groups: Option<u32>,
    /// Most steps with updates that may lie between sampling a group and learning from it.
    pub max_staleness: u32,
    /// What happens to an older group.
    pub stale: Stale,
}

/// What happens to groups that are too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stale {
    /// They leave the buffer unused.
    Drop,
    /// They are used with log-probabilities of the model as it is then, as if it had sampled them.
    Recompute,
}

/// Settings of `resample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Resample {
    /// As in `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_accuracy: Option<f64>,
    /// As in `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_accuracy: Option<f64>,
    /// Most rounds of sampling in a step.
    pub rounds: u32,
    /// Prompts of a round. Default: `prompts-per-step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_per_round: Option<u32>,
    /// What happens when the rounds are over and `prompts-per-step` groups are not there.
    pub fallback: Fallback,
    /// What happens to more groups than `prompts-per-step`. Default `drop`.
    #[serde(default, skip_serializing_if = "is_dropped")]
    pub surplus: Surplus,
}

/// What a step does with too few groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Learns from those that are there, with a warning.
    Train,
    /// Ends the stage with an error.
    Fail,
}

/// What a step does with too many groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Surplus {
    /// Leaves the last ones out.
    #[default]
    Drop,
    /// Learns from them too.
    Train,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_dropped(surplus: &Surplus) -> bool {
    *surplus == Surplus::Drop
}

/// What the filter says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// It is learnt from.
    Kept,
    /// Too many answers are right.
    Easy,
    /// Too few answers are right.
    Hard,
    /// Too few answers have a verdict.
    TooFew,
}

/// Answers of a group with a verdict, and the right ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) usable: usize,
    pub(super) right: usize,
}

impl Counts {
    pub(super) fn accuracy(self) -> f64 {
        self.right as f64 / self.usable as f64
    }
}

impl Resample {
    pub(super) fn within(rounds: u32, fallback: Fallback) -> Self {
        Self {
            min_accuracy: None,
            max_accuracy: None,
            rounds,
            prompts_per_round: None,
            fallback,
            surplus: Surplus::Drop,
        }
    }
}

impl Bounds {
    /// Too hard is asked first: with a single answer, a wrong one is hard and not easy.
    fn signal(self, counts: Counts) -> Signal {
        let hard = match self.min_accuracy {
            None => counts.right == 0,
            Some(bound) => counts.accuracy() < bound,
        };
        let easy = match self.max_accuracy {
            None => counts.right == counts.usable,
            Some(bound) => counts.accuracy() > bound,
        };
        if hard {
            Signal::Hard
        } else if easy {
            Signal::Easy
        } else {
            Signal::Kept
        }
    }
}

impl Filter {
    fn bounds(&self) -> Option<Bounds> {
        let (min_accuracy, max_accuracy) = match self {
            Self::None => return None,
            Self::Drop(bounds) => return Some(*bounds),
            Self::Buffer(buffer) => (buffer.min_accuracy, buffer.max_accuracy),
            Self::Resample(resample) => (resample.min_accuracy, resample.max_accuracy),
        };
        Some(Bounds {
            min_accuracy,
            max_accuracy,
        })
    }

    /// What it says of a group, decided on counts. `least` answers need a verdict.
    pub(super) fn signal(&self, counts: Counts, least: usize) -> Signal {
        if counts.usable < least {
            return Signal::TooFew;
        }
        self.bounds()
            .map_or(Signal::Kept, |bounds| bounds.signal(counts))
    }

    /// Prompts of a round of sampling.
    pub(super) fn prompts_per_round(&self, prompts_per_step: u32) -> u32 {
        match self {
            Self::Resample(resample) => resample.prompts_per_round.unwrap_or(prompts_per_step),
            _ => prompts_per_step,
        }
    }

    /// Collects values that cannot be used. `under` is the word of the filter in a pipeline.
    pub(super) fn check(&self, prompts_per_step: u32) -> Result<(), Vec<engine_core::Fault>> {
        let mut faults = ValueFaults::default();
        let word = match self {
            Self::None => return Ok(()),
            Self::Drop(_) => "drop",
            Self::Buffer(_) => "buffer",
            Self::Resample(_) => "resample",
        };
        let Bounds {
            min_accuracy,
            max_accuracy,
        } = self.bounds().unwrap_or_default();
        for (key, bound) in [
            ("min-accuracy", min_accuracy),
            ("max-accuracy", max_accuracy),
        ] {
            if let Some(bound) = bound
                && !(0.0..=1.0).contains(&bound)
            {
                let message = format!("`{key}` is {bound} and must be between 0 and 1");
                faults.fault(key, message);
            }
        }
        if let (Some(min), Some(max)) = (min_accuracy, max_accuracy)
            && min > max
        {
            let message = format!(
                "no accuracy is at least `min-accuracy: {min}` and at most `max-accuracy: {max}`: exchange them"
            );
            faults.fault("min-accuracy", message);
        }
        match self {
            Self::Buffer(buffer) => {
                if let Some(groups) = buffer.train_groups {
                    faults.at_least("train-groups", u64::from(groups), 1);
                }
            }
            Self::Resample(resample) => {
                faults.at_least("rounds", u64::from(resample.rounds), 1);
                if let Some(prompts) = resample.prompts_per_round {
                    faults.at_least("prompts-per-round", u64::from(prompts), 1);
                    let most = u64::from(prompts) * u64::from(resample.rounds);
                    if most < u64::from(prompts_per_step) {
                        let message = format!(
                            "{} rounds of {prompts} prompts can never give the {prompts_per_step} groups of `prompts-per-step`: raise `rounds` or `prompts-per-round`",
                            resample.rounds
                        );
                        faults.fault("rounds", message);
                    }
                }
            }
            _ => {}
        }
        faults.or(&["filter", word], ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(right: usize, usable: usize) -> Counts {
        Counts { usable, right }
    }

    #[test]
    fn without_bounds_a_group_needs_a_right_and_a_wrong_answer() {
        let filter = Filter::Drop(Bounds::default());
        assert_eq!(filter.signal(counts(1, 8), 2), Signal::Kept);
        assert_eq!(filter.signal(counts(0, 8), 2), Signal::Hard);
        assert_eq!(filter.signal(counts(8, 8), 2), Signal::Easy);
        assert_eq!(filter.signal(counts(1, 1), 2), Signal::TooFew);
        assert_eq!(filter.signal(counts(0, 0), 2), Signal::TooFew);
    }

    #[test]
    fn bounds_are_inclusive_and_exact() {
        let filter = Filter::Drop(Bounds {
            min_accuracy: Some(0.1),
            max_accuracy: Some(0.7),
        });
        for (right, expected) in [
            (0, Signal::Hard),
            (1, Signal::Kept),
            (7, Signal::Kept),
            (8, Signal::Easy),
        ] {
            assert_eq!(filter.signal(counts(right, 10), 2), expected, "{right}");
        }
        let all = Filter::Drop(Bounds {
            min_accuracy: Some(0.0),
            max_accuracy: Some(1.0),
        });
        assert_eq!(all.signal(counts(0, 4), 2), Signal::Kept);
        assert_eq!(all.signal(counts(4, 4), 2), Signal::Kept);
    }

    #[test]
    fn no_filter_keeps_what_can_be_compared() {
        assert_eq!(Filter::None.signal(counts(0, 4), 2), Signal::Kept);
        assert_eq!(Filter::None.signal(counts(1, 1), 2), Signal::TooFew);
        assert_eq!(Filter::None.signal(counts(1, 1), 1), Signal::Kept);
    }

    #[test]
    fn bounds_and_rounds_that_cannot_be_met_are_refused() {
        let filter = Filter::Resample(Resample {
            min_accuracy: Some(0.9),
            max_accuracy: Some(0.1),
            prompts_per_round: Some(2),
            ..Resample::within(3, Fallback::Fail)
        });
        let faults = filter.check(8).unwrap_err();
        let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
        assert_eq!(
            paths,
            ["filter/resample/min-accuracy", "filter/resample/rounds"]
        );
        assert!(filter.check(6).unwrap_err().len() == 1);
        let wide = Filter::Drop(Bounds {
            min_accuracy: Some(-0.1),
            max_accuracy: Some(1.1),
        });
        assert_eq!(wide.check(1).unwrap_err().len(), 2);
    }
}
