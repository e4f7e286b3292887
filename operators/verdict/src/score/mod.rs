//! The reward of a rollout: named parts, each with a weight. One definition for `score` and `rl-train`.
//!
//! A part is a number before its weight; the reward is the weighted sum in the order of [`ScoreConfig::part_names`].

mod language;
mod length;
mod overlong;
mod repetition;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::outcome::{Outcome, Verdict};

pub use language::{Language, Script};
pub use length::{Ends, Length, LengthShape};
pub use overlong::Overlong;
pub use repetition::Repetition;

/// Parts of a reward and their weights. A part that is left out does not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScoreConfig {
    /// Weight of a correct answer: 1 for one, 0 for a wrong or missing one. Default 0.
    #[serde(default)]
    pub accuracy: f64,
    /// Weight of the required form: 1 where the completion has it, else 0. Default 0.
    #[serde(default)]
    pub format: f64,
    /// Soft punishment of overlong completions, from 0 to -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// Punishment of repeated n-grams of tokens, from 0 to -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition: Option<Repetition>,
    /// Worth of a right or wrong answer by its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Length>,
    /// Share of the letters that are of the expected scripts, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Parts of your own by name: SQL expressions over the columns of the verdict, its rollout and its prompt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sql: BTreeMap<String, SqlPart>,
}

/// A part of the reward that is computed by SQL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SqlPart {
    /// Weight of the part.
    pub weight: f64,
    /// An expression that gives a number or a truth value (1 or 0) for each row, for example `tokens < 512`. It can use
    /// the columns of verdicts, then those of rollouts and `tokens` (how many tokens a completion has), then those of
    /// prompts; of equal names the first counts.
    pub expression: String,
}

impl Default for ScoreConfig {
    /// A correct answer is worth 1, and nothing else counts.
    fn default() -> Self {
        Self {
            accuracy: 1.0,
            format: 0.0,
            overlong: None,
            repetition: None,
            length: None,
            language: None,
            sql: BTreeMap::new(),
        }
    }
}

/// Parts that are always there, and those that can be.
const PARTS: [&str; 6] = [
    "accuracy",
    "format",
    "overlong",
    "repetition",
    "length",
    "language",
];

/// Why a configuration gives no reward.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// Not a number, or infinite.
    #[error("`{key}` is {value}, which is not a finite number")]
    NotFinite {
        /// The key, with dots between levels.
        key: String,
        /// The value.
        value: f64,
    },
    /// A number that makes no sense there.
    #[error("`{key}` {message}")]
    OutOfRange {
        /// The key, with dots between levels.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing counts.
    #[error("every weight of the reward is 0, so that no rollout is better than another")]
    NothingCounts,
    /// A name that is no name of a column, or one that a part of ours has.
    #[error("`{name}` cannot be the name of a part: {message}")]
    PartName {
        /// The name.
        name: String,
        /// Why not.
        message: &'static str,
    },
    /// An SQL part gave no number for a rollout.
    #[error("part `{part}` of the reward is {}, which is no finite number", value.map_or("null".to_owned(), |value| value.to_string()))]
    NoNumber {
        /// Name of the part.
        part: String,
        /// What it gave; None for null.
        value: Option<f64>,
    },
}

impl ScoreError {
    /// The key that the error is about, as a path below the configuration; empty for the whole of it.
    #[must_use]
    pub fn path(&self) -> Vec<String> {
        match self {
            Self::NotFinite { key, .. } | Self::OutOfRange { key, .. } => {
                key.split('.').map(str::to_owned).collect()
            }
            Self::PartName { name: part, .. } | Self::NoNumber { part, .. } => {
                vec!["sql".to_owned(), part.clone()]
            }
            Self::NothingCounts => Vec::new(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotFinite { .. } => "write a number such as 0.5",
            Self::OutOfRange { .. } => "write another value",
            Self::NothingCounts => "give at least one part a weight, for example `accuracy: 1.0`",
            Self::PartName { .. } => {
                "use another name, of lower-case letters, digits and underscores"
            }
            Self::NoNumber { .. } => {
                "let the expression give a number for every row, for example with coalesce(..., 0)"
            }
        }
    }
}

/// What counts of a completion's text and tokens: the costly half of a reward.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Tokens, the end token included.
    pub tokens: usize,
    /// The part `repetition`, or 0 where it is not asked for.
    pub repetition: f64,
    /// The part `language`, or 0 where it is not asked for.
    pub language: f64,
}

