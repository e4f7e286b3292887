//! Loss, weights and advantages of each algorithm, by values computed by hand.
//!
//! The answers of a group have the rewards 1.5, 0.5, 0 and 1.5: mean 0.875, deviation with Bessel's correction 0.75.

use engine_core::policy::{
    KlEstimator, KlPenalty, Loss, PolicyLoss, RatioLevel, Surrogate, TrainSequence,
};
use serde_json::{Value, json};

use super::*;
use crate::test_support::{Call, FakeBackend, run};

/// What was learnt from one prompt in the order of its four answers, and with which loss.
fn learnt(changes: &Value) -> (Vec<TrainSequence>, Loss) {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG, PLAIN]));
    run(&rl_train(changes), &backend, &mut one_prompt()).unwrap();
    let mut passes = backend.calls().into_iter().filter_map(|call| match call {
        Call::ForwardBackward(sequences, loss) => Some((sequences, loss)),
        _ => None,
    });
    let pass = passes.next().expect("something is learnt");
    assert!(passes.next().is_none());
    assert_eq!(pass.0.len(), 4);
    pass
}

fn clipped(clip_low: f64, clip_high: f64, level: RatioLevel) -> Surrogate {
    Surrogate::Clipped {
        clip_low,
        clip_high,
        level,
        ratio_cap: None,
        dual_clip: None,
    }
}

fn plain(surrogate: Surrogate) -> Loss {
    Loss::Policy(PolicyLoss {
        surrogate,
        kl: None,
        entropy_bonus: 0.0,
    })
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 1e-5,
            "{what}: {found} instead of {expected}"
        );
    }
}

fn check(changes: &Value, loss: Loss, advantages: [f64; 4], weight: impl Fn(usize, usize) -> f64) {
    let (sequences, found) = learnt(changes);
    assert_eq!(found, loss, "{changes}");
    let all: usize = sequences
        .iter()
        .map(|sequence| sequence.completion.len())
        .sum();
    for (sequence, advantage) in sequences.iter().zip(advantages) {
        let what = changes.to_string();
        assert_close(&sequence.advantages, &[advantage], &what);
        let expected = weight(sequence.completion.len(), all);
        assert_close(&[sequence.token_weight], &[expected], &what);
        assert_eq!(sequence.sampler_logprobs.len(), sequence.completion.len());
        assert_eq!(sequence.imitation_weight, 0.0);
        assert!(sequence.reference_logprobs.is_empty());
    }
}

/// (r - 0.875) / 0.75.
const NORMALISED: [f64; 4] = [0.833_333, -0.5, -1.166_666, 0.833_333];

#[test]
fn dapo_is_the_mean_over_all_tokens_with_a_higher_upper_clip() {
    let loss = plain(clipped(0.2, 0.28, RatioLevel::Token));
    let settings = json!({"algorithm": {"dapo": {}}});
    check(&settings, loss, NORMALISED, |_, all| 1.0 / all as f64);
}

#[test]
fn dr_grpo_divides_neither_by_the_deviation_nor_by_the_length() {
    let loss = plain(clipped(0.2, 0.2, RatioLevel::Token));
    let advantages = [0.625, -0.375, -0.875, 0.625];
    let settings = json!({"algorithm": {"dr-grpo": {}}});
    check(&settings, loss, advantages, |_, _| 1.0 / (4.0 * 40.0));
    let settings = json!({
        "algorithm": {"dr-grpo": {}}, "aggregation": {"token-sum": {"over": 3000}},
    });
    check(&settings, loss, advantages, |_, _| 1.0 / (4.0 * 3000.0));
}

#[test]
fn gspo_has_ratios_of_sequences_and_their_mean() {
    for (name, level) in [
        ("gspo", RatioLevel::Sequence),
        ("gspo-token", RatioLevel::SequenceToken),
    ] {
        let loss = plain(clipped(3e-4, 4e-4, level));
        let settings = json!({"algorithm": {name: {}}});
        check(&settings, loss, NORMALISED, |length, _| {
            0.25 / length as f64
        });
    }
}

#[test]
fn rloo_compares_with_the_other_answers_and_sums_over_tokens() {
    let loss = plain(clipped(0.2, 0.2, RatioLevel::Token));
    // 1.5 - (0.5 + 0 + 1.5) / 3, 0.5 - (1.5 + 0 + 1.5) / 3, 0 - (1.5 + 0.5 + 1.5) / 3.
    let advantages = [0.833_333, -0.5, -1.166_666, 0.833_333];
    let settings = json!({"algorithm": {"rloo": {}}});
    check(&settings, loss, advantages, |_, _| 0.25);
}

