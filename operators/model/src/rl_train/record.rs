//! The `rollouts` table of an RL stage: every answer of every step, with what became of it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use schemas::TableName;
use schemas::tables::TEXT;

use super::config::RlTrain;
use super::group::{Fate, Group, Rollout};
use super::kl::KlPlace;
use crate::prompt_rows::PromptRow;
use crate::rollout_rows::{Extras, RolloutRow, RolloutRows};

/// What the rollouts of a stage have in common.
#[derive(Clone, Debug)]
pub(super) struct Recorder<'a> {
    pub(super) config: &'a RlTrain,
    /// Digest of the model on the input port.
    pub(super) model: String,
    pub(super) rows: &'a [PromptRow],
}

impl RlTrain {
    fn has_kl_penalty(&self) -> bool {
        self.kl
            .as_ref()
            .is_some_and(|kl| kl.place == KlPlace::Reward)
    }

    /// The `rollouts` table with what training adds. An answer is named by the step that sampled it, the round, prompt and sample;
    /// one that waited in a buffer has a row for the step that sampled it and another one for the step that used it.
    pub(super) fn rollouts_schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> = TableName::Rollouts
            .schema()
            .fields()
            .iter()
            .cloned()
            .collect();
        let count = |name: &str| Field::new(name, DataType::Int64, false);
        let number = |name: &str| Field::new(name, DataType::Float64, true);
        let mut added = vec![
            // Step of training, from 1, that this row is about. The model of step N is the one on the input port after N - 1 steps.
            count("step"),
            // The step that sampled it; another one only for rollouts from the buffer.
            count("sampled_step"),
            // Round of sampling in that step, from 1.
            count("round"),
            // Steps with updates that the policy had behind it when it sampled.
            count("policy_version"),
            Field::new("verdict", TEXT, false),
            // Null where the verdict is no judgement.
            number("reward"),
        ];
        let parts = self.score.part_names();
        added.extend(parts.iter().map(|part| number(&format!("reward_{part}"))));
        if self.has_kl_penalty() {
            // What the divergence from the reference model adds to the reward; not in `reward`.
            added.push(number("kl_penalty"));
        }
        added.extend([
            // Null where the rollout was not learnt from in this step. The mean over its tokens where they differ.
            number("advantage"),
            // What became of it: `trained`, `masked` (no verdict), `truncated` (masked because it was cut off), `easy`, `hard`,
            // `too-few`, `buffered`, `stale`, `surplus`.
            Field::new("fate", TEXT, false),
        ]);
        fields.extend(added.into_iter().map(Arc::new));
        Arc::new(Schema::new(fields))
    }
}

impl Recorder<'_> {
    /// An answer as a row of the `rollouts` table.
    fn row<'r>(&'r self, group: &'r Group, rollout: &'r Rollout) -> RolloutRow<'r> {
        RolloutRow {
            prompt_id: &self.rows[group.row].prompt_id,
            sample: rollout.sample,
            text: &rollout.text,
            completion: &rollout.completion,
            prompt_tokens: group.prompt.token_ids.len(),
            model: &self.model,
            seed: group.origin.seed,
        }
    }

    /// The rows of a step.
    pub(super) fn batch(&self, step: u64, groups: &[&Group]) -> Result<RecordBatch, OperatorError> {
        let each: Vec<(&Group, &Rollout)> = groups
            .iter()
            .flat_map(|group| group.rollouts.iter().map(|rollout| (*group, rollout)))
            .collect();
        let mut table = RolloutRows::new(Extras::default());
        for (group, rollout) in &each {
            table.push(self.row(group, rollout))?;
        }
        let counts = |count: &dyn Fn(&Group) -> u64| -> ArrayRef {
            let counts = each.iter().map(|(group, _)| count(group).cast_signed());
            Arc::new(Int64Array::from_iter_values(counts))
        };
        let numbers = |number: &dyn Fn(&Rollout) -> Option<f64>| -> ArrayRef {
            let numbers = each.iter().map(|(_, rollout)| number(rollout));
            Arc::new(numbers.collect::<Float64Array>())
        };
        let texts = |text: &dyn Fn(&Group, &Rollout) -> &'static str| -> ArrayRef {
            let texts = each.iter().map(|(group, rollout)| text(group, rollout));
            Arc::new(LargeStringArray::from_iter_values(texts))
        };
        let mut columns = table.columns();
        columns.extend([
            counts(&|_| step),
            counts(&|group| group.origin.step),
            counts(&|group| u64::from(group.origin.round)),
            counts(&|group| group.origin.policy_version),
            texts(&|_, rollout| rollout.verdict.outcome.as_str()),
            numbers(&|rollout| Some(rollout.reward.as_ref()?.total)),
        ]);
        for part in 0..self.config.score.part_names().len() {
            columns.push(numbers(&|rollout| {
                Some(rollout.reward.as_ref()?.parts[part])
            }));
        }
        if self.config.has_kl_penalty() {
            columns.push(numbers(&|rollout| rollout.reward_kl));
        }
        columns.extend([
            numbers(&advantage),
            texts(&|group, rollout| self.fate(group, rollout)),
        ]);
        Ok(RecordBatch::try_new(
            self.config.rollouts_schema(),
            columns,
        )?)
    }

    fn fate(&self, group: &Group, rollout: &Rollout) -> &'static str {
        match group.fate {
            Fate::Trained if rollout.reward.is_none() => "masked",
            Fate::Trained if self.config.is_masked(rollout) => "truncated",
            fate => fate.as_str(),
        }
    }
}

fn advantage(rollout: &Rollout) -> Option<f64> {
    let values = &rollout.advantages;
    match values.as_slice() {
        [] => None,
        [one] => Some(*one),
        many => Some(many.iter().sum::<f64>() / many.len() as f64),
    }
}
