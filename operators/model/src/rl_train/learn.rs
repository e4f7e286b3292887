//! The learning half of a step: reference log-probabilities, advantages, minibatches, updates.

use std::sync::Arc;
use std::time::Instant;

use engine_core::policy::TrainSequence;
use engine_core::{OperatorError, StageIo};

use super::advantages::{penalties, set_advantages};
use super::figures::Updates;
use super::group::{Fate, Group, Rollout};
use super::kl::{KlPlace, logprobs};
use super::minibatch::Dealer;
use super::trainer::Trainer;
use crate::update::{StepPlan, optimizer_step};

/// An answer as a sequence whose log-probabilities are asked for.
fn bare_sequence(group: &Group, rollout: &Rollout) -> TrainSequence {
    TrainSequence {
        prompt: Arc::clone(&group.prompt),
        completion: rollout.completion.token_ids.clone(),
        ..TrainSequence::default()
    }
}

impl Trainer<'_> {
    /// Learns from the groups with the fate `trained`; without anything to learn, the weights stay as they are.
    pub(super) fn learn(
        &mut self,
        step: u64,
        groups: &mut [Group],
        io: &dyn StageIo,
    ) -> Result<Updates, OperatorError> {
        self.policy.release_generation();
        let started = Instant::now();
        self.fix_probabilities(groups, io)?;
        self.compare_with_reference(groups, io)?;
        self.clock.logprobs += started.elapsed();
        let mut trained: Vec<&mut Group> = groups
            .iter_mut()
            .filter(|group| group.fate == Fate::Trained)
            .collect();
        let config = self.config;
        set_advantages(
            &mut trained,
            self.recipe.advantage,
            config.kl.as_ref(),
            |rollout| config.is_masked(rollout),
        );
        self.update(step, groups, io)
    }

    /// Gives every group that is or will be learnt from the log-probabilities that its ratios are taken to, where they are not those
    /// of the sampler: before the first update, and so of the policy that sampled.
    fn fix_probabilities(
        &mut self,
        groups: &mut [Group],
        io: &dyn StageIo,
    ) -> Result<(), OperatorError> {
        if !self.config.samples_from_changed_logits() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let is_open = |group: &Group| {
            let mut rollouts = group.rollouts.iter();
            rollouts.any(|rollout| rollout.recomputed_logprobs.is_none())
        };
        let trained = groups
            .iter_mut()
            .filter(|group| group.fate == Fate::Trained);
        let open = trained.chain(&mut buffer).filter(|group| is_open(group));
        let done = self.recompute(open.collect(), io);
        self.buffer = buffer;
        done
    }

    /// Takes the log-probabilities of the policy as it is for those that ratios are taken to.
    pub(super) fn recompute(
        &mut self,
        groups: Vec<&mut Group>,
        io: &dyn StageIo,
    ) -> Result<(), OperatorError> {
        let sequences: Vec<TrainSequence> = groups
            .iter()
            .flat_map(|group| {
                let rollouts = group.rollouts.iter();
                rollouts.map(|rollout| bare_sequence(group, rollout))
            })
            .collect();
        if sequences.is_empty() {
            return Ok(());
        }
        let mut found = logprobs(&mut *self.policy, &sequences, io)?.into_iter();
        for group in groups {
            for rollout in &mut group.rollouts {
                rollout.recomputed_logprobs = found.next();
            }
        }
        Ok(())
    }

    /// Reference log-probabilities of the groups that are learnt from, and what they take off the reward.
    fn compare_with_reference(
        &mut self,
        groups: &mut [Group],
        io: &dyn StageIo,
    ) -> Result<(), OperatorError> {
        let (Some(kl), Some(reference)) = (&self.config.kl, &mut self.reference) else {
            return Ok(());
        };
        let trained = |group: &&mut Group| group.fate == Fate::Trained;
        let sequences: Vec<TrainSequence> = groups
            .iter()
            .filter(|group| group.fate == Fate::Trained)
            .flat_map(|group| {
                let rollouts = group.rollouts.iter();
                rollouts.map(|rollout| bare_sequence(group, rollout))
            })
            .collect();
        if sequences.is_empty() {
            return Ok(());
        }
        let found = reference.logprobs(&mut *self.policy, &sequences, io)?;
        let mut found = found.into_iter();
        for group in groups.iter_mut().filter(trained) {
            for rollout in &mut group.rollouts {
                rollout.reference_logprobs = found.next().unwrap_or_default();
                if kl.place == KlPlace::Loss || rollout.reward.is_none() {
                    continue;
                }
                let sum: f64 = penalties(rollout, kl.estimator()).sum();
                if !sum.is_finite() {
                    let message = format!("its divergence from the reference model is {sum}");
                    return Err(self.rows[group.row].fault(&message));
                }
                rollout.reward_kl = Some(-kl.coefficient * sum);
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        step: u64,
        groups: &[Group],
        io: &dyn StageIo,
    ) -> Result<Updates, OperatorError> {
        let started = Instant::now();
        let plan = StepPlan {
            step,
            loss: self.config.loss(&self.recipe),
            learning_rate: self.config.learning_rate_at(step),
        };
        let dealer = Dealer {
            config: self.config,
            recipe: &self.recipe,
            loss: plan.loss,
            rows: self.rows,
            step_seed: self.step_seed(step),
        };
        let mut updates = Updates::default();
        for minibatch in dealer.minibatches(groups) {
            updates.sequences += minibatch.len();
            let outcome = optimizer_step(&mut *self.policy, minibatch, &plan, io)?;
            if updates.count == 0 {
                updates.first = outcome.report;
            }
            updates.count += 1;
            updates.report.add(&outcome.report);
            updates.grad_norm = updates.grad_norm.max(outcome.grad_norm);
        }
        if updates.count > 0 {
            self.carried.own.policy_version += 1;
        }
        self.clock.update += started.elapsed();
        Ok(updates)
    }
}
