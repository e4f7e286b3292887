//! Writes examples: kept rollouts beside the messages of their prompts.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringArray, RecordBatch, UInt64Array};
use arrow::compute::take;
use engine_core::{OperatorError, StageIo};
use engine_query::{Order, QueryError, QuerySession, conform};
use schemas::TableName;

use super::groups::{Row, gathered};

/// Rows of a batch that is written.
const BATCH_ROWS: usize = 8192;
/// Where examples come from.
const ORIGIN: &str = "self";

/// Writes the kept rollouts of prompt after prompt, in the order of the prompts.
pub(super) struct ExampleWriter {
    prompts: Box<dyn Iterator<Item = Result<RecordBatch, QueryError>>>,
    /// Some prompts that follow each other, and the number of the first.
    current: Option<RecordBatch>,
    first: u64,
    /// Rows that wait, and where in the current prompts theirs is.
    rows: Vec<(Arc<RecordBatch>, usize)>,
    places: Vec<u64>,
    pub(super) written: u64,
    // The prompts are read by its threads.
    _session: QuerySession,
}

impl ExampleWriter {
    pub(super) fn new(io: &mut dyn StageIo) -> Result<Self, OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "prompts")?;
        let prompts = session.stream(session.sql("SELECT prompt_id, messages FROM prompts")?);
        io.write(
            "examples",
            RecordBatch::new_empty(TableName::Examples.schema()),
        )?;
        Ok(Self {
            prompts: Box::new(prompts),
            current: None,
            first: 0,
            rows: Vec::new(),
            places: Vec::new(),
            written: 0,
            _session: session,
        })
    }

    /// Writes examples of a prompt that comes after those before.
    pub(super) fn write(
        &mut self,
        prompt: u32,
        rows: Vec<Row>,
        io: &mut dyn StageIo,
    ) -> Result<(), OperatorError> {
        let prompt = u64::from(prompt);
        loop {
            let count = self.current.as_ref().map_or(0, RecordBatch::num_rows) as u64;
            if prompt < self.first + count {
                break;
            }
            self.flush(io)?;
            let next = self.prompts.next().unwrap_or_else(|| {
                Err(QueryError::Run(
                    "the prompts have fewer rows than before".to_owned(),
                ))
            });
            self.first += count;
            self.current = Some(next?);
        }
        for row in rows {
            self.rows.push((row.batch, row.place));
            self.places.push(prompt - self.first);
        }
        if self.rows.len() >= BATCH_ROWS {
            self.flush(io)?;
        }
        Ok(())
    }

    /// Writes the rows that wait.
    pub(super) fn flush(&mut self, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let Some(prompts) = &self.current else {
            return Ok(());
        };
        if self.rows.is_empty() {
            return Ok(());
        }
        let count = self.rows.len();
        let places = UInt64Array::from(std::mem::take(&mut self.places));
        let rollouts = gathered(&std::mem::take(&mut self.rows))?;
        let taken = |column: usize| take(prompts.column(column), &places, None);
        let origins = std::iter::repeat_n(ORIGIN, count);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("prompt_id", taken(0)?),
            ("messages", taken(1)?),
            ("text", Arc::clone(rollouts.column(0))),
            ("token_ids", Arc::clone(rollouts.column(1))),
            (
                "origin",
                Arc::new(LargeStringArray::from_iter_values(origins)),
            ),
            ("model", Arc::clone(rollouts.column(2))),
        ];
        let schema = TableName::Examples.schema();
        let batch = conform(&RecordBatch::try_from_iter(columns)?, &schema)?;
        self.written += count as u64;
        io.write("examples", batch)
    }
}
