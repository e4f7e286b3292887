//! Rows that could not be computed: how many may be, and where they go.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray};
use arrow::record_batch::RecordBatch;
use engine_core::{Dataset, OperatorError};
use engine_store::Store;
use schemas::TableName;

use super::driver::Driver;
use super::gather::QuarantinedRow;
use crate::stage::Budget;

/// The output port of failed rows.
pub(crate) const PORT: &str = "quarantine";
/// Rows that an error names.
const NAMED: usize = 5;
/// Rows that are stored together.
const BATCH_ROWS: usize = 8192;

/// How many rows may fail of so many; a share of an unknown number sets no limit yet.
pub(crate) fn allowed(budget: Option<Budget>, rows: Option<u64>) -> u64 {
    match budget {
        None => 0,
        Some(Budget::Rows(allowed)) => allowed,
        // A share is at most 1, so that the product is a number of rows.
        Some(Budget::Share(share)) => {
            rows.map_or(u64::MAX, |rows| (share * rows as f64).floor() as u64)
        }
    }
}

/// The failed rows as a table.
pub(super) fn dataset(store: &Store, failed: &[QuarantinedRow]) -> Result<Dataset, OperatorError> {
    let table = TableName::Quarantine;
    let schema = table.schema();
    let mut batches = Vec::new();
    for rows in failed.chunks(BATCH_ROWS) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(
                rows.iter().map(|failed| failed.row as i64),
            )),
            Arc::new(LargeStringArray::from_iter_values(
                rows.iter().map(|failed| &failed.row_key),
            )),
            Arc::new(LargeStringArray::from_iter_values(
                rows.iter().map(|failed| &failed.error),
            )),
        ];
        batches.push(RecordBatch::try_new(Arc::clone(&schema), columns)?);
    }
    let part = store.write_part(table, &schema, &batches)?;
    Ok(store.dataset(table, &schema, vec![part])?)
}

/// Why the stage fails, with the first of the rows.
pub(super) fn error(driver: &Driver<'_>, failed: &[QuarantinedRow], allowed: u64) -> OperatorError {
    let mut named: Vec<String> = failed
        .iter()
        .take(NAMED)
        .map(|failed| format!("{}: {}", place(driver, failed), failed.error))
        .collect();
    if failed.len() > named.len() {
        named.push(format!("and {} more", failed.len() - named.len()));
    }
    let list = named.join("; ");
    OperatorError::Data(if driver.has_quarantine() {
        format!(
            "{} rows failed, more than the {allowed} that the quarantine takes: {list}",
            failed.len()
        )
    } else {
        list
    })
}

fn place(driver: &Driver<'_>, failed: &QuarantinedRow) -> String {
    let row = failed.row;
    let outside = driver.operator.row_place(driver.context, row);
    outside.unwrap_or_else(|| {
        if failed.row_key.is_empty() {
            format!("row {row}")
        } else {
            format!("row {row} ({})", failed.row_key)
        }
    })
}
