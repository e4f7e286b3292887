//! The verifiers as a pipeline names them, and what they say of one completion.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::extract::{Extraction, extract};
use crate::format::FormatRule;
use crate::math;

/// How completions are compared with gold answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VerifyConfig {
    /// The same text, apart from white space.
    Exact(ExactOptions),
    /// The same number (exact rational arithmetic, so `0.5`, `1/2` and `50%` are equal), or the same text apart from
    /// case, spacing and LaTeX dress.
    Math(MathOptions),
}

/// Options of `exact`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExactOptions {
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

/// Options of `math`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MathOptions {
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

/// What a verifier says of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The answer equals the gold answer.
    Correct,
    /// The answer differs from the gold answer.
    Wrong,
    /// The completion has no answer. Counts as not correct.
    Unparsed,
    /// The answer is beyond the cost limits. Not a judgement: masked.
    TimedOut,
    /// The verifier could not judge, for example because the gold answer cannot be parsed. Masked.
    Failed,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 5] = [
        Self::Correct,
        Self::Wrong,
        Self::Unparsed,
        Self::TimedOut,
        Self::Failed,
    ];

    /// The word in the `verdict` column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Correct => "correct",
            Self::Wrong => "wrong",
            Self::Unparsed => "unparsed",
            Self::TimedOut => "timed-out",
            Self::Failed => "failed",
        }
    }

    /// Whether it counts in pass rates and rewards. `timed-out` and `failed` do not.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Correct | Self::Wrong | Self::Unparsed)
    }
}

/// The judgement of one completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The judgement.
    pub outcome: Outcome,
    /// The answer found in the completion.
    pub extracted: Option<String>,
    /// Whether the completion has the required form.
    pub format_ok: bool,
}

/// Why a gold answer cannot be compared with anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoldError {
    /// Nothing but white space and delimiters.
    #[error("the answer is empty")]
    Empty,
    /// Longer than any answer is looked at.
    #[error("the answer has {0} bytes, more than the {limit} that are looked at", limit = crate::extract::MAX_ANSWER_BYTES)]
    TooLong(usize),
    /// A number with too many digits or too large an exponent.
    #[error("the answer is a number beyond the limit of {limit} digits", limit = crate::number::MAX_DIGITS)]
    TooLarge,
    /// Braces that do not match.
    #[error("the braces of the answer do not match")]
    Unbalanced,
    /// A fraction over zero.
    #[error("the answer divides by zero")]
    ZeroDenominator,
}

impl VerifyConfig {
    /// Name and version, for the `verifier` column.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exact(_) => "exact 1",
            Self::Math(_) => "math 1",
        }
    }

    /// The form that completions must have.
    #[must_use]
    pub fn format(&self) -> FormatRule {
        match self {
            Self::Exact(options) => options.format,
            Self::Math(options) => options.format,
        }
    }

    /// Judges one completion. A gold answer that [`VerifyConfig::check_gold`] refuses gives [`Outcome::Failed`].
    #[must_use]
    pub fn verdict(&self, gold: &str, completion: &str) -> Verdict {
        let format_ok = self.format().holds(completion);
        if self.check_gold(gold).is_err() {
            return Verdict {
                outcome: Outcome::Failed,
                extracted: None,
                format_ok,
            };
        }
        let (outcome, extracted) = match extract(completion) {
            Extraction::None => (Outcome::Unparsed, None),
            Extraction::TooLong => (Outcome::TimedOut, None),
            Extraction::Answer(answer) => (self.compare(gold, answer), Some(answer.to_owned())),
        };
        Verdict {
            outcome,
            extracted,
            format_ok,
        }
    }

    /// Whether a gold answer can be compared with anything.
    ///
    /// # Errors
    /// When it is empty, too large or malformed.
    pub fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        if gold.trim().is_empty() {
            return Err(GoldError::Empty);
        }
        if gold.len() > crate::extract::MAX_ANSWER_BYTES {
            return Err(GoldError::TooLong(gold.len()));
        }
        match self {
            Self::Exact(_) => Ok(()),
            Self::Math(_) => math::check(gold),
        }
    }

    fn compare(&self, gold: &str, answer: &str) -> Outcome {
        match self {
            Self::Exact(_) if gold.split_whitespace().eq(answer.split_whitespace()) => {
                Outcome::Correct
            }
            Self::Exact(_) => Outcome::Wrong,
            Self::Math(_) => math::compare(gold, answer),
        }
    }
}

#[cfg(test)]
mod tests;