/// Everything that a reward depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The judgement.
    pub verdict: &'a Verdict,
    /// What [`ScoreConfig::measure`] says.
    pub measured: Measured,
    /// Whether the completion was cut off at the limit of its length.
    pub truncated: bool,
    /// Values of the SQL parts, in the order of [`ScoreConfig::sql_parts`]; None for null.
    pub sql: &'a [Option<f64>],
}

/// A reward and its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Reward {
    /// Weighted sum of the parts.
    pub total: f64,
    /// The parts before their weights, in the order of [`ScoreConfig::part_names`].
    pub parts: Vec<f64>,
}

impl Reward {
    /// 1 for a correct answer, else 0.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.parts[0]
    }

    /// 1 for the required form, else 0.
    #[must_use]
    pub fn format(&self) -> f64 {
        self.parts[1]
    }
}

impl ScoreConfig {
    /// Checks names and numbers. SQL expressions are checked where the columns are known.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), ScoreError> {
        self.faults().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every fault of names and numbers.
    #[must_use]
    pub fn faults(&self) -> Vec<ScoreError> {
        let mut faults = Faults::default();
        faults.finite("accuracy", self.accuracy);
        faults.finite("format", self.format);
        if let Some(part) = &self.overlong {
            part.check(&mut faults);
        }
        if let Some(part) = &self.repetition {
            part.check(&mut faults);
        }
        if let Some(part) = &self.length {
            part.check(&mut faults);
        }
        if let Some(part) = &self.language {
            part.check(&mut faults);
        }
        for (name, part) in &self.sql {
            if let Some(message) = wrong_name(name) {
                let name = name.clone();
                faults.0.push(ScoreError::PartName { name, message });
            }
            faults.finite(&format!("sql.{name}.weight"), part.weight);
            if part.expression.trim().is_empty() {
                faults.range(&format!("sql.{name}.expression"), "is empty");
            }
        }
        if faults.0.is_empty() && self.weights().iter().all(|weight| *weight == 0.0) {
            faults.0.push(ScoreError::NothingCounts);
        }
        faults.0
    }

    /// Names of the parts, in the order of the columns `reward_<name>`.
    #[must_use]
    pub fn part_names(&self) -> Vec<String> {
        let there = [
            true,
            true,
            self.overlong.is_some(),
            self.repetition.is_some(),
            self.length.is_some(),
            self.language.is_some(),
        ];
        let ours = PARTS.iter().zip(there).filter(|(_, there)| *there);
        ours.map(|(name, _)| (*name).to_owned())
            .chain(self.sql.keys().cloned())
            .collect()
    }

    /// Weights of the parts, in the same order.
    #[must_use]
    pub fn weights(&self) -> Vec<f64> {
        let ours = [
            self.overlong.map(|part| part.weight),
            self.repetition.map(|part| part.weight),
            self.length.map(|part| part.weight),
            self.language.as_ref().map(|part| part.weight),
        ];
        [self.accuracy, self.format]
            .into_iter()
            .chain(ours.into_iter().flatten())
            .chain(self.sql.values().map(|part| part.weight))
            .collect()
    }

    /// Names and expressions of the SQL parts, sorted by name.
    #[must_use]
    pub fn sql_parts(&self) -> Vec<(String, String)> {
        self.sql
            .iter()
            .map(|(name, part)| (name.clone(), part.expression.clone()))
            .collect()
    }

