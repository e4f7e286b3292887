//! Which rollouts may become examples, told from narrow columns alone: correct, ended by themselves, well-formed if asked.

use arrow::array::{Array, AsArray, BooleanBufferBuilder};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Float64Type, UInt32Type};
use engine_core::{OperatorError, StageIo};

use super::Distill;
use super::prompts::Prompts;
use super::samples::{Ranks, SampleSet};
use super::sources::Sources;
use crate::judged::judgement;
use crate::prompt_index::{Lookup, texts};

/// How a rollout ends that was not cut off.
const STOPPED: &str = "stop";

/// Rollouts that may become examples, in the order of the rows.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Which rows of the rollouts they are.
    pub(super) rows: BooleanBuffer,
    /// Prompt and sample of each.
    pub(super) pairs: Vec<(u32, u32)>,
    /// The reward of each, where rewards matter.
    pub(super) rewards: Vec<f64>,
    /// How many a prompt has.
    pub(super) by_prompt: Vec<u32>,
    /// Where each table of rollouts begins: among the rows and among the candidates.
    pub(super) starts: Vec<(usize, usize)>,
}

impl Candidates {
    /// Reads verdicts, scores and the narrow columns of the rollouts.
    pub(super) fn read(
        config: &Distill,
        prompts: &Prompts,
        io: &dyn StageIo,
    ) -> Result<Self, OperatorError> {
        let correct = correct(config, prompts, io)?;
        let ranks = Ranks::new(&correct);
        let rewards = if config.uses_scores() {
            rewards(prompts, &ranks, io)?
        } else {
            Vec::new()
        };
        let sources = Sources::of(io, "rollouts")?;
        let numbering = sources.numbering();
        let (session, tables) = sources.open(io)?;
        let mut seen = SampleSet::new(prompts.index.len());
        let mut rows = BooleanBufferBuilder::new(0);
        let mut found = Self {
            rows: BooleanBuffer::new_unset(0),
            pairs: Vec::new(),
            rewards: Vec::new(),
            by_prompt: vec![0; prompts.index.len()],
            starts: Vec::with_capacity(tables.len()),
        };
        let mut lookup = Lookup::default();
        for (source, table) in &tables {
            found.starts.push((rows.len(), found.pairs.len()));
            let query = format!("SELECT prompt_id, sample, finish_reason FROM {table}");
            for batch in session.stream(session.sql(&query)?) {
                if io.is_cancelled() {
                    return Err(OperatorError::Interrupted);
                }
                let batch = batch?;
                let ids = texts(&batch, "prompt_id", "rollouts")?;
                let samples = batch.column(1).as_primitive::<UInt32Type>();
                let reasons = texts(&batch, "finish_reason", "rollouts")?;
                for row in 0..batch.num_rows() {
                    let prompt = lookup.get(&prompts.index, ids.value(row));
                    let number = numbering.number(*source, samples.value(row))?;
                    let pair = prompt.map(|prompt| (prompt, number));
                    if let Some((prompt, sample)) = pair
                        && !seen.insert(prompt, sample)
                    {
                        return Err(named_twice("rollouts", ids.value(row)));
                    }
                    let pair = pair
                        .filter(|_| reasons.value(row) == STOPPED)
                        .and_then(|(prompt, sample)| {
                            Some(((prompt, sample), ranks.get(prompt, sample)?))
                        })
                        // Without a reward it cannot be compared with the others.
                        .filter(|(_, rank)| {
                            rewards.get(*rank).is_none_or(|reward| !reward.is_nan())
                        });
                    rows.append(pair.is_some());
                    let Some((pair, rank)) = pair else { continue };
                    found.pairs.push(pair);
                    found.by_prompt[pair.0 as usize] += 1;
                    if let Some(reward) = rewards.get(rank) {
                        found.rewards.push(*reward);
                    }
                }
            }
        }
        found.rows = rows.finish();
        Ok(found)
    }

