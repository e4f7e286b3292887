//! The candidates of each prompt with their texts and tokens, prompt after prompt in the order of the prompts.
//!
//! The rows of a prompt mostly follow each other, in the order of the prompts, and then hardly anything is held. Where they lie
//! elsewhere, rows wait until those before them have come; when too many wait, those of the last prompts are given up and read
//! once more. So memory is bounded whatever the order, and only disorder costs time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use engine_core::{OperatorError, StageIo};

use super::candidates::Candidates;
use super::sources::Sources;

/// Bytes of rows that wait.
const HELD_BYTES: usize = 256 << 20;
/// Rows of a batch into which waiting rows are brought together.
const BATCH_ROWS: usize = 4096;

/// A candidate with its columns.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Number among the candidates.
    pub(super) number: usize,
    pub(super) sample: u32,
    /// Text, token ids and model.
    pub(super) batch: Arc<RecordBatch>,
    /// Place in the batch.
    pub(super) place: usize,
}

/// Rows that wait until all of their prompt, and all prompts before, are there.
#[derive(Debug, Default)]
struct Held {
    prompts: BTreeMap<u32, Vec<Row>>,
    rows: usize,
    bytes: usize,
}

/// Gives the candidates of each prompt that has some to `take`, sorted by sample.
pub(super) fn each_prompt(
    candidates: &Candidates,
    io: &mut dyn StageIo,
    mut take: impl FnMut(&mut dyn StageIo, u32, Vec<Row>) -> Result<(), OperatorError>,
) -> Result<(), OperatorError> {
    each_prompt_within(HELD_BYTES, candidates, io, &mut take)
}

fn each_prompt_within(
    most: usize,
    candidates: &Candidates,
    io: &mut dyn StageIo,
    take: &mut impl FnMut(&mut dyn StageIo, u32, Vec<Row>) -> Result<(), OperatorError>,
) -> Result<(), OperatorError> {
    let (session, tables) = Sources::of(io, "rollouts")?.open(io)?;
    let count = candidates.by_prompt.len() as u32;
    let mut next = 0;
    while next < count {
        // Prompts up to here are looked at in this round.
        let mut end = count;
        let start = next;
        let mut held = Held::default();
        let mut readers = Vec::with_capacity(tables.len());
        for ((_, table), (row, number)) in tables.iter().zip(&candidates.starts) {
            let columns = session.sql(&format!("SELECT text, token_ids, model FROM {table}"))?;
            readers.push(Reader {
                batches: session.stream(columns),
                row: *row,
                number: *number,
                reached: 0,
            });
        }
        // Tables in the same order are read side by side, so that little of one waits for another.
        while let Some((at, reader)) =
            (readers.iter_mut().enumerate()).min_by_key(|(_, reader)| reader.reached)
        {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let Some(batch) = reader.batches.next() else {
                readers.remove(at);
                continue;
            };
            let batch = batch?;
            let mask = candidates.rows.slice(reader.row, batch.num_rows());
            reader.row += batch.num_rows();
            let wanted = mask.count_set_bits();
            if wanted == 0 {
                continue;
            }
            let batch = Arc::new(filter_record_batch(&batch, &BooleanArray::new(mask, None))?);
            let number = reader.number;
            reader.number += wanted;
            let pairs = &candidates.pairs[number..number + wanted];
            reader.reached = pairs.last().map_or(0, |(prompt, _)| *prompt);
            held.add(&batch, pairs, number, start..end);
            next = held.give(candidates, next..end, io, take)?;
            if held.bytes > most && held.prompts.len() > 1 {
                end = held.give_up()?;
            }
        }
        next = held.give(candidates, next..end, io, take)?;
        if next < end {
            return Err(OperatorError::Internal(
                "the rollouts have other rows than when they were first read".to_owned(),
            ));
        }
    }
    Ok(())
}

/// A table of rollouts that is read.
struct Reader<Batches> {
    batches: Batches,
    /// Rows before the next batch, in all tables.
    row: usize,
    /// Candidates before the next batch, in all tables.
    number: usize,
    /// The prompt of its last row.
    reached: u32,
}

impl Held {
    fn add(
        &mut self,
        batch: &Arc<RecordBatch>,
        pairs: &[(u32, u32)],
        first: usize,
        prompts: std::ops::Range<u32>,
    ) {
        let before = self.rows;
        for (place, (prompt, sample)) in pairs.iter().enumerate() {
            if prompts.contains(prompt) {
                self.prompts.entry(*prompt).or_default().push(Row {
                    number: first + place,
                    sample: *sample,
                    batch: Arc::clone(batch),
                    place,
                });
                self.rows += 1;
            }
        }
        if self.rows > before {
            self.bytes += batch.get_array_memory_size();
        }
    }

    /// Gives away the prompts that are complete, in their order, and returns the first that is not.
    fn give(
        &mut self,
        candidates: &Candidates,
        prompts: std::ops::Range<u32>,
        io: &mut dyn StageIo,
        take: &mut impl FnMut(&mut dyn StageIo, u32, Vec<Row>) -> Result<(), OperatorError>,
    ) -> Result<u32, OperatorError> {
        for prompt in prompts.clone() {
            let expected = candidates.by_prompt[prompt as usize] as usize;
            if expected == 0 {
                continue;
            }
            let Some(first) = self.prompts.first_entry() else {
                return Ok(prompt);
            };
            if *first.key() != prompt || first.get().len() < expected {
                return Ok(prompt);
            }
            let mut rows = first.remove();
            rows.sort_unstable_by_key(|row| row.sample);
            self.bytes -= (self.bytes / self.rows * rows.len()).min(self.bytes);
            self.rows -= rows.len();
            take(io, prompt, rows)?;
        }
        if self.rows == 0 {
            self.bytes = 0;
        }
        Ok(prompts.end)
    }

