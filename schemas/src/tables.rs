//! The Arrow schema of every table, column by column.
//!
//! Text, bytes and lists have 64-bit offsets everywhere. A producer may add columns; a consumer names the ones it needs.
//! Images are kept once in the store by digest; tables hold the digest.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

/// Which of the system's tables a dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableName {
    /// What to ask, with the gold answer.
    Prompts,
    /// What a model wrote, token by token.
    Rollouts,
    /// Whether a rollout is right.
    Verdicts,
    /// What a rollout is worth.
    Scores,
    /// How often a model is right, by prompt.
    PassRates,
    /// What to learn from.
    Examples,
    /// Numbers over training steps.
    Metrics,
    /// Accuracy with intervals, by category.
    Evaluations,
    /// Rows that a map stage could not compute, and why.
    Quarantine,
    /// Anything else, for example the result of a `sql` stage.
    Rows,
}

impl TableName {
    /// All tables, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Prompts,
        Self::Rollouts,
        Self::Verdicts,
        Self::Scores,
        Self::PassRates,
        Self::Examples,
        Self::Metrics,
        Self::Evaluations,
        Self::Quarantine,
        Self::Rows,
    ];

    /// The name in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Rollouts => "rollouts",
            Self::Verdicts => "verdicts",
            Self::Scores => "scores",
            Self::PassRates => "pass_rates",
            Self::Examples => "examples",
            Self::Metrics => "metrics",
            Self::Evaluations => "evaluations",
            Self::Quarantine => "quarantine",
            Self::Rows => "rows",
        }
    }

    /// The columns that every dataset of this table has.
    #[must_use]
    pub fn schema(self) -> SchemaRef {
        match self {
            Self::Prompts => prompts(),
            Self::Rollouts => rollouts(),
            Self::Verdicts => verdicts(),
            Self::Scores => scores(),
            Self::PassRates => pass_rates(),
            Self::Examples => examples(),
            Self::Metrics => metrics(),
            Self::Evaluations => evaluations(),
            Self::Quarantine => quarantine(),
            Self::Rows => Arc::new(Schema::empty()),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The type of all text columns.
pub const TEXT: DataType = DataType::LargeUtf8;

/// Prompts, one row each.
#[must_use]
pub fn prompts() -> SchemaRef {
    schema(vec![
        // Unique in a dataset; the seed of everything sampled for this prompt.
        Field::new("prompt_id", TEXT, false),
        // The conversation up to the answer.
        Field::new("messages", messages_type(), false),
        // Gold answer; null when there is none (nothing can then be verified).
        Field::new("answer", TEXT, true),
        // Worked solution in the pipeline's output format.
        Field::new("solution", TEXT, true),
        // Group for reports: topic, kind of question, difficulty.
        Field::new("category", TEXT, true),
        // Data set that the row came from.
        Field::new("source", TEXT, false),
    ])
}

/// Rollouts, one row per sampled completion.
#[must_use]
pub fn rollouts() -> SchemaRef {
    schema(vec![
        Field::new("prompt_id", TEXT, false),
        // Index among the samples of the prompt, from 0.
        Field::new("sample", DataType::UInt32, false),
        // Completion text without special tokens, derived from `token_ids`.
        Field::new("text", TEXT, false),
        // Sampled token ids: the record. The end token is included when it was sampled.
        Field::new("token_ids", list(DataType::UInt32), false),
        // Natural-log probability of each token under the sampling distribution, before `top-k`, `top-p` and `min-p`.
        Field::new("logprobs", list(DataType::Float32), false),
        // `stop` or `length`.
        Field::new("finish_reason", TEXT, false),
        // Tokens of the prompt, image tokens included.
        Field::new("prompt_tokens", DataType::UInt32, false),
        // Digest of the model that sampled.
        Field::new("model", TEXT, false),
        // Seed of the sampler.
        Field::new("seed", DataType::UInt64, false),
    ])
}

/// What a rollout can have beside the columns of [`rollouts`]. A table has them where its stage asks for them.
#[must_use]
pub fn rollout_extras() -> [Field; 2] {
    [
        // Natural-log probability of each token under the truncated distribution that it was drawn from; `logprobs` has those
        // before truncation.
        Field::new("truncated_logprobs", list(DataType::Float32), true),
        // Entropy, in nats, of the distribution before truncation at each token.
        Field::new("entropies", list(DataType::Float32), true),
    ]
}

/// Verdicts, one row per rollout. `verify` adds the columns `reason` (text: why, for people) and, where several verifiers or votes
/// decide, `agreement` (the share of them that say what is said together).
#[must_use]
pub fn verdicts() -> SchemaRef {
    schema(vec![
        Field::new("prompt_id", TEXT, false),
        Field::new("sample", DataType::UInt32, false),
        // `correct`, `wrong`, `unparsed` (no answer found; counts as not correct), `timed-out` or `failed` (both masked).
        Field::new("verdict", TEXT, false),
        // The answer found in the completion.
        Field::new("extracted", TEXT, true),
        // Whether the completion has the required tags, in order, once.
        Field::new("format_ok", DataType::Boolean, false),
        // Name and version of the verifier.
        Field::new("verifier", TEXT, false),
    ])
}

/// Scores, one row per rollout with a usable verdict; a part of the reward per column `reward_<part>`.
#[must_use]
pub fn scores() -> SchemaRef {
    schema(vec![
        Field::new("prompt_id", TEXT, false),
        Field::new("sample", DataType::UInt32, false),
        // Weighted sum of the parts.
        Field::new("reward", DataType::Float64, false),
        // 1 for a correct answer, 0 for a wrong or missing one, before the weight.
        Field::new("reward_accuracy", DataType::Float64, false),
        // 1 for the required format, else 0, before the weight.
        Field::new("reward_format", DataType::Float64, false),
    ])
}

/// Pass rates, one row per prompt.
#[must_use]
pub fn pass_rates() -> SchemaRef {
    schema(vec![
        Field::new("prompt_id", TEXT, false),
        // Rollouts with a usable verdict.
        Field::new("samples", DataType::UInt32, false),
        // Of these, the correct ones. Buckets are decided on these two integers.
        Field::new("correct", DataType::UInt32, false),
        // `correct / samples`.
        Field::new("pass_rate", DataType::Float64, false),
    ])
}

/// Training examples, one row per completion to imitate.
#[must_use]
pub fn examples() -> SchemaRef {
    schema(vec![
        Field::new("prompt_id", TEXT, false),
        Field::new("messages", messages_type(), false),
        // Completion text, derived from `token_ids` when these are present.
        Field::new("text", TEXT, false),
        // Completion tokens as sampled; null for text from elsewhere (a worked solution), which is tokenised once.
        Field::new("token_ids", list(DataType::UInt32), true),
        // `self` (own correct answer), `expert`, or a name given in the pipeline.
        Field::new("origin", TEXT, false),
        // Digest of the model that wrote it, if one did.
        Field::new("model", TEXT, true),
    ])
}

/// Numbers over training steps, one row per step and name.
#[must_use]
pub fn metrics() -> SchemaRef {
    schema(vec![
        Field::new("step", DataType::Int64, false),
        Field::new("name", TEXT, false),
        Field::new("value", DataType::Float64, false),
    ])
}

/// Accuracy by category, with a 95 % Wilson interval; category `all` is the whole set.
#[must_use]
pub fn evaluations() -> SchemaRef {
    schema(vec![
        Field::new("category", TEXT, false),
        // Rollouts with a usable verdict.
        Field::new("samples", DataType::UInt32, false),
        Field::new("correct", DataType::UInt32, false),
        Field::new("accuracy", DataType::Float64, false),
        Field::new("low", DataType::Float64, false),
        Field::new("high", DataType::Float64, false),
    ])
}

/// Rows that a map stage could not compute, one row each.
#[must_use]
pub fn quarantine() -> SchemaRef {
    schema(vec![
        // Number of the row among all rows of the stage's input, from 0.
        Field::new("row", DataType::Int64, false),
        // The values that name the row, for example `prompt_id=a7 sample=3`.
        Field::new("row_key", TEXT, false),
        // What went wrong and what to do.
        Field::new("error", TEXT, false),
    ])
}

/// `[{role, content: [{type, text, image}]}]`: `type` is `text` or `image`; `image` is a media digest.
#[must_use]
pub fn messages_type() -> DataType {
    list(DataType::Struct(message_fields()))
}

/// Fields of one message.
#[must_use]
pub fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", TEXT, false),
        Field::new("content", list(DataType::Struct(content_fields())), false),
    ])
}

/// Fields of one part of a message.
#[must_use]
pub fn content_fields() -> Fields {
    Fields::from(vec![
        Field::new("type", TEXT, false),
        Field::new("text", TEXT, true),
        Field::new("image", TEXT, true),
    ])
}

/// A list type with 64-bit offsets and non-null items.
#[must_use]
pub fn list(item: DataType) -> DataType {
    DataType::LargeList(Arc::new(Field::new("item", item, false)))
}

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}
