//! Rollouts that come in the order of their verdicts, as `verify` leaves them: read side by side, without a join or a sort.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take};
use arrow::datatypes::{Field, Schema};
use engine_core::{OperatorError, StageIo};
use engine_query::{Order, QueryError, QuerySession};

use super::functions::{joined, measure};
use super::names;
use super::order::{Names, Together, short_digest};
use super::sources::{COLUMNS, JOINED, MEASURED, PROMPT, Sources};
use crate::judged::judgement;

/// Prompts that are held in memory; with more, everything is joined on the disk.
const MOST_PROMPTS: usize = 2_000_000;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, QueryError>>>;

/// Rows of a table in their order. Each table has a session: one that waits for its reader holds the session's thread.
fn stream(io: &dyn StageIo, port: &str, query: &str) -> Result<Batches, OperatorError> {
    let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
    session.register_port(io, port)?;
    let mut rows = session.stream(session.sql(query)?);
    Ok(Box::new(std::iter::from_fn(move || {
        let _lives_as_long_as_its_rows = &session;
        rows.next()
    })))
}

/// Verdicts and rollouts of the same names: as many rows at a time as come in both in a row.
struct Runs {
    verdicts: Batches,
    rollouts: Batches,
    verdict: Option<RecordBatch>,
    rollout: Option<RecordBatch>,
    watch: Option<Watch>,
}

/// Whether rollouts have each sample once and those of a prompt together.
#[derive(Default)]
struct Watch {
    together: Together,
    names: Names,
    has_failed: bool,
}

impl Watch {
    fn look(&mut self, rollouts: &RecordBatch) {
        let is_fine = self.together.holds(rollouts) && self.names.check(rollouts).is_ok();
        self.has_failed |= !is_fine;
    }
}

/// What two streams have next.
enum Next {
    /// The same rows.
    Run(RecordBatch, RecordBatch),
    /// A verdict whose rollout does not come, or not here.
    Alone,
    /// Nothing.
    End,
}

impl Runs {
    fn new(
        io: &dyn StageIo,
        queries: [&str; 2],
        watch: Option<Watch>,
    ) -> Result<Self, OperatorError> {
        Ok(Self {
            verdicts: stream(io, "verdicts", queries[0])?,
            rollouts: stream(io, "rollouts", queries[1])?,
            verdict: None,
            rollout: None,
            watch,
        })
    }

    fn next_verdicts(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        match self.verdict.take() {
            Some(left) => Ok(Some(left)),
            None => filled(&mut self.verdicts),
        }
    }

    fn next_rollouts(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        if let Some(left) = self.rollout.take() {
            return Ok(Some(left));
        }
        let batch = filled(&mut self.rollouts)?;
        if let (Some(watch), Some(batch)) = (&mut self.watch, &batch) {
            watch.look(batch);
        }
        Ok(batch)
    }

    fn next(&mut self) -> Result<Next, OperatorError> {
        loop {
            let Some(verdicts) = self.next_verdicts()? else {
                return Ok(Next::End);
            };
            let Some(rollouts) = self.next_rollouts()? else {
                return Ok(Next::Alone);
            };
            let rows = equal_rows(&verdicts, &rollouts);
            let rest = |batch: &RecordBatch, from: usize| {
                let left = batch.num_rows() - from;
                (left > 0).then(|| batch.slice(from, left))
            };
            if rows == 0 {
                // A rollout without a verdict.
                self.rollout = rest(&rollouts, 1);
                self.verdict = Some(verdicts);
                continue;
            }
            self.verdict = rest(&verdicts, rows);
            self.rollout = rest(&rollouts, rows);
            return Ok(Next::Run(verdicts.slice(0, rows), rollouts.slice(0, rows)));
        }
    }
}

/// The next batch that has rows.
fn filled(batches: &mut Batches) -> Result<Option<RecordBatch>, OperatorError> {
    for batch in batches {
        let batch = batch?;
        if batch.num_rows() > 0 {
            return Ok(Some(batch));
        }
    }
    Ok(None)
}

/// How many rows at the start have the same names.
fn equal_rows(left: &RecordBatch, right: &RecordBatch) -> usize {
    let ((ids, samples), (other_ids, other_samples)) = (names(left), names(right));
    let most = left.num_rows().min(right.num_rows());
    (0..most)
        .take_while(|row| {
            samples.value(*row) == other_samples.value(*row)
                && ids.value(*row) == other_ids.value(*row)
        })
        .count()
}

