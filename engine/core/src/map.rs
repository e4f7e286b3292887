//! Row-local operators: what the engine needs to run a stage part by part.
//!
//! The engine reads the rows of one input, cuts them into parts, looks every part up in the store under a key of its own, has
//! the missing ones computed, and commits each of them by itself. So resuming, reuse of rows, parallel work and bounded memory
//! are the engine's business, and an operator only says what one part gives.
//!
//! Where parts are cut depends on the content of the rows: a row that is added or removed changes the part that it falls
//! into, and hardly ever another.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::record_batch::RecordBatch;
use serde_json::Value;

use crate::error::OperatorError;
use crate::operator::{BatchReader, StageContext, StageView};

/// How large the parts of a map stage become. A constant of the operator: another value cuts the same rows at other places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSize {
    /// Rows in a part, on average. No part has more than twice as many, and only the last less than a quarter.
    pub rows: usize,
    /// Bytes in memory of a part's rows at which it is cut whatever their number.
    pub bytes: usize,
}

impl Default for PartSize {
    fn default() -> Self {
        Self {
            rows: 16_384,
            bytes: 16 << 20,
        }
    }
}

/// A side table whose rows belong to the mapped rows by a common key, such as the prompts of rollouts. A part depends on
/// the rows with its keys and on no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The input port of the side table.
    pub port: &'static str,
    /// A text column of the side table and of the mapped rows.
    pub column: &'static str,
}

/// An operator whose result for a row depends on that row, on the models and tables beside it, and on nothing else.
pub trait MapOperator: Send + Sync {
    /// The input port whose rows are mapped; none for an operator that reads rows from outside the store.
    fn rows_port(&self) -> Option<&str>;

    /// Rows from outside the store, for an operator without [`Self::rows_port`].
    ///
    /// # Errors
    /// When a file cannot be read.
    fn outside_rows(&self, context: &StageContext<'_>) -> Result<BatchReader, OperatorError> {
        Err(OperatorError::Internal(format!(
            "stage `{}` reads no rows from outside the store",
            context.stage
        )))
    }

    /// The columns that count, for a rows port that takes any table; none for all of them. Parts have these columns, in this
    /// order, and their keys cover no others.
    fn columns(&self) -> Option<Vec<String>> {
        None
    }

    /// How many rows [`Self::outside_rows`] has, where that is known without reading them.
    fn outside_total(&self, _context: &StageContext<'_>) -> Option<u64> {
        None
    }

    /// Where a row from outside the store is, for messages: its file and its place there.
    fn row_place(&self, _context: &StageContext<'_>, _row: u64) -> Option<String> {
        None
    }

    /// Side tables that are matched row by row. All other tables and models beside the rows count as a whole.
    fn joined(&self) -> Vec<Joined> {
        Vec::new()
    }

    /// How large parts are.
    fn part_size(&self) -> PartSize {
        PartSize::default()
    }

    /// The configuration as it enters the keys of parts; `canonical` is the one of the stage key, with digests in the place
    /// of paths. What [`Self::slices`] says and what does not change a row's result is taken out.
    fn part_config(&self, canonical: &Value) -> Value {
        canonical.clone()
    }

    /// What is computed for every row, in pieces that are kept and reused by themselves: ranges of samples. One piece for
    /// operators whose result has no pieces.
    fn slices(&self) -> Vec<Range<u32>> {
        std::iter::once(0..1).collect()
    }

    /// Makes what all parts need: loads models, reads side tables. Called once, when there is a part to compute.
    ///
    /// # Errors
    /// When a model or a table cannot be read.
    fn start<'a>(
        &'a self,
        context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError>;
}

/// A started map operator. In the engine's process parts are computed side by side; in a worker one after the other.
pub trait MapTask: Send + Sync {
    /// Computes some slices of a part.
    ///
    /// # Errors
    /// When the part cannot be computed at all. A row that cannot be computed goes into [`MapOutput::failed`].
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError>;
}

/// Rows to map.
#[derive(Clone, Debug)]
pub struct MapPart<'a> {
    /// The rows, with exactly the columns that the input port declares ([`MapOperator::columns`] for a port that takes any
    /// table).
    pub rows: &'a RecordBatch,
    /// Number of the first row among all rows of the input; counts from 0.
    pub first_row: u64,
    /// The slices that are missing.
    pub slices: &'a [Range<u32>],
}

/// What a part gave.
#[derive(Clone, Debug, Default)]
pub struct MapOutput {
    /// Rows by output port, for each of the slices that were asked for, in their order. A port without rows may be left out.
    pub slices: Vec<BTreeMap<String, RecordBatch>>,
    /// Rows that could not be computed; they have no output in any slice.
    pub failed: Vec<FailedRow>,
    /// Tokens sampled, for the progress line.
    pub tokens: u64,
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    /// Index in the part.
    pub row: usize,
    /// What went wrong and what to do.
    pub error: String,
}

/// Runs a map operator over all its rows as one part and returns what each output port gets: what tests of operators need.
///
/// # Errors
/// As the operator; a failed row is an error here.
pub fn map_whole(
    operator: &dyn MapOperator,
    context: &StageContext<'_>,
    view: &dyn StageView,
) -> Result<BTreeMap<String, Vec<RecordBatch>>, OperatorError> {
    let reader = match operator.rows_port() {
        Some(port) => view.read(port)?,
        None => operator.outside_rows(context)?,
    };
    let columns = operator.columns();
    let slices = operator.slices();
    let task = operator.start(context, view)?;
    let mut outputs: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    let mut first_row = 0;
    for rows in reader {
        let mut rows = rows?;
        if let Some(columns) = &columns {
            rows = project(&rows, columns)?;
        }
        let output = task.apply(&MapPart {
            rows: &rows,
            first_row,
            slices: &slices,
        })?;
        if let Some(failed) = output.failed.first() {
            let row = first_row + failed.row as u64;
            let place = operator
                .row_place(context, row)
                .unwrap_or_else(|| format!("row {row}"));
            return Err(OperatorError::Data(format!("{place}: {}", failed.error)));
        }
        first_row += rows.num_rows() as u64;
        for slice in output.slices {
            for (port, batch) in slice {
                outputs.entry(port).or_default().push(batch);
            }
        }
    }
    Ok(outputs)
}

/// These columns of some rows, in this order.
///
/// # Errors
/// When a column is missing: the planner did not see to it.
pub fn project(rows: &RecordBatch, columns: &[String]) -> Result<RecordBatch, OperatorError> {
    let indices: Result<Vec<usize>, _> = columns
        .iter()
        .map(|name| rows.schema_ref().index_of(name))
        .collect();
    Ok(rows.project(&indices?)?)
}
