//! Builds the `rollouts` table.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringBuilder, UInt32Builder, UInt64Builder};
use arrow::datatypes::{FieldRef, Float32Type, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use engine_core::policy::Completion;
use schemas::TableName;
use schemas::tables::rollout_extras;

use crate::columns::{ListBuilder, list_builder};

/// Columns that are null where a server does not tell them.
const TOLD_BY_SERVERS: [&str; 2] = ["token_ids", "logprobs"];

/// One rollout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RolloutRow<'a> {
    pub(crate) prompt_id: &'a str,
    pub(crate) sample: u32,
    pub(crate) text: &'a str,
    pub(crate) completion: &'a Completion,
    pub(crate) prompt_tokens: usize,
    pub(crate) model: &'a str,
    pub(crate) seed: u64,
}

/// Columns that a `rollouts` table has beside the usual ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) truncated_logprobs: bool,
    pub(crate) entropies: bool,
    /// Whether token ids and log-probabilities may be null: servers need not tell them.
    pub(crate) may_lack_tokens: bool,
}

impl Extras {
    /// Schema of a table with these columns behind the usual ones.
    pub(crate) fn schema(self) -> SchemaRef {
        let usual = TableName::Rollouts.schema();
        let wanted = [self.truncated_logprobs, self.entropies];
        if wanted == [false; 2] && !self.may_lack_tokens {
            return usual;
        }
        let extras = rollout_extras().into_iter().zip(wanted);
        let extras = extras.filter(|(_, wanted)| *wanted);
        let mut fields: Vec<FieldRef> = usual.fields().iter().cloned().collect();
        for field in fields.iter_mut().filter(|_| self.may_lack_tokens) {
            if TOLD_BY_SERVERS.contains(&field.name().as_str()) {
                *field = Arc::new(field.as_ref().clone().with_nullable(true));
            }
        }
        fields.extend(extras.map(|(field, _)| Arc::new(field)));
        Arc::new(Schema::new(fields))
    }
}

/// Columns under construction, in the order of the table.
#[derive(Debug)]
pub(crate) struct RolloutRows {
    prompt_id: LargeStringBuilder,
    sample: UInt32Builder,
    text: LargeStringBuilder,
    token_ids: ListBuilder<UInt32Type>,
    logprobs: ListBuilder<Float32Type>,
    finish_reason: LargeStringBuilder,
    prompt_tokens: UInt32Builder,
    model: LargeStringBuilder,
    seed: UInt64Builder,
    extras: Extras,
    truncated_logprobs: ListBuilder<Float32Type>,
    entropies: ListBuilder<Float32Type>,
}

impl RolloutRows {
    pub(crate) fn new(extras: Extras) -> Self {
        Self {
            prompt_id: LargeStringBuilder::new(),
            sample: UInt32Builder::new(),
            text: LargeStringBuilder::new(),
            token_ids: list_builder(),
            logprobs: list_builder(),
            finish_reason: LargeStringBuilder::new(),
            prompt_tokens: UInt32Builder::new(),
            model: LargeStringBuilder::new(),
            seed: UInt64Builder::new(),
            extras,
            truncated_logprobs: list_builder(),
            entropies: list_builder(),
        }
    }

    pub(crate) fn push(&mut self, row: RolloutRow<'_>) -> Result<(), OperatorError> {
        let prompt_tokens = u32::try_from(row.prompt_tokens).map_err(|_| {
            OperatorError::Internal(format!(
                "prompt `{}` has 2^32 tokens or more",
                row.prompt_id
            ))
        })?;
        self.prompt_id.append_value(row.prompt_id);
        self.sample.append_value(row.sample);
        self.text.append_value(row.text);
        self.token_ids
            .values()
            .append_slice(&row.completion.token_ids);
        // A completion has one token at least; one without is from a server that does not tell them.
        self.token_ids.append(!row.completion.token_ids.is_empty());
        self.logprobs
            .values()
            .append_slice(&row.completion.logprobs);
        self.logprobs.append(!row.completion.logprobs.is_empty());
        self.finish_reason
            .append_value(row.completion.finish_reason.as_str());
        self.prompt_tokens.append_value(prompt_tokens);
        self.model.append_value(row.model);
        self.seed.append_value(row.seed);
        let truncated = &row.completion.truncated_logprobs;
        self.truncated_logprobs.values().append_slice(truncated);
        self.truncated_logprobs.append(true);
        let entropies = &row.completion.entropies;
        self.entropies.values().append_slice(entropies);
        self.entropies.append(true);
        Ok(())
    }

    /// The columns, in the order of the table.
    pub(crate) fn columns(mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.prompt_id.finish()),
            Arc::new(self.sample.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.token_ids.finish()),
            Arc::new(self.logprobs.finish()),
            Arc::new(self.finish_reason.finish()),
            Arc::new(self.prompt_tokens.finish()),
            Arc::new(self.model.finish()),
            Arc::new(self.seed.finish()),
        ];
        if self.extras.truncated_logprobs {
            columns.push(Arc::new(self.truncated_logprobs.finish()));
        }
        if self.extras.entropies {
            columns.push(Arc::new(self.entropies.finish()));
        }
        columns
    }

    /// The rows as a batch of the `rollouts` table.
    pub(crate) fn finish(self) -> Result<RecordBatch, OperatorError> {
        Ok(RecordBatch::try_new(self.extras.schema(), self.columns())?)
    }
}
