//! What a verifier says.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

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

/// A judgement and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The judgement.
    pub verdict: Verdict,
    /// Share of several verifiers (or votes) that say what all of them together say, of those that say anything.
    pub agreement: Option<f64>,
    /// Why, for people.
    pub reason: Cow<'static, str>,
}

/// Why a gold answer cannot be compared with anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoldError {
    /// There is none.
    #[error("it has none")]
    Missing,
    /// Nothing but white space and delimiters.
    #[error("the answer is empty")]
    Empty,
    /// Longer than any answer is looked at.
    #[error("the answer has {0} bytes, more than the {limit} that are looked at", limit = crate::extract::MAX_ANSWER_BYTES)]
    TooLong(usize),
    /// A number with too many digits or too large an exponent.
    #[error("the answer is a number beyond the limit of {limit} digits", limit = crate::math::MAX_DIGITS)]
    TooLarge,
    /// Braces that do not match.
    #[error("the braces of the answer do not match")]
    Unbalanced,
    /// A fraction over zero.
    #[error("the answer divides by zero")]
    ZeroDenominator,
    /// No letter, or one that is no choice.
    #[error("the answer names no choice among {0}")]
    NoChoice(String),
    /// No number, for a verifier of numbers.
    #[error("the answer is no number")]
    NoNumber,
    /// A pattern that cannot be used.
    #[error("the pattern cannot be used: {0}")]
    Pattern(String),
    /// None of several verifiers can use it.
    #[error("no verifier can use the answer; the first says: {0}")]
    NoVerifier(String),
}

/// A judgement and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The judgement.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The gold answer in the form that is compared.
    pub gold: String,
    /// The extracted answer in the form that is compared.
    pub answer: Option<String>,
    /// The judgements of several verifiers, by name.
    pub parts: Vec<(String, Outcome)>,
    /// Share of several verifiers that say what all of them together say, of those that say anything.
    pub agreement: Option<f64>,
}
