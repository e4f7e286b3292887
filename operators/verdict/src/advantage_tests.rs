use super::*;

/// Groups of rewards and what others' code makes of them, from `tests/golden/advantage/make.py`.
const GOLDEN: &str = include_str!("../../../tests/golden/advantage/groups.json");

#[derive(Deserialize)]
struct Golden {
    groups: Vec<Vec<f64>>,
    advantages: std::collections::BTreeMap<Advantage, Vec<Vec<f64>>>,
    statistics: Vec<[f64; 4]>,
    ranks: Vec<Vec<u32>>,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).unwrap()
}

/// Some groups of rewards without a random generator.
fn groups() -> Vec<Vec<f64>> {
    let mut state = 7_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 40
    };
    (0..500_u64)
        .map(|case| {
            (0..2 + case % 15)
                .map(|_| (next() % 4) as f64 * 0.5)
                .collect()
        })
        .collect()
}

#[test]
fn equals_the_code_of_others() {
    let golden = golden();
    for kind in Advantage::ALL {
        // verl adds 1e-8 to the variance of a batch, others 1e-6 or more to the deviation.
        let tolerance = match kind.normalised() {
            Normalised::MeanAndStd => 1e-5,
            _ => 1e-12,
        };
        let ours = kind.of_groups(&golden.groups);
        for (place, (ours, theirs)) in ours.iter().zip(&golden.advantages[&kind]).enumerate() {
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert!(
                    (ours - theirs).abs() < tolerance,
                    "{kind:?} {:?}: {ours} {theirs}",
                    golden.groups[place]
                );
            }
        }
    }
}

#[test]
fn statistics_and_ranks_equal_those_of_numpy_and_scipy() {
    let golden = golden();
    for (place, group) in golden.groups.iter().enumerate() {
        let ours = GroupStatistics::of(group);
        let ours = [ours.mean, ours.std, ours.lowest, ours.highest];
        for (ours, theirs) in ours.iter().zip(golden.statistics[place]) {
            assert!((ours - theirs).abs() < 1e-12, "{group:?}: {ours} {theirs}");
        }
        assert_eq!(group_ranks(group), golden.ranks[place]);
    }
}

#[test]
fn sums_to_zero_and_keeps_the_order_of_rewards() {
    for rewards in groups() {
        for kind in [Advantage::Grpo, Advantage::DrGrpo, Advantage::Rloo] {
            let advantages = kind.of_group(&rewards);
            assert!(advantages.iter().sum::<f64>().abs() < 1e-9);
            for (i, j) in (0..rewards.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                assert_eq!(rewards[i] < rewards[j], advantages[i] < advantages[j]);
            }
        }
    }
}

#[test]
fn shifting_all_rewards_changes_nothing_but_shares() {
    let shifted: Vec<Vec<f64>> = groups()
        .iter()
        .map(|rewards| rewards.iter().map(|reward| reward + 8.0).collect())
        .collect();
    for kind in Advantage::ALL {
        let (plain, shifted) = (kind.of_groups(&groups()), kind.of_groups(&shifted));
        let pairs = plain.iter().flatten().zip(shifted.iter().flatten());
        let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert_eq!(most < 1e-9, kind != Advantage::MaxRl, "{kind:?}: {most}");
    }
}

#[test]
fn a_batch_is_normalised_to_mean_0_and_deviation_1() {
    for kind in [
        Advantage::ReinforcePlusPlus,
        Advantage::ReinforcePlusPlusBaseline,
    ] {
        let mut spread = Spread::default();
        for value in kind.of_groups(&groups()).iter().flatten() {
            spread.add(*value);
        }
        assert!(spread.mean().abs() < 1e-9);
        assert!((spread.std() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn equal_rewards_give_exactly_zero() {
    for kind in Advantage::ALL {
        for group in [vec![0.1, 0.1, 0.1], vec![0.7]] {
            let batch = [group.clone(), group.clone()];
            let zeros = vec![vec![0.0; group.len()]; 2];
            assert_eq!(kind.of_groups(&batch), zeros, "{kind:?}");
        }
    }
    assert_eq!(Advantage::MaxRl.of_group(&[0.0, -1.0]), [0.0, -0.0]);
    assert!(Advantage::Grpo.of_groups(&[]).is_empty());
}

#[test]
fn a_group_teaches_only_when_answers_differ() {
    assert_eq!(group_signal(&[1.0, 0.0, 1.0]), GroupSignal::Mixed);
    assert_eq!(group_signal(&[1.0, 1.0]), GroupSignal::AllRight);
    assert_eq!(group_signal(&[0.0, 0.0]), GroupSignal::AllWrong);
    assert_eq!(group_signal(&[1.0]), GroupSignal::TooFew);
    assert_eq!(group_signal(&[]), GroupSignal::TooFew);
}
