//! One step of reinforcement learning, without the model: verdicts, rewards, groups, advantages, sequences to learn from.

use std::sync::Arc;

use engine_core::policy::{TokenizedPrompt, TrainSequence};
use engine_core::{OperatorError, seed};
use operators_verdict::{Reward, ScoreConfig, Verdict, VerifyConfig};
use rayon::prelude::*;

use crate::advantage::{GroupSignal, group_advantages, group_signal, sequence_mean_weight};
use crate::prompt_rows::PromptRow;
use crate::sampling::Sampled;
use crate::update::Labelled;

/// A rollout of a step, judged.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) sampled: Sampled,
    pub(super) verdict: Verdict,
    /// None for a verdict that is no judgement: such a rollout is masked.
    pub(super) reward: Option<Reward>,
    /// Set for rollouts that are learnt from.
    pub(super) advantage: Option<f64>,
}

/// How many groups of a step are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupCounts {
    pub(super) kept: usize,
    pub(super) all_right: usize,
    pub(super) all_wrong: usize,
    pub(super) too_few: usize,
}

/// Verifies and scores rollouts, side by side.
pub(super) fn judge(
    rows: &[&PromptRow],
    sampled: Vec<Sampled>,
    verify: &VerifyConfig,
    score: &ScoreConfig,
) -> Result<Vec<Judged>, OperatorError> {
    let judged = sampled.into_par_iter().map(|sampled| {
        let verdict = verify.verdict(rows[sampled.prompt].gold()?, &sampled.text);
        let reward = score.reward(&verdict);
        Ok(Judged {
            sampled,
            verdict,
            reward,
            advantage: None,
        })
    });
    judged.collect()
}

/// Sets the advantages of the groups that teach. `judged` has the groups one after the other, `samples` rollouts each.
pub(super) fn compare_within_groups(judged: &mut [Judged], samples: usize) -> GroupCounts {
    let mut counts = GroupCounts::default();
    for group in judged.chunks_mut(samples) {
        let rewards: Vec<Reward> = group.iter().filter_map(|judged| judged.reward).collect();
        let accuracies: Vec<f64> = rewards.iter().map(|reward| reward.accuracy).collect();
        match group_signal(&accuracies) {
            GroupSignal::AllRight => counts.all_right += 1,
            GroupSignal::AllWrong => counts.all_wrong += 1,
            GroupSignal::TooFew => counts.too_few += 1,
            GroupSignal::Mixed => {
                counts.kept += 1;
                let totals: Vec<f64> = rewards.iter().map(|reward| reward.total).collect();
                let usable = group.iter_mut().filter(|judged| judged.reward.is_some());
                for (judged, advantage) in usable.zip(group_advantages(&totals)) {
                    judged.advantage = Some(advantage);
                }
            }
        }
    }
    counts
}

/// The rollouts to learn from, dealt out to `updates` minibatches in a random order. Each minibatch is weighted as the mean
/// over its sequences of the mean over their tokens. Minibatches without a sequence are left out.
pub(super) fn minibatches(
    judged: &[Judged],
    rows: &[&PromptRow],
    prompts: &[Arc<TokenizedPrompt>],
    updates: usize,
    step_seed: u64,
) -> Vec<Vec<Labelled>> {
    let taught: Vec<(&Judged, f64)> = judged
        .iter()
        .filter_map(|judged| Some((judged, judged.advantage?)))
        .collect();
    if taught.is_empty() {
        return Vec::new();
    }
    let order = if updates > 1 {
        seed::permutation(seed::derive(step_seed, "minibatches"), taught.len())
    } else {
        (0..taught.len()).collect()
    };
    let size = taught.len().div_ceil(updates);
    let minibatch = |places: &[usize]| {
        let labelled = places.iter().map(|place| {
            let (judged, advantage) = taught[*place];
            let completion = &judged.sampled.completion;
            Labelled {
                prompt_id: rows[judged.sampled.prompt].prompt_id.clone(),
                sequence: TrainSequence {
                    prompt: Arc::clone(&prompts[judged.sampled.prompt]),
                    completion: completion.token_ids.clone(),
                    token_weight: sequence_mean_weight(places.len(), completion.token_ids.len()),
                    advantage: advantage as f32,
                    sampler_logprobs: completion.logprobs.clone(),
                },
            }
        });
        labelled.collect()
    };
    order.chunks(size).map(minibatch).collect()
}
