//! Builds the `metrics` table: one row per step and name.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, LargeStringArray};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use schemas::TableName;

/// Rows of the `metrics` table.
#[derive(Debug, Default)]
pub(crate) struct MetricRows {
    rows: Vec<(i64, &'static str, f64)>,
}

impl MetricRows {
    /// Adds the numbers of a step, counted from 1.
    pub(crate) fn push(&mut self, step: u64, values: &[(&'static str, f64)]) {
        let step = i64::try_from(step).expect("steps are 32-bit numbers");
        self.rows
            .extend(values.iter().map(|(name, value)| (step, *name, *value)));
    }

    /// The rows so far; the builder is empty afterwards.
    pub(crate) fn take(&mut self) -> Result<RecordBatch, OperatorError> {
        let rows = std::mem::take(&mut self.rows);
        let steps = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
        let names = LargeStringArray::from_iter_values(rows.iter().map(|row| row.1));
        let values = Float64Array::from_iter_values(rows.iter().map(|row| row.2));
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(steps), Arc::new(names), Arc::new(values)];
        Ok(RecordBatch::try_new(TableName::Metrics.schema(), columns)?)
    }
}
