//! Deals the rollouts of a step out to its updates, and weighs their tokens.

use std::sync::Arc;

use engine_core::policy::{Loss, TrainSequence};
use engine_core::seed;

use super::aggregation::Extent;
use super::algorithms::Recipe;
use super::config::{Dealt, RlTrain};
use super::group::{Fate, Group, Rollout};
use crate::prompt_rows::PromptRow;
use crate::update::Labelled;

/// A rollout that is learnt from.
#[derive(Clone, Copy)]
struct Lesson<'a> {
    group: &'a Group,
    rollout: &'a Rollout,
}

/// Everything that the minibatches of a step depend on.
pub(super) struct Dealer<'a> {
    pub(super) config: &'a RlTrain,
    pub(super) recipe: &'a Recipe,
    pub(super) loss: Loss,
    pub(super) rows: &'a [PromptRow],
    pub(super) step_seed: u64,
}

impl Dealer<'_> {
    /// The minibatches of all epochs over a set of groups, one after the other. Those without anything to learn are left out.
    pub(super) fn minibatches(&self, groups: &[Group]) -> Vec<Vec<Labelled>> {
        let mut all = Vec::new();
        for epoch in 0..self.config.epochs {
            let dealt = self.deal(groups, epoch);
            all.extend(dealt.iter().map(|lessons| self.minibatch(lessons)));
        }
        all.retain(|minibatch| !minibatch.is_empty());
        all
    }

    /// What each update of an epoch learns from.
    fn deal<'g>(&self, groups: &'g [Group], epoch: u32) -> Vec<Vec<Lesson<'g>>> {
        let per_group = groups
            .iter()
            .filter(|group| group.fate == Fate::Trained)
            .map(lessons)
            .filter(|lessons| !lessons.is_empty());
        let units: Vec<Vec<Lesson<'g>>> = match self.config.minibatches {
            Dealt::Prompts => per_group.collect(),
            Dealt::Samples => per_group.flatten().map(|lesson| vec![lesson]).collect(),
        };
        if units.is_empty() {
            return Vec::new();
        }
        let updates = self.config.updates_per_rollout as usize;
        let order = if updates > 1 {
            let purpose = match epoch {
                0 => "minibatches".to_owned(),
                epoch => format!("minibatches of epoch {epoch}"),
            };
            seed::permutation(seed::derive(self.step_seed, &purpose), units.len())
        } else {
            (0..units.len()).collect()
        };
        order
            .chunks(units.len().div_ceil(updates))
            .map(|places| {
                let units = places.iter().flat_map(|place| &units[*place]);
                units.copied().collect()
            })
            .collect()
    }

    /// The sequences of an update. Weights are those of the update as a whole.
    fn minibatch(&self, lessons: &[Lesson<'_>]) -> Vec<Labelled> {
        let all = Extent {
            sequences: lessons.len(),
            tokens: lessons.iter().map(|lesson| lesson.rollout.tokens()).sum(),
        };
        let right = lessons.iter().filter(|lesson| lesson.rollout.is_right());
        let right_tokens: usize = right.map(|lesson| lesson.rollout.tokens()).sum();
        let labelled = lessons.iter().filter_map(|lesson| {
            let rollout = lesson.rollout;
            let imitation = if rollout.is_right() && self.config.imitation > 0.0 {
                self.config.imitation / right_tokens as f64
            } else {
                0.0
            };
            let sequence = TrainSequence {
                prompt: Arc::clone(&lesson.group.prompt),
                completion: rollout.completion.token_ids.clone(),
                token_weight: self.recipe.aggregation.token_weight(
                    rollout.tokens(),
                    all,
                    self.config.max_new_tokens,
                ),
                advantages: rollout
                    .advantages
                    .iter()
                    .map(|value| *value as f32)
                    .collect(),
                sampler_logprobs: rollout.base_logprobs().to_vec(),
                reference_logprobs: self.reference_logprobs(rollout),
                imitation_weight: imitation as f32,
                ..TrainSequence::default()
            };
            self.has_gradient(lesson.group, &sequence)
                .then(|| Labelled {
                    prompt_id: self.rows[lesson.group.row].prompt_id.clone(),
                    sequence,
                })
        });
        labelled.collect()
    }

    fn reference_logprobs(&self, rollout: &Rollout) -> Vec<f32> {
        match self.loss {
            Loss::Policy(loss) if loss.kl.is_some() => rollout.reference_logprobs.clone(),
            _ => Vec::new(),
        }
    }

    /// Whether a sequence changes the weights. One of a group without signal counts in the mean, and costs no pass.
    fn has_gradient(&self, group: &Group, sequence: &TrainSequence) -> bool {
        let Loss::Policy(loss) = self.loss else {
            return true;
        };
        let mut advantages = group
            .rollouts
            .iter()
            .flat_map(|rollout| &rollout.advantages);
        loss.kl.is_some()
            || loss.entropy_bonus > 0.0
            || sequence.imitation_weight > 0.0
            || advantages.any(|value| *value != 0.0)
    }
}

fn lessons(group: &Group) -> Vec<Lesson<'_>> {
    let rollouts = group.rollouts.iter();
    rollouts
        .filter(|rollout| !rollout.advantages.is_empty())
        .map(|rollout| Lesson { group, rollout })
        .collect()
}
