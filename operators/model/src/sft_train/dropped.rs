//! The list of answers that were too long to learn.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use schemas::tables::TEXT;

use super::sequences::Dropped;

/// Dropped examples named in the warning.
const NAMED_EXAMPLES: usize = 8;

/// Columns of the output port `dropped`.
pub(super) fn dropped_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("prompt_id", TEXT, false),
        // Number of the answer among those of the conversation, from 1.
        Field::new("turn", DataType::UInt32, false),
        // Tokens up to its end, those of the prompt included.
        Field::new("tokens", DataType::UInt32, false),
        Field::new("reason", TEXT, false),
    ]))
}

/// The rows of the output port `dropped`.
pub(super) fn dropped_rows(dropped: &[Dropped], limit: u32) -> Result<RecordBatch, OperatorError> {
    let reason = format!("longer than `max-tokens: {limit}`");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(LargeStringArray::from_iter_values(
            dropped.iter().map(|row| row.prompt_id.as_str()),
        )),
        Arc::new(UInt32Array::from_iter_values(
            dropped.iter().map(|row| row.turn),
        )),
        Arc::new(UInt32Array::from_iter_values(
            dropped
                .iter()
                .map(|row| u32::try_from(row.tokens).unwrap_or(u32::MAX)),
        )),
        Arc::new(LargeStringArray::from_iter_values(
            dropped.iter().map(|_| &reason),
        )),
    ];
    Ok(RecordBatch::try_new(dropped_schema(), columns)?)
}

/// The warning of dropped answers. `total` counts all.
pub(super) fn warning(dropped: &[Dropped], total: usize, limit: u32) -> String {
    let mut names: Vec<&str> = dropped.iter().map(|row| row.prompt_id.as_str()).collect();
    names.dedup();
    let shown = names
        .iter()
        .take(NAMED_EXAMPLES)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    let more = if names.len() > NAMED_EXAMPLES {
        ", ..."
    } else {
        ""
    };
    format!(
        "{} of {total} examples are longer than `max-tokens: {limit}` and were dropped: {shown}{more}",
        dropped.len()
    )
}
