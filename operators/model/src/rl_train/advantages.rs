//! Advantages of the groups of a step. What they are is defined in `operators-verdict`; here is what they are taken of.

use engine_core::policy::KlEstimator;
use operators_verdict::Advantage;

use super::algorithms::AdvantageRule;
use super::group::{Group, Rollout};
use super::kl::{Kl, KlPlace, estimate};

/// Sets the advantages of the rollouts that are learnt from: those with a reward, less those that `is_masked` leaves out of the loss,
/// whose rewards count nevertheless.
pub(super) fn set_advantages(
    groups: &mut [&mut Group],
    rule: AdvantageRule,
    kl: Option<&Kl>,
    is_masked: impl Fn(&Rollout) -> bool,
) {
    let in_reward = kl.filter(|kl| kl.place == KlPlace::Reward);
    match rule {
        AdvantageRule::Answers(advantage) => {
            let rewards = rewards_of(groups);
            for (group, values) in groups.iter_mut().zip(advantage.of_groups(&rewards)) {
                for (rollout, value) in usable(group).zip(values) {
                    rollout.advantages = vec![value];
                }
            }
        }
        AdvantageRule::Tokens { group_baseline } => {
            let rewards = rewards_of(groups);
            let first = if group_baseline {
                Advantage::DrGrpo.of_groups(&rewards)
            } else {
                rewards
            };
            for (group, values) in groups.iter_mut().zip(first) {
                for (rollout, value) in usable(group).zip(values) {
                    rollout.advantages = match in_reward {
                        Some(kl) => returns(rollout, kl),
                        None => vec![value; rollout.tokens()],
                    };
                }
            }
        }
    }
    for group in groups.iter_mut() {
        for rollout in &mut group.rollouts {
            if is_masked(rollout) {
                rollout.advantages.clear();
            }
        }
    }
    if let AdvantageRule::Tokens { .. } = rule {
        normalise_tokens(groups, in_reward.is_none());
    }
}

fn usable(group: &mut Group) -> impl Iterator<Item = &mut Rollout> {
    let rollouts = group.rollouts.iter_mut();
    rollouts.filter(|rollout| rollout.reward.is_some())
}

fn rewards_of(groups: &[&mut Group]) -> Vec<Vec<f64>> {
    groups
        .iter()
        .map(|group| {
            let rollouts = group.rollouts.iter();
            rollouts.filter_map(Rollout::total_reward).collect()
        })
        .collect()
}

/// For each token, the reward of the answer less the divergence of this token and all that follow.
fn returns(rollout: &Rollout, kl: &Kl) -> Vec<f64> {
    let reward = rollout.reward.as_ref().map_or(0.0, |reward| reward.total);
    let penalties = penalties(rollout, kl.estimator());
    let mut left = reward;
    let mut returns: Vec<f64> = penalties
        .rev()
        .map(|penalty| {
            left -= kl.coefficient * penalty;
            left
        })
        .collect();
    returns.reverse();
    returns
}

/// Mean and standard deviation over all tokens. `is_same` says that the tokens of an answer have one value.
fn normalise_tokens(groups: &mut [&mut Group], is_same: bool) {
    let taught = |group: &&mut Group| -> Vec<Vec<f64>> {
        let rollouts = group.rollouts.iter();
        rollouts.map(|rollout| rollout.advantages.clone()).collect()
    };
    let values: Vec<Vec<f64>> = groups.iter().flat_map(taught).collect();
    let mut normalised = Advantage::ReinforcePlusPlus.of_groups(&values).into_iter();
    for group in groups.iter_mut() {
        for rollout in &mut group.rollouts {
            rollout.advantages = normalised.next().unwrap_or_default();
            if is_same {
                rollout.advantages.truncate(1);
            }
        }
    }
}

/// Estimates of the divergence of each token from the reference model, at the policy that sampled.
pub(super) fn penalties(
    rollout: &Rollout,
    estimator: KlEstimator,
) -> impl DoubleEndedIterator<Item = f64> + '_ {
    let logprobs = rollout.base_logprobs();
    (0..logprobs.len().min(rollout.reference_logprobs.len())).map(move |token| {
        estimate(
            estimator,
            logprobs[token],
            rollout.reference_logprobs[token],
        )
    })
}