/// Whether every verdict comes in the order of the rollouts, which have each sample once and those of a prompt together.
pub(super) fn is_aligned(io: &dyn StageIo) -> Result<bool, OperatorError> {
    let keys = ["verdicts", "rollouts"].map(|port| format!("SELECT prompt_id, sample FROM {port}"));
    let mut runs = Runs::new(io, [&keys[0], &keys[1]], Some(Watch::default()))?;
    let mut is_at_end = false;
    while !is_at_end {
        if io.is_cancelled() {
            return Err(OperatorError::Interrupted);
        }
        is_at_end = match runs.next()? {
            Next::Alone => return Ok(false),
            Next::Run(..) => false,
            // Rollouts may go on.
            Next::End => runs.next_rollouts()?.is_none(),
        };
        if runs.watch.as_ref().is_some_and(|watch| watch.has_failed) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Prompts by id.
struct Prompts {
    rows: RecordBatch,
    places: HashMap<u128, u32>,
}

impl Prompts {
    /// None where there are too many, or two of one id.
    fn read(io: &dyn StageIo, query: &str) -> Result<Option<Self>, OperatorError> {
        let mut batches = Vec::new();
        let mut places = HashMap::new();
        let mut schema = Arc::new(Schema::empty());
        for batch in stream(io, "prompts", query)? {
            let batch = batch?;
            let ids = batch.column(0).as_string::<i64>();
            for row in 0..ids.len() {
                let place = places.len() as u32;
                let is_new = places.insert(short_digest(ids.value(row)), place).is_none();
                if !is_new || places.len() > MOST_PROMPTS {
                    return Ok(None);
                }
            }
            schema = batch.schema();
            batches.push(batch);
        }
        let rows = concat_batches(&schema, &batches)?;
        Ok(Some(Self { rows, places }))
    }

    /// The row of the prompt of each verdict.
    fn of(&self, verdicts: &RecordBatch) -> UInt32Array {
        let (ids, _) = names(verdicts);
        let mut last: Option<(&str, Option<u32>)> = None;
        (0..ids.len())
            .map(|row| {
                let id = ids.value(row);
                let place = match last {
                    Some((known, place)) if known == id => place,
                    _ => self.places.get(&short_digest(id)).copied(),
                };
                last = Some((id, place));
                place
            })
            .collect()
    }
}

/// Rows as the query over all tables gives them, in the order of the verdicts.
pub(super) struct Aligned<'a> {
    sources: &'a Sources,
    runs: Runs,
    prompts: Option<Prompts>,
}

impl<'a> Aligned<'a> {
    /// None where the tables must be joined.
    pub(super) fn open(
        sources: &'a Sources,
        io: &dyn StageIo,
    ) -> Result<Option<Self>, OperatorError> {
        if !sources.reads_rollouts() || !is_aligned(io)? {
            return Ok(None);
        }
        let [verdicts, rollouts, prompts] = sources.queries_apart();
        let prompts = if sources.reads_prompts() {
            let Some(prompts) = Prompts::read(io, &prompts)? else {
                return Ok(None);
            };
            Some(prompts)
        } else {
            None
        };
        Ok(Some(Self {
            sources,
            runs: Runs::new(io, [&verdicts, &rollouts], None)?,
            prompts,
        }))
    }

    /// The next judged rows; None at the end.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        match self.runs.next()? {
            Next::End => Ok(None),
            Next::Run(verdicts, rollouts) => Ok(Some(self.put_together(&verdicts, &rollouts)?)),
            Next::Alone => Err(OperatorError::Internal(
                "the rollouts changed while they were read".to_owned(),
            )),
        }
    }

    fn put_together(
        &self,
        verdicts: &RecordBatch,
        rollouts: &RecordBatch,
    ) -> Result<RecordBatch, OperatorError> {
        let verdict_words = verdicts.column(2).as_string::<i64>();
        let judged: BooleanArray = (0..verdicts.num_rows())
            .map(|row| Some(judgement(verdict_words.value(row)).is_some()))
            .collect();
        // What is no judgement may be anything, and fails no expression.
        let (verdicts, rollouts) = if judged.true_count() == judged.len() {
            (verdicts.clone(), rollouts.clone())
        } else {
            (
                filter_record_batch(verdicts, &judged)?,
                filter_record_batch(rollouts, &judged)?,
            )
        };
        let rows = verdicts.num_rows();
        let column = |batch: &RecordBatch, name: &str| -> Result<ArrayRef, OperatorError> {
            let column = batch.column_by_name(name);
            column.cloned().ok_or_else(|| lost(name))
        };
        let measured: Result<Vec<ArrayRef>, OperatorError> = self
            .sources
            .measured_columns
            .iter()
            .map(|field| column(&rollouts, field.name()))
            .collect();
        let measured = measure(self.sources, rows, &measured?).map_err(|error| failed(&error))?;
        let places = self.prompts.as_ref().map(|prompts| prompts.of(&verdicts));
        let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
        for (place, name) in COLUMNS.into_iter().enumerate() {
            columns.push((name, Arc::clone(verdicts.column(place))));
        }
        if let Some(places) = &places {
            let there: BooleanArray = places.iter().map(|place| place.map(|_| true)).collect();
            columns.push((PROMPT, Arc::new(there)));
        }
        if !self.sources.joined.expressions.is_empty() {
            let arrays: Result<Vec<ArrayRef>, OperatorError> = self
                .sources
                .joined_here()
                .zip(self.sources.joined_from())
                .map(|(field, table)| match (table, &self.prompts, &places) {
                    (0, ..) => column(&verdicts, field.name()),
                    (1, ..) => column(&rollouts, field.name()),
                    (_, Some(prompts), Some(places)) => {
                        Ok(take(&column(&prompts.rows, field.name())?, places, None)?)
                    }
                    _ => Err(lost(field.name())),
                })
                .collect();
            let values = joined(self.sources, rows, Some(&measured), &arrays?);
            columns.push((JOINED, Arc::new(values.map_err(|error| failed(&error))?)));
        }
        columns.push((MEASURED, Arc::new(measured)));
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }
}

fn lost(name: &str) -> OperatorError {
    OperatorError::Internal(format!("column `{name}` was asked for and has not come"))
}

fn failed(error: &datafusion::error::DataFusionError) -> OperatorError {
    QueryError::run(error).into()
}
