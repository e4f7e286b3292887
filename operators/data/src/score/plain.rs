//! Rewards that depend on verdicts alone: one pass over them, with the reward of each verdict computed once.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{cast, filter};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema, SchemaRef};
use engine_core::{OperatorError, StageIo};
use engine_query::narrow_rows;
use operators_verdict::{Facts, Measured, Outcome, Verdict};

use super::sources::{COLUMNS, Sources};

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, OperatorError>>>;

/// What no outcome has as its place: the verdict is null or of another name.
const NONE: u8 = Outcome::ALL.len() as u8;
/// Places of outcomes, [`NONE`] included, each with and without the required form.
const CODES: usize = 2 * (NONE as usize + 1);

/// Judged verdicts in their order, with their rewards.
pub(super) struct Plain {
    batches: Batches,
    /// Columns of what is given on.
    schema: SchemaRef,
    /// The reward and its parts by outcome and form; nothing for what is no judgement.
    rewards: [Option<Vec<f64>>; CODES],
    /// Whether names of prompts are given on as they come, which may be as a dictionary.
    takes_dictionaries: bool,
}

impl Plain {
    /// None where more than verdicts is read or computed, or where they are not on the local disk.
    pub(super) fn open(
        sources: &Sources,
        io: &dyn StageIo,
        takes_dictionaries: bool,
    ) -> Result<Option<Self>, OperatorError> {
        if sources.joins() || !sources.config.sql.is_empty() {
            return Ok(None);
        }
        let Some(batches) = narrow_rows(io, "verdicts", &COLUMNS)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            batches,
            schema: sources.schema(),
            rewards: rewards_of_outcomes(sources)?,
            takes_dictionaries,
        }))
    }

    /// The next rows, of which there may be none.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        match self.batches.next() {
            Some(batch) => self.scored(&batch?).map(Some),
            None => Ok(None),
        }
    }

    fn scored(&self, batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let formats = batch.column(3).as_boolean().values();
        let mut codes = outcomes(batch.column(2));
        for (code, format) in codes.iter_mut().zip(formats) {
            *code = 2 * *code + u8::from(format);
        }
        let is_judged = self.rewards.each_ref().map(Option::is_some);
        let judged = |row| is_judged[usize::from(codes[row])];
        let judged = BooleanArray::from(BooleanBuffer::collect_bool(codes.len(), judged));
        let mut names = [0, 1].map(|place| Arc::clone(batch.column(place)));
        if judged.true_count() < codes.len() {
            codes.retain(|code| is_judged[usize::from(*code)]);
            for column in &mut names {
                *column = filter(column, &judged)?;
            }
        }
        if !self.takes_dictionaries {
            names[0] = cast(&names[0], &DataType::LargeUtf8)?;
        }
        let mut columns = names.to_vec();
        for place in 0..self.schema.fields().len() - columns.len() {
            let reward = |reward: &Option<Vec<f64>>| reward.as_ref().map_or(0.0, |all| all[place]);
            let by_code = self.rewards.each_ref().map(reward);
            let values = codes.iter().map(|code| by_code[usize::from(*code)]);
            columns.push(Arc::new(Float64Array::from_iter_values(values)) as ArrayRef);
        }
        let schema = typed_as(&self.schema, &columns[0]);
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

/// The schema with the first column as it comes.
fn typed_as(schema: &SchemaRef, first: &ArrayRef) -> SchemaRef {
    let mut fields: Vec<FieldRef> = schema.fields().iter().cloned().collect();
    let field = Field::clone(&fields[0]).with_data_type(first.data_type().clone());
    fields[0] = Arc::new(field);
    Arc::new(Schema::new(fields))
}

fn rewards_of_outcomes(sources: &Sources) -> Result<[Option<Vec<f64>>; CODES], OperatorError> {
    let mut rewards = [const { None }; CODES];
    for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
        for format_ok in [false, true] {
            let verdict = Verdict {
                outcome,
                extracted: None,
                format_ok,
            };
            let facts = Facts {
                verdict: &verdict,
                measured: Measured::default(),
                truncated: false,
                sql: &[],
            };
            let reward = sources.config.reward(&facts);
            let reward = reward.map_err(|error| OperatorError::Internal(error.to_string()))?;
            rewards[2 * place + usize::from(format_ok)] = reward.map(|reward| {
                let total = std::iter::once(reward.total);
                total.chain(reward.parts).collect()
            });
        }
    }
    Ok(rewards)
}

/// The place of each verdict among all outcomes.
fn outcomes(verdicts: &ArrayRef) -> Vec<u8> {
    let place = |verdict: Option<&str>| {
        let is_it = |outcome: &Outcome| Some(outcome.as_str()) == verdict;
        let place = Outcome::ALL.iter().position(is_it);
        place.map_or(NONE, |place| place as u8)
    };
    let Some(dictionary) = verdicts.as_dictionary_opt::<Int32Type>() else {
        return verdicts.as_string::<i64>().iter().map(place).collect();
    };
    let by_key: Vec<u8> = dictionary
        .values()
        .as_string::<i64>()
        .iter()
        .map(place)
        .collect();
    let keys = dictionary.keys();
    if keys.null_count() == 0 {
        let keys = keys.values().iter();
        keys.map(|key| by_key[*key as usize]).collect()
    } else {
        let place = |key: Option<i32>| key.map_or(NONE, |key| by_key[key as usize]);
        keys.iter().map(place).collect()
    }
}