    /// Those of a kind alone.
    pub(super) fn only(&self, kept: &[bool]) -> Self {
        let mut rows = BooleanBufferBuilder::new(self.rows.len());
        rows.append_n(self.rows.len(), false);
        let mut by_prompt = vec![0; self.by_prompt.len()];
        let mut pairs = Vec::new();
        let starts = (self.starts.iter())
            .map(|(row, number)| (*row, kept[..*number].iter().filter(|kept| **kept).count()));
        for ((row, pair), is_kept) in self.rows.set_indices().zip(&self.pairs).zip(kept) {
            if *is_kept {
                rows.set_bit(row, true);
                pairs.push(*pair);
                by_prompt[pair.0 as usize] += 1;
            }
        }
        Self {
            rows: rows.finish(),
            pairs,
            rewards: Vec::new(),
            by_prompt,
            starts: starts.collect(),
        }
    }
}

/// Samples with a correct verdict, of the prompts that are asked for.
fn correct(
    config: &Distill,
    prompts: &Prompts,
    io: &dyn StageIo,
) -> Result<SampleSet, OperatorError> {
    let sources = Sources::of(io, "verdicts")?;
    let numbering = sources.numbering();
    let (session, tables) = sources.open(io)?;
    let mut seen = SampleSet::new(prompts.index.len());
    let mut correct = SampleSet::new(prompts.index.len());
    let mut lookup = Lookup::default();
    for (source, table) in &tables {
        let query = format!("SELECT prompt_id, sample, verdict, format_ok FROM {table}");
        for batch in session.stream(session.sql(&query)?) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let ids = texts(&batch, "prompt_id", "verdicts")?;
            let samples = batch.column(1).as_primitive::<UInt32Type>();
            let verdicts = texts(&batch, "verdict", "verdicts")?;
            let well_formed = batch.column(3).as_boolean();
            for row in 0..batch.num_rows() {
                let Some(prompt) = lookup.get(&prompts.index, ids.value(row)) else {
                    continue;
                };
                let sample = numbering.number(*source, samples.value(row))?;
                if !seen.insert(prompt, sample) {
                    return Err(named_twice("verdicts", ids.value(row)));
                }
                let has_format =
                    !config.require_format || (well_formed.is_valid(row) && well_formed.value(row));
                let is_wanted = has_format && prompts.is_wanted(prompt);
                if is_wanted && judgement(verdicts.value(row)) == Some(true) {
                    correct.insert(prompt, sample);
                }
            }
        }
    }
    Ok(correct)
}

/// The reward of each correct sample by its rank; not a number for one that has none.
fn rewards(
    prompts: &Prompts,
    ranks: &Ranks<'_>,
    io: &dyn StageIo,
) -> Result<Vec<f64>, OperatorError> {
    let sources = Sources::of(io, "scores")?;
    let numbering = sources.numbering();
    let (session, tables) = sources.open(io)?;
    let mut rewards = vec![f64::NAN; ranks.len()];
    let mut lookup = Lookup::default();
    for (source, table) in &tables {
        let query = format!("SELECT prompt_id, sample, reward FROM {table}");
        for batch in session.stream(session.sql(&query)?) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let ids = texts(&batch, "prompt_id", "scores")?;
            let samples = batch.column(1).as_primitive::<UInt32Type>();
            let values = batch.column(2).as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                let number = numbering.number(*source, samples.value(row))?;
                let rank = lookup
                    .get(&prompts.index, ids.value(row))
                    .and_then(|prompt| ranks.get(prompt, number));
                if let Some(rank) = rank {
                    if !rewards[rank].is_nan() {
                        return Err(named_twice("scores", ids.value(row)));
                    }
                    rewards[rank] = if values.is_valid(row) {
                        values.value(row)
                    } else {
                        f64::NAN
                    };
                }
            }
        }
    }
    Ok(rewards)
}

/// Rollouts meet their verdicts by prompt and sample. The rollouts of a training stage have each pair in every step, and a
/// wrong answer would meet the verdict of a right one.
fn named_twice(port: &str, prompt: &str) -> OperatorError {
    OperatorError::Data(format!(
        "`{port}` has a sample of prompt `{prompt}` more than once in one table; connect each `rollout` stage and its verdicts as \
         inputs of their own, or choose one training step with a `sql` stage"
    ))
}
