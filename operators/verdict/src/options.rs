//! Options of the verifiers, as a pipeline writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::extract::ExtractOptions;
use crate::format::FormatRule;
use crate::verify::VerifyConfig;

/// Options of `exact`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExactOptions {
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
}

/// Options of `math`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MathOptions {
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
}

/// Options of `choice`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ChoiceOptions {
    /// The letters that can be chosen; all letters when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters: Option<String>,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
}

/// Options of `numeric`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NumericOptions {
    /// Largest difference from the gold answer.
    #[serde(default)]
    pub absolute: f64,
    /// Largest difference as a share of the gold answer.
    #[serde(default)]
    pub relative: f64,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
}

impl Eq for NumericOptions {}

/// What a pattern is looked for in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Searched {
    /// The extracted answer.
    #[default]
    Answer,
    /// The whole completion.
    Completion,
}

/// Options of `regex`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegexOptions {
    /// The regular expression; `{gold}` in it stands for the gold answer, taken literally. It is searched for: begin
    /// it with `^` and end it with `$` where it must fit all of the text.
    pub pattern: String,
    /// What it is looked for in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub of: Searched,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
}

/// Options of `format`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FormatOptions {
    /// Names of the tags, in their order, each exactly once.
    pub tags: Vec<String>,
}

/// Options of `all` and `any`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CombineOptions {
    /// The verifiers.
    pub of: Vec<VerifyConfig>,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
