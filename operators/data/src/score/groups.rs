//! The place of a rollout among those of its prompt: statistics, rank, advantages.
//!
//! The rows of a prompt come one after the other. Held in memory are those of the group that is open, no more; where an advantage is normalised
//! over the whole table, rows wait in a file until its last one is known.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use engine_core::OperatorError;
use operators_verdict::{Advantage, GroupStatistics, Normalised, Spread, group_ranks};

use super::names;

/// Columns of every group, in front of the advantages.
const STATISTICS: [(&str, DataType); 6] = [
    ("group_samples", DataType::UInt32),
    ("group_mean", DataType::Float64),
    ("group_std", DataType::Float64),
    ("group_min", DataType::Float64),
    ("group_max", DataType::Float64),
    ("group_rank", DataType::UInt32),
];

/// Where rows go.
pub(super) type Sink<'a> = dyn FnMut(RecordBatch) -> Result<(), OperatorError> + 'a;

/// Columns that groups add.
pub(super) fn fields(advantages: &[Advantage]) -> Vec<FieldRef> {
    let statistics = STATISTICS.into_iter();
    let advantages = advantages
        .iter()
        .map(|kind| (format!("advantage_{}", kind.column()), DataType::Float64));
    statistics
        .map(|(name, data_type)| (name.to_owned(), data_type))
        .chain(advantages)
        .map(|(name, data_type)| Arc::new(Field::new(name, data_type, false)))
        .collect()
}

/// Rows on their way.
pub(super) struct Groups<'a> {
    advantages: &'a [Advantage],
    /// Batches of which not every row has its group yet, in order.
    waiting: VecDeque<RecordBatch>,
    /// Values of the columns that are added, of the waiting rows whose group is complete.
    done: Vec<VecDeque<f64>>,
    open: OpenGroup,
    /// What is normalised over the table, by advantage.
    spreads: Vec<Spread>,
    waits: Option<Waiting>,
}

/// The group whose rows are coming.
#[derive(Default)]
struct OpenGroup {
    prompt: String,
    rewards: Vec<f64>,
}

/// Rows that wait in a file for the end of the table.
struct Waiting {
    path: PathBuf,
    writer: Option<FileWriter<BufWriter<File>>>,
}

impl<'a> Groups<'a> {
    /// None where nothing is asked for.
    pub(super) fn new(
        advantages: &'a [Advantage],
        scratch: &Path,
    ) -> Result<Option<Self>, OperatorError> {
        if advantages.is_empty() {
            return Ok(None);
        }
        let needs_table = |kind: &Advantage| kind.normalised() != Normalised::Not;
        let waits = advantages.iter().any(needs_table).then(|| Waiting {
            path: scratch.join("scored.arrow"),
            writer: None,
        });
        Ok(Some(Self {
            advantages,
            waiting: VecDeque::new(),
            done: vec![VecDeque::new(); STATISTICS.len() + advantages.len()],
            open: OpenGroup::default(),
            spreads: vec![Spread::default(); advantages.len()],
            waits,
        }))
    }

    /// Takes the next rows, and gives on those that are complete.
    pub(super) fn take(
        &mut self,
        batch: RecordBatch,
        sink: &mut Sink<'_>,
    ) -> Result<(), OperatorError> {
        let (ids, _) = names(&batch);
        let rewards = batch.column(2).as_primitive::<Float64Type>().values();
        for (row, reward) in rewards.iter().enumerate() {
            let prompt = ids.value(row);
            if prompt != self.open.prompt {
                self.close();
                self.open.prompt.replace_range(.., prompt);
            }
            self.open.rewards.push(*reward);
        }
        self.waiting.push_back(batch);
        self.give(sink)
    }

    /// Gives on all that is left.
    pub(super) fn finish(mut self, sink: &mut Sink<'_>) -> Result<(), OperatorError> {
        self.close();
        self.give(sink)?;
        let Some(mut waits) = self.waits.take() else {
            return Ok(());
        };
        let Some(mut writer) = waits.writer.take() else {
            return Ok(());
        };
        writer.finish()?;
        drop(writer);
        let file = File::open(&waits.path).map_err(|source| waits.failed(source))?;
        for batch in FileReader::try_new(BufReader::new(file), None)? {
            sink(self.normalised(&batch?)?)?;
        }
        Ok(())
    }

