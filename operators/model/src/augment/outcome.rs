//! What became of the prompts, as tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, LargeStringArray, LargeStringBuilder, UInt64Array,
};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;
use engine_core::{FailedRow, OperatorError};
use schemas::TableName;

use super::unanswered_schema;
use crate::columns::list_builder;
use crate::prompt_rows::PromptRow;

/// What the `origin` column of the examples says.
const ORIGIN: &str = "expert";
/// The same for answers to a prompt with a hint.
const HINTED: &str = "expert-hinted";

/// An answer that became an example.
#[derive(Debug)]
pub(super) struct Kept {
    /// Index of the prompt.
    pub(super) prompt: usize,
    pub(super) text: String,
    /// The expert's tokens, where the student reads them alike.
    pub(super) token_ids: Option<Vec<u32>>,
    pub(super) is_hinted: bool,
}

/// Why answers did not become examples, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    counts: BTreeMap<&'static str, u32>,
    /// What there is to say about a prompt that nobody was asked for.
    not_asked: Option<String>,
}

impl Refusals {
    pub(super) fn add(&mut self, why: &'static str) {
        *self.counts.entry(why).or_default() += 1;
    }

    pub(super) fn not_asked(&mut self, why: String) {
        self.not_asked = Some(why);
    }

    /// For people.
    fn reason(&self) -> String {
        if let Some(why) = &self.not_asked {
            return why.clone();
        }
        let answers: u32 = self.counts.values().sum();
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        match answers {
            0 => "there is no worked solution".to_owned(),
            1 => format!("the one answer cannot be learnt: {}", counts.join(", ")),
            _ => format!(
                "none of {answers} answers can be learnt: {}",
                counts.join(", ")
            ),
        }
    }
}

/// What became of the prompts of a part.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// In the order of prompts.
    pub(super) kept: Vec<Kept>,
    /// By prompt.
    pub(super) refusals: Vec<Refusals>,
    /// Digest of the model that answered.
    pub(super) model: Option<String>,
    /// Tokens that were sampled.
    pub(super) tokens: u64,
    /// Prompts that could not be asked.
    pub(super) failed: Vec<FailedRow>,
}

impl Answers {
    /// Rows by output port.
    pub(super) fn ports(
        &self,
        table: &RecordBatch,
        rows: &[PromptRow],
    ) -> Result<BTreeMap<String, RecordBatch>, OperatorError> {
        Ok(BTreeMap::from([
            ("examples".to_owned(), self.examples(table, rows)?),
            ("unanswered".to_owned(), self.unanswered(table)?),
        ]))
    }

    /// The prompts without an example that did not fail either.
    fn unanswered(&self, table: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let mut is_open = vec![true; table.num_rows()];
        let settled = self.kept.iter().map(|kept| kept.prompt);
        for row in settled.chain(self.failed.iter().map(|failure| failure.row)) {
            is_open[row] = false;
        }
        let reasons = self.refusals.iter().map(Refusals::reason);
        let mut columns = table.columns().to_vec();
        columns.push(Arc::new(LargeStringArray::from_iter_values(reasons)));
        let all = RecordBatch::try_new(unanswered_schema(), columns)?;
        Ok(filter_record_batch(&all, &BooleanArray::from(is_open))?)
    }

    fn examples(
        &self,
        table: &RecordBatch,
        rows: &[PromptRow],
    ) -> Result<RecordBatch, OperatorError> {
        let places = UInt64Array::from_iter_values(self.kept.iter().map(|kept| kept.prompt as u64));
        let messages = table
            .column_by_name("messages")
            .expect("the table was made with all columns");
        let messages = take(messages.as_list::<i64>(), &places, None)?;
        let (mut ids, mut texts) = (LargeStringBuilder::new(), LargeStringBuilder::new());
        let (mut origins, mut models) = (LargeStringBuilder::new(), LargeStringBuilder::new());
        let mut token_ids = list_builder::<UInt32Type>();
        for kept in &self.kept {
            ids.append_value(&rows[kept.prompt].prompt_id);
            texts.append_value(&kept.text);
            if let Some(ids) = &kept.token_ids {
                token_ids.values().append_slice(ids);
            }
            token_ids.append(kept.token_ids.is_some());
            origins.append_value(if kept.is_hinted { HINTED } else { ORIGIN });
            models.append_option(self.model.as_deref());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ids.finish()),
            messages,
            Arc::new(texts.finish()),
            Arc::new(token_ids.finish()),
            Arc::new(origins.finish()),
            Arc::new(models.finish()),
        ];
        Ok(RecordBatch::try_new(TableName::Examples.schema(), columns)?)
    }
}
