//! From what the query brings to rewards. What a reward is, is asked of `operators-verdict`.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, LargeStringArray,
    RecordBatch, StructArray, UInt32Array,
};
use arrow::datatypes::{Float64Type, Int64Type, SchemaRef};
use engine_core::OperatorError;
use operators_verdict::{Facts, Measured, Outcome, ScoreConfig, Verdict};

use super::functions::MEASURES;
use super::names;
use super::sources::{COLUMNS, JOINED, MEASURED, PROMPT, Sources};

/// Rewards of the rows of a batch, which are all judged.
pub(super) fn rewards(
    sources: &Sources,
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<RecordBatch, OperatorError> {
    let mut columns = vec![Arc::clone(batch.column(0)), Arc::clone(batch.column(1))];
    columns.extend(Rows::new(sources, batch).rewards()?);
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Judged rollouts, column by column.
struct Rows<'a> {
    config: &'a ScoreConfig,
    ids: &'a LargeStringArray,
    samples: &'a UInt32Array,
    verdicts: &'a LargeStringArray,
    formats: &'a BooleanArray,
    measured: Option<Measures<'a>>,
    /// Null where the prompt is missing.
    prompts: Option<&'a BooleanArray>,
    /// Values of SQL parts, with their places among all of them.
    sql: Vec<(usize, &'a Float64Array)>,
}

struct Measures<'a> {
    there: &'a StructArray,
    tokens: &'a Int64Array,
    truncated: &'a BooleanArray,
    repetition: &'a Float64Array,
    language: &'a Float64Array,
}

fn floats(columns: &StructArray, place: usize) -> &Float64Array {
    columns.column(place).as_primitive::<Float64Type>()
}

impl<'a> Rows<'a> {
    fn new(sources: &'a Sources, batch: &'a RecordBatch) -> Self {
        let (ids, samples) = names(batch);
        let column = |name| batch.column_by_name(name);
        let of_rollouts = column(MEASURED).map(AsArray::as_struct);
        let of_all = column(JOINED).map(AsArray::as_struct);
        let mut sql = Vec::new();
        for (columns, first, parts) in [
            (of_rollouts, MEASURES.len(), &sources.measured),
            (of_all, 0, &sources.joined),
        ] {
            let Some(columns) = columns else { continue };
            let places = parts.places.iter().enumerate();
            sql.extend(places.map(|(nth, place)| (*place, floats(columns, first + nth))));
        }
        Self {
            config: &sources.config,
            ids,
            samples,
            verdicts: batch.column(COLUMNS.len() - 2).as_string::<i64>(),
            formats: batch.column(COLUMNS.len() - 1).as_boolean(),
            measured: of_rollouts.map(|there| Measures {
                there,
                tokens: there.column(0).as_primitive::<Int64Type>(),
                truncated: there.column(1).as_boolean(),
                repetition: floats(there, 2),
                language: floats(there, 3),
            }),
            prompts: column(PROMPT).map(AsArray::as_boolean),
            sql,
        }
    }

    fn rewards(&self) -> Result<Vec<ArrayRef>, OperatorError> {
        let rows = self.ids.len();
        let parts_of_reward = self.config.part_names().len();
        let mut columns = vec![Vec::with_capacity(rows); 1 + parts_of_reward];
        let mut parts = Vec::with_capacity(parts_of_reward);
        let mut sql = vec![None; self.config.sql.len()];
        let mut verdict = Verdict {
            outcome: Outcome::Failed,
            extracted: None,
            format_ok: false,
        };
        for row in 0..rows {
            self.check_partners(row)?;
            verdict.outcome = outcome(self.verdicts.value(row));
            verdict.format_ok = self.formats.value(row);
            for (place, values) in &self.sql {
                sql[*place] = values.is_valid(row).then(|| values.value(row));
            }
            let (measured, truncated) = self.measured(row)?;
            let facts = Facts {
                verdict: &verdict,
                measured,
                truncated,
                sql: &sql,
            };
            let total = self
                .config
                .reward_into(&facts, &mut parts)
                .map_err(|error| self.failed(row, &format!(": {error}; {}", error.help())))?
                .expect("the query drops what is no judgement");
            columns[0].push(total);
            for (column, value) in columns[1..].iter_mut().zip(&parts) {
                column.push(*value);
            }
        }
        let columns = columns.into_iter().map(Float64Array::from);
        Ok(columns.map(|column| Arc::new(column) as ArrayRef).collect())
    }

    /// What is joined to a verdict must be there.
    fn check_partners(&self, row: usize) -> Result<(), OperatorError> {
        let measured = self.measured.as_ref();
        let (what, port) = if measured.is_some_and(|measured| measured.there.is_null(row)) {
            ("rollout", "rollouts")
        } else if self.prompts.is_some_and(|prompts| prompts.is_null(row)) {
            ("prompt", "prompts")
        } else {
            return Ok(());
        };
        let message =
            format!(" has a verdict and no {what}; connect the {port} that were verified");
        Err(self.failed(row, &message))
    }

    /// What was measured of a rollout, and whether it was cut off.
    fn measured(&self, row: usize) -> Result<(Measured, bool), OperatorError> {
        let Some(measures) = &self.measured else {
            return Ok((Measured::default(), false));
        };
        let has_tokens = measures.tokens.is_valid(row);
        if !has_tokens && self.config.needs_tokens() {
            let message = " has no token ids, since the server that wrote it tells none; leave `overlong`, `repetition` and `length` out";
            return Err(self.failed(row, message));
        }
        let measured = Measured {
            tokens: if has_tokens {
                measures.tokens.value(row) as usize
            } else {
                0
            },
            repetition: measures.repetition.value(row),
            language: measures.language.value(row),
        };
        Ok((measured, measures.truncated.value(row)))
    }

    /// A failure that names the row.
    fn failed(&self, row: usize, message: &str) -> OperatorError {
        let (id, sample) = (self.ids.value(row), self.samples.value(row));
        OperatorError::Data(format!("sample {sample} of prompt `{id}`{message}"))
    }
}

/// What a verdict says.
fn outcome(verdict: &str) -> Outcome {
    let mut all = Outcome::ALL.into_iter();
    let found = all.find(|outcome| outcome.as_str() == verdict);
    found.unwrap_or(Outcome::Failed)
}
