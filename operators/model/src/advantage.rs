//! Group-relative advantages and loss weights. Pure functions.

/// Added to the standard deviation, so that nearly equal rewards do not give huge advantages.
pub const STD_EPSILON: f64 = 1e-6;

/// What the usable answers to one prompt say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSignal {
    /// Some answers are right and some are not: the group teaches.
    Mixed,
    /// Every answer is right.
    AllRight,
    /// No answer is right.
    AllWrong,
    /// Fewer than two answers could be judged.
    TooFew,
}

/// Signal of a group, by the accuracy of each of its usable answers: 1 right, 0 wrong.
#[must_use]
pub fn group_signal(accuracies: &[f64]) -> GroupSignal {
    let right = accuracies
        .iter()
        .filter(|accuracy| **accuracy > 0.0)
        .count();
    match accuracies.len() {
        0 | 1 => GroupSignal::TooFew,
        _ if right == 0 => GroupSignal::AllWrong,
        answers if right == answers => GroupSignal::AllRight,
        _ => GroupSignal::Mixed,
    }
}

/// `(reward - mean) / (std + STD_EPSILON)` within a group, with Bessel's correction in the standard deviation.
/// Equal rewards give 0.
///
/// # Source
/// `DeepSeekMath` (arXiv 2402.03300), section 4.1.2; the correction is that of `torch.std`.
#[must_use]
pub fn group_advantages(rewards: &[f64]) -> Vec<f64> {
    // Compared, not computed: the mean of equal numbers can differ from them in the last bit.
    if rewards.windows(2).all(|pair| pair[0] == pair[1]) {
        return vec![0.0; rewards.len()];
    }
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let std = (squares / (count - 1.0)).sqrt();
    rewards
        .iter()
        .map(|reward| (reward - mean) / (std + STD_EPSILON))
        .collect()
}

/// Weight of each token so that the loss is the mean over sequences of the mean over their tokens.
#[must_use]
pub fn sequence_mean_weight(sequences: usize, tokens_of_sequence: usize) -> f32 {
    (1.0 / (sequences as f64 * tokens_of_sequence as f64)) as f32
}

/// Weight of each token so that the loss is the mean over all tokens.
#[must_use]
pub fn token_mean_weight(tokens: usize) -> f32 {
    (1.0 / tokens as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rewards and their advantages from `tests/golden/advantage/make.py`.
    const GOLDEN: &str = include_str!("../../../tests/golden/advantage/groups.json");

    #[derive(serde::Deserialize)]
    struct Case {
        rewards: Vec<f64>,
        advantages: Vec<f64>,
    }

    /// Some groups of rewards without a random generator.
    fn groups() -> impl Iterator<Item = Vec<f64>> {
        (0..500_u64).map(|case| {
            let length = 2 + case % 15;
            (0..length)
                .map(|index| (engine_core::seed::derive(case, &index.to_string()) % 4) as f64 * 0.5)
                .collect()
        })
    }

    #[test]
    fn equals_numpy() {
        let cases: Vec<Case> = serde_json::from_str(GOLDEN).unwrap();
        for case in cases {
            for (ours, theirs) in group_advantages(&case.rewards).iter().zip(&case.advantages) {
                assert!(
                    (ours - theirs).abs() < 1e-12,
                    "{:?}: {ours} {theirs}",
                    case.rewards
                );
            }
        }
    }

    #[test]
    fn sums_to_zero_and_keeps_the_order_of_rewards() {
        for rewards in groups() {
            let advantages = group_advantages(&rewards);
            assert!(advantages.iter().sum::<f64>().abs() < 1e-9);
            for (i, j) in (0..rewards.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                assert_eq!(rewards[i] < rewards[j], advantages[i] < advantages[j]);
            }
        }
    }

    #[test]
    fn shifting_all_rewards_changes_nothing() {
        for rewards in groups() {
            let shifted: Vec<f64> = rewards.iter().map(|reward| reward + 8.0).collect();
            for (a, b) in group_advantages(&rewards)
                .iter()
                .zip(group_advantages(&shifted))
            {
                assert!((a - b).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn equal_rewards_give_exactly_zero() {
        assert_eq!(group_advantages(&[0.1, 0.1, 0.1]), [0.0, 0.0, 0.0]);
        assert_eq!(group_advantages(&[0.7]), [0.0]);
    }

    #[test]
    fn a_group_teaches_only_when_answers_differ() {
        assert_eq!(group_signal(&[1.0, 0.0, 1.0]), GroupSignal::Mixed);
        assert_eq!(group_signal(&[1.0, 1.0]), GroupSignal::AllRight);
        assert_eq!(group_signal(&[0.0, 0.0]), GroupSignal::AllWrong);
        assert_eq!(group_signal(&[1.0]), GroupSignal::TooFew);
        assert_eq!(group_signal(&[]), GroupSignal::TooFew);
    }
}
