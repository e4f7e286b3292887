//! Builds the `metrics` table: one row per step and name.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray};
use arrow::record_batch::RecordBatch;
use engine_core::event::StageEvent;
use engine_core::{OperatorError, StageIo};
use schemas::TableName;

/// Writes the numbers of a step to the output port `metrics` and tells them, with others that only those see who watch: times,
/// memory and whatever else is not the same in every run.
pub(crate) fn record_step<Name: AsRef<str>>(
    step: u64,
    figures: &[(Name, f64)],
    live: &[(&'static str, f64)],
    io: &mut dyn StageIo,
) -> Result<(), OperatorError> {
    io.write("metrics", metric_rows(step, figures)?)?;
    let recorded = figures.iter().map(|(name, value)| (name.as_ref(), *value));
    let told = recorded.chain(live.iter().copied());
    io.event(StageEvent::Metrics {
        step,
        values: told.map(|(name, value)| (name.to_owned(), value)).collect(),
    });
    Ok(())
}

/// The numbers of a step, counted from 1, as rows.
pub(crate) fn metric_rows<Name: AsRef<str>>(
    step: u64,
    values: &[(Name, f64)],
) -> Result<RecordBatch, OperatorError> {
    let step = i64::try_from(step).expect("steps are 32-bit numbers");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_value(step, values.len())),
        Arc::new(LargeStringArray::from_iter_values(
            values.iter().map(|(name, _)| name.as_ref()),
        )),
        Arc::new(Float64Array::from_iter_values(
            values.iter().map(|(_, value)| *value),
        )),
    ];
    Ok(RecordBatch::try_new(TableName::Metrics.schema(), columns)?)
}
