//! Learning rate over optimizer steps: linear warm-up, then constant or cosine. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It stays at its peak.
    Constant,
    /// It falls along half a cosine and would reach 0 one step after the last.
    Cosine,
}

/// Learning rate of one optimizer step.
///
/// During warm-up it is `peak * (step + 1) / warmup_steps`, so the first step learns and the last one of the warm-up
/// has the peak. After it the cosine gives `peak * (1 + cos(pi * (step - warmup_steps) / (steps - warmup_steps))) / 2`.
///
/// # Units
/// `step` counts from 0 to `steps - 1`.
#[must_use]
pub fn learning_rate(
    schedule: Schedule,
    peak: f64,
    warmup_steps: u64,
    steps: u64,
    step: u64,
) -> f64 {
    if step < warmup_steps {
        return peak * (step + 1) as f64 / warmup_steps as f64;
    }
    match schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => {
            let progress =
                (step - warmup_steps) as f64 / steps.saturating_sub(warmup_steps).max(1) as f64;
            peak * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()) / 2.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_linearly_to_the_peak() {
        let rates: Vec<f64> = (0..5)
            .map(|step| learning_rate(Schedule::Constant, 0.4, 4, 10, step))
            .collect();
        assert_eq!(rates, [0.1, 0.2, 0.1 * 3.0, 0.4, 0.4]);
    }

    #[test]
    fn cosine_starts_at_the_peak_is_half_in_the_middle_and_ends_low() {
        let rate = |step| learning_rate(Schedule::Cosine, 2.0, 2, 12, step);
        assert_eq!(rate(2), 2.0);
        assert!((rate(7) - 1.0).abs() < 1e-12);
        assert!(rate(11) > 0.0 && rate(11) < 0.05);
        assert!((2..11).all(|step| rate(step) > rate(step + 1)));
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak() {
        assert_eq!(learning_rate(Schedule::Cosine, 1.0, 0, 1, 0), 1.0);
    }
}