    /// Lets go of the later half of the rows and returns the first prompt that is gone.
    fn give_up(&mut self) -> Result<u32, OperatorError> {
        let mut rows = 0;
        let mut cut = None;
        for (place, (prompt, held)) in self.prompts.iter().enumerate() {
            // One prompt stays, whatever its size.
            if place > 0 && (rows + held.len()) * 2 > self.rows {
                cut = Some(*prompt);
                break;
            }
            rows += held.len();
        }
        let cut = cut.ok_or_else(|| OperatorError::Internal("no prompt waits".to_owned()))?;
        self.prompts.split_off(&cut);
        self.gather()?;
        Ok(cut)
    }

    /// Brings the rows together in batches of their own, so that no other rows stay in memory with them.
    fn gather(&mut self) -> Result<(), OperatorError> {
        let mut rows: Vec<&mut Row> = self.prompts.values_mut().flatten().collect();
        (self.rows, self.bytes) = (rows.len(), 0);
        for chunk in rows.chunks_mut(BATCH_ROWS) {
            let chosen: Vec<(Arc<RecordBatch>, usize)> = chunk
                .iter()
                .map(|row| (Arc::clone(&row.batch), row.place))
                .collect();
            let gathered = Arc::new(gathered(&chosen)?);
            self.bytes += gathered.get_array_memory_size();
            for (place, row) in chunk.iter_mut().enumerate() {
                row.batch = Arc::clone(&gathered);
                row.place = place;
            }
        }
        Ok(())
    }
}

/// Rows of several batches as one.
pub(super) fn gathered(rows: &[(Arc<RecordBatch>, usize)]) -> Result<RecordBatch, OperatorError> {
    let mut batches: Vec<&RecordBatch> = Vec::new();
    let mut known: HashMap<*const RecordBatch, usize> = HashMap::new();
    let mut places = Vec::with_capacity(rows.len());
    for (batch, place) in rows {
        let number = *known.entry(Arc::as_ptr(batch)).or_insert_with(|| {
            batches.push(batch);
            batches.len() - 1
        });
        places.push((number, *place));
    }
    Ok(interleave_record_batch(&batches, &places)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::buffer::BooleanBuffer;
    use engine_core::seed::permutation;

    use super::*;
    use crate::testing::{TestIo, rollouts};

    /// Texts by prompt, as they are given, and the bytes that may wait.
    fn given(order: &[usize], most: usize) -> Vec<(u32, Vec<String>)> {
        let rows: Vec<(String, u32, String)> = order
            .iter()
            .map(|row| {
                let (prompt, sample) = (row / 4, row % 4);
                (
                    format!("p{prompt}"),
                    sample as u32,
                    format!("text {prompt} {sample}"),
                )
            })
            .collect();
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.0.as_str(), row.1, row.2.as_str()))
            .collect();
        let batch = rollouts(&rows);
        let mut io = TestIo::new();
        let parts: Vec<RecordBatch> = (0..rows.len())
            .step_by(50)
            .map(|start| batch.slice(start, 50.min(rows.len() - start)))
            .collect();
        io.input("rollouts", &parts);
        // Sample 3 of every prompt and all of every fifth are not wanted.
        let is_wanted = |row: &usize| row % 4 != 3 && !(row / 4).is_multiple_of(5);
        let wanted: Vec<usize> = order.iter().copied().filter(is_wanted).collect();
        let mut by_prompt = vec![0; order.len() / 4];
        for row in &wanted {
            by_prompt[row / 4] += 1;
        }
        let candidates = Candidates {
            rows: BooleanBuffer::from_iter(order.iter().map(is_wanted)),
            pairs: wanted
                .iter()
                .map(|row| ((row / 4) as u32, (row % 4) as u32))
                .collect(),
            rewards: Vec::new(),
            by_prompt,
            starts: vec![(0, 0)],
        };
        let mut found = Vec::new();
        let mut take = |_: &mut dyn StageIo, prompt: u32, rows: Vec<Row>| {
            for row in &rows {
                assert_eq!(candidates.pairs[row.number], (prompt, row.sample));
            }
            let texts = rows.iter().map(|row| {
                let texts = row.batch.column(0).as_string::<i64>();
                texts.value(row.place).to_owned()
            });
            found.push((prompt, texts.collect()));
            Ok(())
        };
        each_prompt_within(most, &candidates, &mut io, &mut take).unwrap();
        found
    }

    #[test]
    fn any_order_and_any_memory_give_the_same() {
        let rows: Vec<usize> = (0..400).collect();
        let expected = given(&rows, usize::MAX);
        assert_eq!(expected.len(), 80);
        assert_eq!(expected[0].0, 1);
        assert_eq!(expected[0].1, ["text 1 0", "text 1 1", "text 1 2"]);
        let shuffled = permutation(1, 400);
        let reversed: Vec<usize> = (0..400).rev().collect();
        let by_sample: Vec<usize> = (0..400).map(|row| row % 100 * 4 + row / 100).collect();
        for order in [&rows, &shuffled, &reversed, &by_sample] {
            for most in [0, 5_000, usize::MAX] {
                assert!(given(order, most) == expected, "{most}");
            }
        }
    }
}