#[test]
fn cispo_cuts_weights_and_keeps_every_gradient() {
    let loss = plain(Surrogate::CutWeight {
        clip_low: 1.0,
        clip_high: 4.0,
    });
    let settings = json!({"algorithm": {"cispo": {"clip-high": 4.0}}});
    check(&settings, loss, NORMALISED, |_, all| 1.0 / all as f64);
}

/// Mean and deviation over the tokens of all answers, written out.
fn over_tokens(values: [f64; 4]) -> [f64; 4] {
    let lengths: Vec<usize> = tokens(&[RIGHT, WRONG, PLAIN, RIGHT])
        .iter()
        .map(Vec::len)
        .collect();
    let each: Vec<f64> = values
        .iter()
        .zip(&lengths)
        .flat_map(|(value, length)| vec![*value; *length])
        .collect();
    let mean = each.iter().sum::<f64>() / each.len() as f64;
    let squares: f64 = each.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / (each.len() - 1) as f64).sqrt();
    values.map(|value| (value - mean) / (deviation + 1e-6))
}

#[test]
fn reinforce_plus_plus_normalises_over_the_tokens_of_the_batch() {
    let loss = plain(clipped(0.2, 0.2, RatioLevel::Token));
    let sequence_mean = |length: usize, _: usize| 0.25 / length as f64;
    let settings = json!({"algorithm": {"reinforce-plus-plus": {}}});
    check(
        &settings,
        loss,
        over_tokens([1.5, 0.5, 0.0, 1.5]),
        sequence_mean,
    );
    let settings = json!({"algorithm": {"reinforce-plus-plus": {"group-baseline": true}}});
    let baseline = [0.625, -0.375, -0.875, 0.625];
    check(&settings, loss, over_tokens(baseline), sequence_mean);
}

#[test]
fn reinforce_plus_plus_learns_from_single_answers() {
    let backend = FakeBackend::new(tokens(&[RIGHT, WRONG]));
    let settings = json!({
        "algorithm": {"reinforce-plus-plus": {}}, "samples": 1, "prompts-per-step": 10,
    });
    run(&rl_train(&settings), &backend, &mut ten_prompts()).unwrap();
    let learnt = backend.learnt().concat();
    assert_eq!(learnt.len(), 10);
    assert!(learnt.iter().any(|sequence| sequence.advantages[0] > 0.0));
    assert!(learnt.iter().any(|sequence| sequence.advantages[0] < 0.0));
}

#[test]
fn the_deviation_of_the_batch_is_over_all_groups() {
    // Gold 7: rewards 1.5, 0.5, 0, 1.5. Gold 8: rewards 0.5, 1.5, 0, 0.5.
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG, PLAIN]));
    let settings = json!({"statistics": "batch", "prompts-per-step": 2});
    let mut io = prompts(&["7", "8"]);
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let rewards = [1.5, 0.5, 0.0, 1.5, 0.5, 1.5, 0.0, 0.5_f64];
    let mean = rewards.iter().sum::<f64>() / 8.0;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let deviation = (squares / 7.0).sqrt() + 1e-6;
    let of = |gold: usize| {
        let group = &rewards[4 * gold..4 * gold + 4];
        let mean = group.iter().sum::<f64>() / 4.0;
        group.iter().map(move |reward| (reward - mean) / deviation)
    };
    let rollouts = io.output("rollouts");
    let ids = text_column(&rollouts, "prompt_id");
    let expected: Vec<f64> = if ids[0] == "p0" {
        of(0).chain(of(1)).collect()
    } else {
        of(1).chain(of(0)).collect()
    };
    for (found, expected) in number_column(&rollouts, "advantage").iter().zip(expected) {
        assert!((found.unwrap() - expected).abs() < 1e-9);
    }
}

#[test]
fn every_knob_reaches_the_loss() {
    let settings = json!({
        "algorithm": {"grpo": {"clip-low": 0.1, "clip-high": 0.3, "ratio-cap": 10.0, "dual-clip": 3.0}},
        "entropy-bonus": 0.01, "aggregation": "token-mean",
        "kl": {"coefficient": 0.04, "estimator": "k2"},
    });
    let (sequences, loss) = learnt(&settings);
    let expected = PolicyLoss {
        surrogate: Surrogate::Clipped {
            clip_low: 0.1,
            clip_high: 0.3,
            level: RatioLevel::Token,
            ratio_cap: Some(10.0),
            dual_clip: Some(3.0),
        },
        kl: Some(KlPenalty {
            coefficient: 0.04,
            estimator: KlEstimator::K2,
        }),
        entropy_bonus: 0.01,
    };
    assert_eq!(loss, Loss::Policy(expected));
    let all: usize = sequences
        .iter()
        .map(|sequence| sequence.completion.len())
        .sum();
    for sequence in &sequences {
        assert_eq!(sequence.token_weight, (1.0 / all as f64) as f32);
        assert_eq!(sequence.reference_logprobs.len(), sequence.completion.len());
    }
}

