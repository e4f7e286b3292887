//! Builds the `metrics` table: one row per step and name.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use schemas::TableName;

/// The numbers of a step, counted from 1, as rows.
pub(crate) fn metric_rows(
    step: u64,
    values: &[(&'static str, f64)],
) -> Result<RecordBatch, OperatorError> {
    let step = i64::try_from(step).expect("steps are 32-bit numbers");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_value(step, values.len())),
        Arc::new(LargeStringArray::from_iter_values(
            values.iter().map(|(name, _)| name),
        )),
        Arc::new(Float64Array::from_iter_values(
            values.iter().map(|(_, value)| *value),
        )),
    ];
    Ok(RecordBatch::try_new(TableName::Metrics.schema(), columns)?)
}