    /// Computes the group that is open.
    fn close(&mut self) {
        let rewards = std::mem::take(&mut self.open.rewards);
        if rewards.is_empty() {
            return;
        }
        let GroupStatistics {
            mean,
            std,
            lowest,
            highest,
        } = GroupStatistics::of(&rewards);
        let count = rewards.len();
        for (column, value) in self
            .done
            .iter_mut()
            .zip([count as f64, mean, std, lowest, highest])
        {
            column.extend(std::iter::repeat_n(value, count));
        }
        let (statistics, advantages) = self.done.split_at_mut(STATISTICS.len());
        let ranks = statistics.last_mut().expect("there are statistics");
        ranks.extend(group_ranks(&rewards).into_iter().map(f64::from));
        for ((kind, column), spread) in self
            .advantages
            .iter()
            .zip(advantages)
            .zip(&mut self.spreads)
        {
            let values = kind.of_group(&rewards);
            match kind.normalised() {
                Normalised::Not => {}
                Normalised::MeanAndStd => values.iter().for_each(|value| spread.add(*value)),
                Normalised::RewardStd => rewards.iter().for_each(|value| spread.add(*value)),
            }
            column.extend(values);
        }
        self.open.rewards = rewards;
        self.open.rewards.clear();
    }

    /// Gives on the batches whose rows all have their group.
    fn give(&mut self, sink: &mut Sink<'_>) -> Result<(), OperatorError> {
        while let Some(batch) = self.waiting.front() {
            let rows = batch.num_rows();
            if self.done[0].len() < rows {
                break;
            }
            let batch = self.waiting.pop_front().expect("it is there");
            let mut arrays = batch.columns().to_vec();
            let added = fields(self.advantages);
            for (field, values) in added.iter().zip(&mut self.done) {
                let values = values.drain(..rows);
                arrays.push(match field.data_type() {
                    DataType::UInt32 => {
                        let counts = values.map(|value| value as u32);
                        Arc::new(counts.collect::<UInt32Array>()) as ArrayRef
                    }
                    _ => Arc::new(values.collect::<Float64Array>()),
                });
            }
            let batch = RecordBatch::try_new(widened(&batch.schema(), added), arrays)?;
            match &mut self.waits {
                None => sink(batch)?,
                Some(waits) => waits.write(&batch)?,
            }
        }
        Ok(())
    }

    /// The second half of advantages that look at the whole table.
    fn normalised(&self, batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let mut arrays = batch.columns().to_vec();
        let first = arrays.len() - self.advantages.len();
        for ((kind, array), spread) in self
            .advantages
            .iter()
            .zip(&mut arrays[first..])
            .zip(&self.spreads)
        {
            if kind.normalised() != Normalised::Not {
                let values = array.as_primitive::<Float64Type>().values().iter();
                let values = values.map(|value| kind.in_batch(*value, spread));
                *array = Arc::new(Float64Array::from_iter_values(values));
            }
        }
        Ok(RecordBatch::try_new(batch.schema(), arrays)?)
    }
}

impl Waiting {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OperatorError> {
        if self.writer.is_none() {
            let file = File::create(&self.path).map_err(|source| self.failed(source))?;
            let writer = FileWriter::try_new(BufWriter::new(file), &batch.schema())?;
            self.writer = Some(writer);
        }
        let writer = self.writer.as_mut().expect("it has been opened");
        Ok(writer.write(batch)?)
    }

    fn failed(&self, source: std::io::Error) -> OperatorError {
        OperatorError::File {
            message: "cannot keep scored rows".to_owned(),
            path: self.path.clone(),
            source,
        }
    }
}

fn widened(schema: &Schema, added: Vec<FieldRef>) -> SchemaRef {
    let fields = schema.fields().iter().cloned().chain(added);
    Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>()))
}