    /// Whether a part of ours looks at tokens: at their number or at themselves.
    #[must_use]
    pub fn needs_tokens(&self) -> bool {
        self.overlong.is_some() || self.repetition.is_some() || self.length.is_some()
    }

    /// What counts of a completion.
    #[must_use]
    pub fn measure(&self, text: &str, token_ids: &[u32]) -> Measured {
        Measured {
            tokens: token_ids.len(),
            repetition: self.repetition.map_or(0.0, |part| part.value(token_ids)),
            language: self.language.as_ref().map_or(0.0, |part| part.value(text)),
        }
    }

    /// The reward of a rollout. None for verdicts that are no judgement: such rollouts are masked, never worth 0.
    ///
    /// # Errors
    /// When an SQL part is null or not finite.
    ///
    /// # Panics
    /// When the facts have not one value for each SQL part.
    pub fn reward(&self, facts: &Facts<'_>) -> Result<Option<Reward>, ScoreError> {
        let mut parts = Vec::new();
        let total = self.reward_into(facts, &mut parts)?;
        Ok(total.map(|total| Reward { total, parts }))
    }

    /// As [`ScoreConfig::reward`], with the parts in a buffer that is used again.
    ///
    /// # Errors
    /// As [`ScoreConfig::reward`].
    ///
    /// # Panics
    /// As [`ScoreConfig::reward`].
    pub fn reward_into(
        &self,
        facts: &Facts<'_>,
        parts: &mut Vec<f64>,
    ) -> Result<Option<f64>, ScoreError> {
        parts.clear();
        if !facts.verdict.outcome.is_usable() {
            return Ok(None);
        }
        let measured = &facts.measured;
        let is_correct = facts.verdict.outcome == Outcome::Correct;
        let accuracy = f64::from(u8::from(is_correct));
        let format = f64::from(u8::from(facts.verdict.format_ok));
        parts.extend([accuracy, format]);
        let mut total = self.accuracy * accuracy + self.format * format;
        let mut add = |weight: f64, value: f64| {
            parts.push(value);
            total += weight * value;
        };
        if let Some(part) = &self.overlong {
            add(part.weight, part.value(measured.tokens));
        }
        if let Some(part) = &self.repetition {
            add(part.weight, measured.repetition);
        }
        if let Some(part) = &self.length {
            let value = part.value(is_correct, measured.tokens, facts.truncated);
            add(part.weight, value);
        }
        if let Some(part) = &self.language {
            add(part.weight, measured.language);
        }
        assert_eq!(
            facts.sql.len(),
            self.sql.len(),
            "every SQL part has been computed"
        );
        for ((name, part), value) in self.sql.iter().zip(facts.sql) {
            let Some(value) = value.filter(|value| value.is_finite()) else {
                return Err(ScoreError::NoNumber {
                    part: name.clone(),
                    value: *value,
                });
            };
            add(part.weight, value);
        }
        Ok(Some(total))
    }
}

/// What is wrong with the name of an SQL part.
fn wrong_name(name: &str) -> Option<&'static str> {
    let is_word =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    if PARTS.contains(&name) {
        Some("a part of this name is built in")
    } else if name.is_empty() || !name.chars().all(is_word) {
        Some("it becomes the column `reward_<name>`")
    } else {
        None
    }
}

/// Faults of a configuration, gathered.
#[derive(Default)]
struct Faults(Vec<ScoreError>);

impl Faults {
    fn finite(&mut self, key: &str, value: f64) {
        if !value.is_finite() {
            let key = key.to_owned();
            self.0.push(ScoreError::NotFinite { key, value });
        }
    }

    fn range(&mut self, key: &str, message: impl Into<String>) {
        self.0.push(ScoreError::OutOfRange {
            key: key.to_owned(),
            message: message.into(),
        });
    }
}

#[cfg(test)]
mod tests;
