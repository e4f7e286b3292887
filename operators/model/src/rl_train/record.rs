//! What an RL stage writes down: every rollout with its advantage, and the numbers of every step.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use engine_core::policy::{FinishReason, LossReport, TokenizedPrompt};
use operators_verdict::Reward;
use schemas::TableName;
use schemas::tables::TEXT;

use super::step::{GroupCounts, Judged};
use crate::prompt_rows::PromptRow;
use crate::rollout_rows::{Extras, RolloutRow, RolloutRows};

/// The `rollouts` table with what training adds. A rollout is named by step, prompt and sample.
pub(super) fn rollouts_schema() -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = TableName::Rollouts
        .schema()
        .fields()
        .iter()
        .cloned()
        .collect();
    fields.extend(
        [
            // Step of training, from 1. The model of step N is the one on the input port after N - 1 steps.
            Field::new("step", DataType::Int64, false),
            Field::new("verdict", TEXT, false),
            // Null where the verdict is no judgement.
            Field::new("reward", DataType::Float64, true),
            Field::new("reward_accuracy", DataType::Float64, true),
            Field::new("reward_format", DataType::Float64, true),
            // Null where the rollout was not learnt from: masked, or in a dropped group.
            Field::new("advantage", DataType::Float64, true),
        ]
        .map(Arc::new),
    );
    Arc::new(Schema::new(fields))
}

/// Where the rollouts of a step come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) step: u64,
    /// Digest of the model on the input port.
    pub(super) model: &'a str,
    pub(super) seed: u64,
}

/// The rollouts of a step.
pub(super) fn rollout_batch(
    origin: Origin<'_>,
    rows: &[&PromptRow],
    prompts: &[Arc<TokenizedPrompt>],
    judged: &[Judged],
) -> Result<RecordBatch, OperatorError> {
    let mut table = RolloutRows::new(Extras::default());
    for rollout in judged {
        let prompt = rollout.sampled.prompt;
        table.push(RolloutRow {
            prompt_id: &rows[prompt].prompt_id,
            sample: rollout.sampled.sample,
            text: &rollout.sampled.text,
            completion: &rollout.sampled.completion,
            prompt_tokens: prompts[prompt].token_ids.len(),
            model: origin.model,
            seed: origin.seed,
        })?;
    }
    let step = i64::try_from(origin.step).expect("steps are 32-bit numbers");
    let part = |part: fn(&Reward) -> f64| -> ArrayRef {
        Arc::new(
            judged
                .iter()
                .map(|rollout| rollout.reward.as_ref().map(part))
                .collect::<Float64Array>(),
        )
    };
    let mut columns = table.columns();
    columns.extend([
        Arc::new(Int64Array::from_value(step, judged.len())) as ArrayRef,
        Arc::new(LargeStringArray::from_iter_values(
            judged
                .iter()
                .map(|rollout| rollout.verdict.outcome.as_str()),
        )),
        part(|reward| reward.total),
        part(|reward| reward.accuracy),
        part(|reward| reward.format),
        Arc::new(
            judged
                .iter()
                .map(|rollout| rollout.advantage)
                .collect::<Float64Array>(),
        ),
    ]);
    Ok(RecordBatch::try_new(rollouts_schema(), columns)?)
}

/// What the updates of a step saw and did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Updates {
    pub(super) count: usize,
    pub(super) report: LossReport,
    /// Largest gradient norm of the updates.
    pub(super) grad_norm: f64,
}

/// Mean total reward of the usable rollouts; None when there is none.
pub(super) fn mean_reward(judged: &[Judged]) -> Option<f64> {
    mean(
        judged
            .iter()
            .filter_map(|rollout| rollout.reward)
            .map(|reward| reward.total),
    )
}

/// The numbers of a step. Those that have no value in a step, such as the loss of a step without signal, are left out.
pub(super) fn step_metrics(
    judged: &[Judged],
    groups: GroupCounts,
    updates: &Updates,
    learning_rate: f64,
) -> Vec<(&'static str, f64)> {
    let rewards: Vec<Reward> = judged.iter().filter_map(|rollout| rollout.reward).collect();
    let lengths = judged
        .iter()
        .map(|rollout| rollout.sampled.completion.token_ids.len() as f64);
    let truncated = judged
        .iter()
        .map(|rollout| share(rollout.sampled.completion.finish_reason == FinishReason::Length));
    let mut metrics = vec![
        ("groups_kept", groups.kept as f64),
        ("groups_all_right", groups.all_right as f64),
        ("groups_all_wrong", groups.all_wrong as f64),
        ("groups_too_few", groups.too_few as f64),
        ("updates", updates.count as f64),
        ("learning_rate", learning_rate),
        ("tokens", lengths.clone().sum::<f64>()),
    ];
    let mut optional =
        |name: &'static str, value: Option<f64>| metrics.extend(value.map(|value| (name, value)));
    optional("reward", mean_reward(judged));
    optional(
        "accuracy",
        mean(rewards.iter().map(|reward| reward.accuracy)),
    );
    optional("format", mean(rewards.iter().map(|reward| reward.format)));
    optional(
        "unusable",
        mean(judged.iter().map(|rollout| share(rollout.reward.is_none()))),
    );
    optional("completion_tokens", mean(lengths));
    optional("truncated", mean(truncated));
    if updates.count > 0 && updates.report.tokens > 0 {
        let report = &updates.report;
        let tokens = report.tokens as f64;
        metrics.extend([
            ("loss", report.loss / updates.count as f64),
            ("grad_norm", updates.grad_norm),
            ("entropy", report.entropy_sum / tokens),
            ("clip_low", report.clipped_low as f64 / tokens),
            ("clip_high", report.clipped_high as f64 / tokens),
            ("logprob_gap_mean", report.logprob_gap_sum / tokens),
            ("logprob_gap_max", report.logprob_gap_max),
        ]);
    }
    metrics
}

fn share(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_usize, 0.0), |(count, sum), value| {
        (count + 1, sum + value)
    });
    (count > 0).then(|| sum / count as f64)
}
