//! A prompt with its judged answers, from sampling to learning.

use std::sync::Arc;

use engine_core::policy::{Completion, FinishReason, TokenizedPrompt};
use operators_verdict::{Outcome, Reward, Verdict};

use super::filter::{Counts, Signal};

/// Where a group was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The step that sampled it, from 1.
    pub(super) step: u64,
    /// The round of sampling in that step, from 1.
    pub(super) round: u32,
    /// Seed of the sampler.
    pub(super) seed: u64,
    /// Steps with updates before: the policy that sampled it.
    pub(super) policy_version: u64,
}

/// Answers to one prompt.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Index of the prompt among the rows of the stage.
    pub(super) row: usize,
    pub(super) prompt: Arc<TokenizedPrompt>,
    pub(super) origin: Origin,
    pub(super) fate: Fate,
    pub(super) rollouts: Vec<Rollout>,
}

/// An answer, judged.
#[derive(Clone, Debug)]
pub(super) struct Rollout {
    /// Index among the samples of the prompt.
    pub(super) sample: u32,
    pub(super) completion: Completion,
    pub(super) text: String,
    pub(super) verdict: Verdict,
    /// None for a verdict that is no judgement: such a rollout is masked.
    pub(super) reward: Option<Reward>,
    /// What the divergence from the reference model adds to the reward, where it is a part of it.
    pub(super) reward_kl: Option<f64>,
    /// Log-probabilities that ratios are taken to, where they are not those of the sampler.
    pub(super) recomputed_logprobs: Option<Vec<f32>>,
    /// Log-probabilities under the reference model, where it is used.
    pub(super) reference_logprobs: Vec<f32>,
    /// What is learnt: one for all tokens or one for each; empty for a rollout that is not learnt from.
    pub(super) advantages: Vec<f64>,
}

/// What became of a group in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Learnt from.
    Trained,
    /// Dropped: too many answers are right.
    Easy,
    /// Dropped: too few answers are right.
    Hard,
    /// Dropped: too few answers have a verdict.
    TooFew,
    /// Waits in the buffer.
    Buffered,
    /// Left the buffer unused.
    Stale,
    /// Left out of a set that was large enough.
    Surplus,
}

impl Fate {
    /// What becomes of a group that the filter does not keep; None for one that it keeps.
    pub(super) fn of_dropped(signal: Signal) -> Option<Self> {
        match signal {
            Signal::Kept => None,
            Signal::Easy => Some(Self::Easy),
            Signal::Hard => Some(Self::Hard),
            Signal::TooFew => Some(Self::TooFew),
        }
    }

    /// The text of the column `fate`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Easy => "easy",
            Self::Hard => "hard",
            Self::TooFew => "too-few",
            Self::Buffered => "buffered",
            Self::Stale => "stale",
            Self::Surplus => "surplus",
        }
    }
}

impl Rollout {
    pub(super) fn is_right(&self) -> bool {
        self.verdict.outcome == Outcome::Correct
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.completion.finish_reason == FinishReason::Length
    }

    /// Tokens of the answer.
    pub(super) fn tokens(&self) -> usize {
        self.completion.token_ids.len()
    }

    /// The log-probabilities that ratios are taken to.
    pub(super) fn base_logprobs(&self) -> &[f32] {
        self.recomputed_logprobs
            .as_deref()
            .unwrap_or(&self.completion.logprobs)
    }

    /// What advantages are taken of.
    pub(super) fn total_reward(&self) -> Option<f64> {
        let total = self.reward.as_ref()?.total;
        Some(self.reward_kl.map_or(total, |kl| total + kl))
    }
}

impl Group {
    /// Right answers, and answers with a verdict.
    pub(super) fn counts(&self) -> Counts {
        let usable = self
            .rollouts
            .iter()
            .filter(|rollout| rollout.reward.is_some());
        usable.fold(Counts::default(), |counts, rollout| Counts {
            usable: counts.usable + 1,
            right: counts.right + usize::from(rollout.is_right()),
        })
    }
}
