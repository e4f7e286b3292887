//! Learning rate over optimizer steps: linear warm-up, then constant, linear or cosine. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It stays at its peak.
    Constant,
    /// It falls by the same amount in every step and would reach its end one step after the last.
    Linear,
    /// It falls along half a cosine and would reach its end one step after the last.
    Cosine,
}

/// The learning rate of every step of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// The highest learning rate.
    pub peak: f64,
    /// Share of the peak that `linear` and `cosine` end at.
    pub end_share: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Optimizer steps of the stage.
    pub steps: u64,
}

impl LearningRate {
    /// Learning rate of one optimizer step.
    ///
    /// During warm-up it is `peak * (step + 1) / warmup_steps`, so the first step learns and the last one of the warm-up
    /// has the peak. After it, with `x = (step - warmup_steps) / (steps - warmup_steps)`, the share of the way from the
    /// end to the peak is `(1 + cos(pi * x)) / 2` for the cosine and `1 - x` for the linear schedule.
    ///
    /// # Units
    /// `step` counts from 0 to `steps - 1`.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / falling as f64).min(1.0);
        let left = match self.schedule {
            Schedule::Constant => return self.peak,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * progress).cos()),
        };
        if self.end_share == 0.0 {
            return self.peak * left;
        }
        self.peak * (left * (1.0 - self.end_share) + self.end_share)
    }
}

/// Collects faults of the keys of a schedule: `learning-rate` and `min-learning-rate`.
pub(crate) fn check(faults: &mut ValueFaults, schedule: Schedule, peak: f64, end_share: f64) {
    faults.positive("learning-rate", peak);
    faults.below_one("min-learning-rate", end_share);
    if end_share > 0.0 && schedule == Schedule::Constant {
        let message = "`min-learning-rate` has no effect with `schedule: constant`: leave it out, or set `cosine` or `linear`";
        faults.fault("min-learning-rate", message.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, peak: f64, warmup_steps: u64, steps: u64) -> LearningRate {
        LearningRate {
            schedule,
            peak,
            end_share: 0.0,
            warmup_steps,
            steps,
        }
    }

    #[test]
    fn warms_up_linearly_to_the_peak() {
        let constant = rates(Schedule::Constant, 0.4, 4, 10);
        let rates: Vec<f64> = (0..5).map(|step| constant.at(step)).collect();
        assert_eq!(rates, [0.1, 0.2, 0.1 * 3.0, 0.4, 0.4]);
    }

    #[test]
    fn cosine_starts_at_the_peak_is_half_in_the_middle_and_ends_low() {
        let cosine = rates(Schedule::Cosine, 2.0, 2, 12);
        assert_eq!(cosine.at(2), 2.0);
        assert!((cosine.at(7) - 1.0).abs() < 1e-12);
        assert!(cosine.at(11) > 0.0 && cosine.at(11) < 0.05);
        assert!((2..11).all(|step| cosine.at(step) > cosine.at(step + 1)));
    }

    #[test]
    fn linear_falls_evenly_and_never_below_its_end() {
        let linear = LearningRate {
            end_share: 0.2,
            ..rates(Schedule::Linear, 1.0, 1, 5)
        };
        let expected = [1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!(
                (linear.at(step as u64) - expected).abs() < 1e-12,
                "step {step}: {}",
                linear.at(step as u64)
            );
        }
    }

    /// `get_cosine_with_min_lr_schedule_with_warmup` of transformers 5.17 with 2 warm-up steps of 6, peak 2 and
    /// `min_lr_rate` 0.1; its step 0 is 0, so it is one step of the warm-up behind.
    #[test]
    fn the_cosine_with_an_end_is_that_of_transformers() {
        let cosine = LearningRate {
            end_share: 0.1,
            ..rates(Schedule::Cosine, 2.0, 2, 6)
        };
        let expected = [2.0, 1.736_396_103_067_892_7, 1.1, 0.463_603_896_932_107_3];
        for (step, expected) in (2..6).zip(expected) {
            assert!(
                (cosine.at(step) - expected).abs() < 1e-12,
                "{}",
                cosine.at(step)
            );
        }
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak() {
        assert_eq!(rates(Schedule::Cosine, 1.0, 0, 1).at(0), 1.0);
    }
}