#[test]
fn right_answers_are_imitated_by_the_mean_over_their_tokens() {
    let (sequences, _) = learnt(&json!({"imitation": 0.1}));
    let right = sequences[0].completion.len() + sequences[3].completion.len();
    let weights: Vec<f32> = sequences
        .iter()
        .map(|sequence| sequence.imitation_weight)
        .collect();
    let weight = (0.1 / right as f64) as f32;
    assert_eq!(weights, [weight, 0.0, 0.0, weight]);
}

#[test]
fn masked_truncated_answers_count_in_the_group_and_not_in_the_loss() {
    // The limit is that of the short answer, which is right; the long one is cut off and has no answer.
    let answers = tokens(&[RIGHT, "<answer>8</answer>"]);
    let limit = answers[1].len();
    assert!(limit < answers[0].len());
    let learnt = |mask: bool| {
        let settings = json!({"max-new-tokens": limit, "mask-truncated": mask, "samples": 2});
        let backend = FakeBackend::in_turn(answers.clone());
        let mut io = prompts(&["8"]);
        run(&rl_train(&settings), &backend, &mut io).unwrap();
        (backend.learnt().concat(), io)
    };
    let (unmasked, _) = learnt(false);
    let (masked, io) = learnt(true);
    assert_eq!((unmasked.len(), masked.len()), (2, 1));
    assert_eq!(masked[0].advantages, unmasked[1].advantages);
    assert_eq!(
        masked[0].token_weight,
        1.0 / masked[0].completion.len() as f32
    );
    let rollouts = io.output("rollouts");
    assert_eq!(text_column(&rollouts, "fate"), ["truncated", "trained"]);
    assert_eq!(number_column(&rollouts, "advantage")[0], None);
    let metrics = io.output("metrics");
    assert_eq!(metric(&metrics, 1, "masked_truncated"), Some(1.0));
    assert_eq!(metric(&metrics, 1, "trained_truncated"), Some(0.0));
}

#[test]
fn epochs_learn_from_the_same_rollouts_with_the_same_old_probabilities() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let settings = json!({"epochs": 2, "updates-per-rollout": 2, "learning-rate": 0.5});
    let mut io = one_prompt();
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let learnt = backend.learnt();
    assert_eq!(
        learnt.iter().map(Vec::len).collect::<Vec<_>>(),
        [2, 2, 2, 2]
    );
    let old = learnt[0][0].sampler_logprobs[0];
    let seen = |epoch: usize| {
        let mut seen: Vec<(Vec<u32>, Vec<f32>)> = learnt[2 * epoch..2 * epoch + 2]
            .concat()
            .into_iter()
            .map(|sequence| (sequence.completion, sequence.sampler_logprobs))
            .collect();
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        seen
    };
    assert_eq!(seen(0), seen(1));
    assert!(old < 0.0);
    assert_eq!(metric(&io.output("metrics"), 1, "updates"), Some(4.0));
}

#[test]
fn minibatches_by_prompts_keep_groups_together() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let settings =
        json!({"prompts-per-step": 4, "updates-per-rollout": 2, "minibatches": "prompts"});
    run(&rl_train(&settings), &backend, &mut ten_prompts()).unwrap();
    let learnt = backend.learnt();
    assert_eq!(learnt.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8]);
    for group in learnt.iter().flat_map(|minibatch| minibatch.chunks(4)) {
        let first = &group[0].prompt;
        assert!(
            group
                .iter()
                .all(|sequence| std::sync::Arc::ptr_eq(&sequence.prompt, first))
        );
    }
}

#[test]
fn groups_without_signal_cost_no_pass_and_count_in_the_mean() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    // Gold 9: all wrong with the same reward.
    let settings = json!({"algorithm": {"rloo": {}}, "prompts-per-step": 2});
    let mut io = prompts(&["7", "9"]);
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let learnt = backend.learnt().concat();
    assert_eq!(learnt.len(), 4);
    assert!(learnt.iter().all(|sequence| sequence.token_weight == 0.125));
    let rollouts = io.output("rollouts");
    assert!(
        number_column(&rollouts, "advantage")
            .iter()
            .all(Option::is_some)
    );
    assert!(
        text_column(&rollouts, "fate")
            .iter()
            .all(|fate| *fate == "trained")
    );
}
