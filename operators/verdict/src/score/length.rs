//! The part `length`: what a right or wrong answer is worth, by the length of the completion.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Faults;

/// Worth of an answer between that of an empty completion and that of one with `max-tokens`. Longer ones are worth what
/// one with `max-tokens` is, unless `exceeded` says otherwise.
///
/// # Source
/// The cosine reward of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), section 4.2: right answers are worth
/// 2 falling to 1, wrong ones -10 rising to 0, exceeded ones -10. It stands in the place of `accuracy`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Length {
    /// Weight of the part.
    pub weight: f64,
    /// The way from the one end to the other.
    pub shape: LengthShape,
    /// Tokens of the longest completion.
    pub max_tokens: u32,
    /// Worth of a right answer.
    pub correct: Ends,
    /// Worth of a wrong or missing answer.
    pub wrong: Ends,
    /// Worth of a completion that was cut off or has `max-tokens` or more, right or wrong. Default: as by its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exceeded: Option<f64>,
}

/// The way from the worth of the shortest completion to that of the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LengthShape {
    /// Half a cosine: flat at both ends.
    Cosine,
    /// A straight line.
    Linear,
}

/// Worth at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ends {
    /// Worth at no tokens.
    pub shortest: f64,
    /// Worth at `max-tokens`.
    pub longest: f64,
}

impl Length {
    pub(super) fn check(&self, faults: &mut Faults) {
        for (key, value) in [
            ("length.weight", self.weight),
            ("length.correct.shortest", self.correct.shortest),
            ("length.correct.longest", self.correct.longest),
            ("length.wrong.shortest", self.wrong.shortest),
            ("length.wrong.longest", self.wrong.longest),
            ("length.exceeded", self.exceeded.unwrap_or(0.0)),
        ] {
            faults.finite(key, value);
        }
        if self.max_tokens == 0 {
            faults.range("length.max-tokens", "is 0");
        }
    }

    pub(super) fn value(&self, is_correct: bool, tokens: usize, truncated: bool) -> f64 {
        if let Some(exceeded) = self.exceeded
            && (truncated || tokens >= self.max_tokens as usize)
        {
            return exceeded;
        }
        let ends = if is_correct { self.correct } else { self.wrong };
        let progress = (tokens as f64 / f64::from(self.max_tokens)).min(1.0);
        let left = match self.shape {
            LengthShape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            LengthShape::Linear => 1.0 - progress,
        };
        ends.longest + (ends.shortest - ends.longest) * left
    }
}
