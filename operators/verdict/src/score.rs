//! The reward of a verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::outcome::{Outcome, Verdict};

/// Weights of the parts of a reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScoreConfig {
    /// Weight of a correct answer.
    pub accuracy: f64,
    /// Weight of the required form.
    pub format: f64,
}

/// Why weights are no weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// Not a number, or infinite.
    #[error("weight `{name}` is {value}, which is not a finite number")]
    NotFinite {
        /// The key.
        name: &'static str,
        /// The value.
        value: f64,
    },
}

/// A reward and its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reward {
    /// Weighted sum of the parts.
    pub total: f64,
    /// 1 for a correct answer, else 0.
    pub accuracy: f64,
    /// 1 for the required form, else 0.
    pub format: f64,
}

impl ScoreConfig {
    /// Checks the weights.
    ///
    /// # Errors
    /// When one is not finite.
    pub fn check(&self) -> Result<(), ScoreError> {
        for (name, value) in [("accuracy", self.accuracy), ("format", self.format)] {
            if !value.is_finite() {
                return Err(ScoreError::NotFinite { name, value });
            }
        }
        Ok(())
    }

    /// The reward of a verdict. None for verdicts that are no judgement: such rollouts are masked, never worth 0.
    #[must_use]
    pub fn reward(&self, verdict: &Verdict) -> Option<Reward> {
        if !verdict.outcome.is_usable() {
            return None;
        }
        let accuracy = f64::from(u8::from(verdict.outcome == Outcome::Correct));
        let format = f64::from(u8::from(verdict.format_ok));
        Some(Reward {
            total: self.accuracy * accuracy + self.format * format,
            accuracy,
            format,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_what_is_no_judgement_has_no_reward() {
        let score = ScoreConfig {
            accuracy: 1.0,
            format: 0.5,
        };
        let reward = |outcome, format_ok| {
            score
                .reward(&Verdict {
                    outcome,
                    extracted: None,
                    format_ok,
                })
                .map(|reward| reward.total)
        };
        assert_eq!(reward(Outcome::Correct, true), Some(1.5));
        assert_eq!(reward(Outcome::Correct, false), Some(1.0));
        assert_eq!(reward(Outcome::Wrong, true), Some(0.5));
        assert_eq!(reward(Outcome::Unparsed, false), Some(0.0));
        assert_eq!(reward(Outcome::TimedOut, true), None);
        assert_eq!(reward(Outcome::Failed, true), None);
        assert!(
            ScoreConfig {
                accuracy: f64::NAN,
                format: 0.0
            }
            .check()
            .is_err()
        );
    }
}
