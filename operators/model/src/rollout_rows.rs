//! Builds the `rollouts` table.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringBuilder, UInt32Builder, UInt64Builder};
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use engine_core::policy::Completion;
use schemas::TableName;

use crate::columns::{ListBuilder, list_builder};

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
}

impl RolloutRows {
    pub(crate) fn new() -> Self {
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
        self.token_ids.append(true);
        self.logprobs
            .values()
            .append_slice(&row.completion.logprobs);
        self.logprobs.append(true);
        self.finish_reason
            .append_value(row.completion.finish_reason.as_str());
        self.prompt_tokens.append_value(prompt_tokens);
        self.model.append_value(row.model);
        self.seed.append_value(row.seed);
        Ok(())
    }

    /// The columns, in the order of the table.
    pub(crate) fn columns(mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.prompt_id.finish()),
            Arc::new(self.sample.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.token_ids.finish()),
            Arc::new(self.logprobs.finish()),
            Arc::new(self.finish_reason.finish()),
            Arc::new(self.prompt_tokens.finish()),
            Arc::new(self.model.finish()),
            Arc::new(self.seed.finish()),
        ]
    }

    /// The rows as a batch of the `rollouts` table.
    pub(crate) fn finish(self) -> Result<RecordBatch, OperatorError> {
        Ok(RecordBatch::try_new(
            TableName::Rollouts.schema(),
            self.columns(),
        )?)
    }
}
