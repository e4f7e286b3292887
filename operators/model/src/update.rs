//! One optimizer step: gradients of all its sequences, then one update.

use std::ops::Range;

use engine_core::policy::{Loss, LossReport, TrainSequence};
use engine_core::{ModelError, OperatorError, Policy, StageIo};

use crate::sampling::{check_cancelled, interruption};

/// Tokens given to the policy at a time, which packs them into forward passes by itself. Between two calls the stage looks
/// whether it was asked to stop, and an error names the prompts of one call.
const TOKENS_PER_CALL: usize = 65_536;

/// Prompt ids named in an error.
const NAMED_PROMPTS: usize = 8;

/// A sequence to learn from, and the prompt that an error names.
#[derive(Clone, Debug)]
pub(crate) struct Labelled {
    pub(crate) prompt_id: String,
    pub(crate) sequence: TrainSequence,
}

impl Labelled {
    fn tokens(&self) -> usize {
        self.sequence.prompt.token_ids.len() + self.sequence.completion.len()
    }
}

/// When and how one optimizer step is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepPlan {
    /// Step of the stage, counted from 1, for errors.
    pub(crate) step: u64,
    pub(crate) loss: Loss,
    pub(crate) learning_rate: f64,
}

/// What one optimizer step saw and did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepOutcome {
    pub(crate) report: LossReport,
    pub(crate) grad_norm: f64,
}

/// Accumulates the gradients of all sequences, then steps the optimizer once.
///
/// # Errors
/// When the loss or the gradient is not finite: the message names step and prompts, and the weights are as before.
pub(crate) fn optimizer_step(
    policy: &mut dyn Policy,
    labelled: Vec<Labelled>,
    plan: &StepPlan,
    io: &dyn StageIo,
) -> Result<StepOutcome, OperatorError> {
    let lengths: Vec<usize> = labelled.iter().map(Labelled::tokens).collect();
    let (prompt_ids, sequences): (Vec<String>, Vec<TrainSequence>) = labelled
        .into_iter()
        .map(|labelled| (labelled.prompt_id, labelled.sequence))
        .unzip();
    let mut total = LossReport::default();
    for range in runs(&lengths, TOKENS_PER_CALL) {
        check_cancelled(io)?;
        let named = |error| name_rows(error, plan.step, &prompt_ids[range.clone()]);
        let report = policy
            .forward_backward(&sequences[range.clone()], plan.loss)
            .map_err(named)?;
        if !report.loss.is_finite() {
            return Err(name_rows(
                ModelError::NonFinite(format!("loss {}", report.loss)),
                plan.step,
                &prompt_ids[range],
            ));
        }
        total.add(&report);
    }
    let step = policy
        .optimizer_step(plan.learning_rate)
        .map_err(|error| name_rows(error, plan.step, &prompt_ids))?;
    Ok(StepOutcome {
        report: total,
        grad_norm: step.grad_norm,
    })
}

/// Cuts sequences, in their order, into runs of at most `limit` tokens. A longer sequence is a run of its own.
pub(crate) fn runs(lengths: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, length) in lengths.iter().enumerate() {
        if index > start && tokens + length > limit {
            runs.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += length;
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

fn name_rows(error: ModelError, step: u64, prompt_ids: &[String]) -> OperatorError {
    let ModelError::NonFinite(what) = error else {
        return interruption(error);
    };
    let mut names: Vec<&str> = prompt_ids.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(NAMED_PROMPTS);
    let mut listed = names
        .into_iter()
        .take(NAMED_PROMPTS)
        .collect::<Vec<_>>()
        .join(", ");
    if more > 0 {
        listed.push_str(&format!(" and {more} more"));
    }
    OperatorError::Model(ModelError::NonFinite(format!(
        "{what} at step {step}, prompts {listed}; try a lower learning rate"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stay_within_the_limit_and_cover_everything_once() {
        assert_eq!(runs(&[10, 9, 8, 3, 3, 3], 20), [0..2, 2..6]);
        assert_eq!(runs(&[50, 9], 20), [0..1, 1..2]);
        assert_eq!(runs(&[5, 5, 5], 100).len(), 1);
        assert!(runs(&[], 100).is_empty());
    }
}
