//! Gradients, losses and the optimizer.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, Policy, TrainSequence};
use tch::Tensor;

use super::{inference, policy, policy_in_64_bits, sequence, sequences, training};
use crate::optimizer::Gradients;
use crate::policy::TorchPolicy;

const CLIP: Loss = Loss::clipped(0.2, 0.28);

fn gradient(policy: &TorchPolicy) -> Vec<f64> {
    let buffers = policy.training.as_ref().unwrap().gradients.buffers();
    Tensor::cat(buffers, 0)
        .to_kind(tch::Kind::Double)
        .try_into()
        .unwrap()
}

fn largest_gap(left: &[f64], right: &[f64]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| (left - right).abs())
        .fold(0.0, f64::max)
}

/// Sequences with advantages, and sampler probabilities `shift` away from the policy's own.
fn with_advantages(policy: &mut TorchPolicy, shift: f32) -> Vec<TrainSequence> {
    let mut sequences = sequences();
    let logprobs = policy.logprobs(&sequences).unwrap();
    for (index, (sequence, logprobs)) in sequences.iter_mut().zip(logprobs).enumerate() {
        sequence.advantages = vec![if index % 2 == 0 { 1.0 } else { -0.5 }];
        sequence.sampler_logprobs = logprobs
            .into_iter()
            .map(|logprob| logprob + shift)
            .collect();
    }
    sequences
}

#[test]
fn gradients_agree_with_finite_differences() {
    let mut policy = policy_in_64_bits("grouped_tied", &training(&[]));
    let sequences = with_advantages(&mut policy, 0.05);
    for loss in [Loss::CrossEntropy, CLIP] {
        policy.training.as_mut().unwrap().gradients = Gradients::default();
        policy.forward_backward(&sequences, loss).unwrap();
        let gradients: Vec<Tensor> = policy
            .training
            .as_ref()
            .unwrap()
            .gradients
            .buffers()
            .iter()
            .map(Tensor::copy)
            .collect();
        let value = |policy: &mut TorchPolicy| {
            let saved = std::mem::take(&mut policy.training.as_mut().unwrap().gradients);
            let report = policy.forward_backward(&sequences, loss).unwrap();
            policy.training.as_mut().unwrap().gradients = saved;
            report.loss
        };
        for (bucket, gradient) in gradients.iter().enumerate() {
            // A random direction sees every weight of the buffer.
            let mut direction = vec![0.0_f32; gradient.numel()];
            crate::philox::fill_normal(bucket as u64, 1.0, &mut direction);
            let direction = Tensor::from_slice(&direction).to_kind(tch::Kind::Double);
            let expected = direction.dot(gradient).double_value(&[]);
            let step = 1e-6;
            let shifted = |policy: &mut TorchPolicy, by: f64| {
                tch::no_grad(|| policy.weights.buckets[bucket].flat += &direction * by);
                value(policy)
            };
            let found = shifted(&mut policy, step) - shifted(&mut policy, -2.0 * step);
            shifted(&mut policy, step);
            let found = found / (2.0 * step);
            assert!(
                (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{loss:?} {bucket}: {found} {expected}"
            );
        }
    }
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let sequences = sequences();
    let mut together = policy("grouped_tied", &training(&[]));
    let whole = together
        .forward_backward(&sequences, Loss::CrossEntropy)
        .unwrap();
    let mut apart = policy("grouped_tied", &training(&[]));
    let mut loss = 0.0;
    for part in [&sequences[..1], &sequences[1..4], &sequences[4..]] {
        loss += apart
            .forward_backward(part, Loss::CrossEntropy)
            .unwrap()
            .loss;
    }
    assert!((whole.loss - loss).abs() < 1e-5);
    assert_eq!(whole.tokens, 21);
    let gap = largest_gap(&gradient(&together), &gradient(&apart));
    assert!(gap < 1e-4, "{gap}");
}

#[test]
fn logprobs_do_not_depend_on_the_batch() {
    let sequences = sequences();
    let mut policy = policy("grouped_tied", &inference());
    let together = policy.logprobs(&sequences).unwrap();
    for (sequence, expected) in sequences.iter().zip(&together) {
        let alone = policy
            .logprobs(std::slice::from_ref(sequence))
            .unwrap()
            .remove(0);
        assert_eq!(alone.len(), sequence.completion.len());
        assert!(
            alone
                .iter()
                .zip(expected)
                .all(|(left, right)| (left - right).abs() < 1e-4)
        );
    }
}

#[test]
fn a_batch_is_memorised_and_the_same_run_gives_the_same_bytes() {
    let run = || {
        let mut policy = policy("grouped_tied", &training(&[]));
        let mut losses = Vec::new();
        for _ in 0..30 {
            losses.push(
                policy
                    .forward_backward(&sequences(), Loss::CrossEntropy)
                    .unwrap()
                    .loss,
            );
            policy.optimizer_step(3e-3).unwrap();
        }
        (losses, policy.logprobs(&sequences()).unwrap())
    };
    let (losses, logprobs) = run();
    assert!(losses[29] < 0.2 * losses[0], "{losses:?}");
    assert_eq!((losses, logprobs), run());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let many: Vec<TrainSequence> = (0..60)
        .map(|copy| {
            let mut sequence = sequences().swap_remove(copy % 6);
            sequence.completion.extend(vec![9; 20 + copy]);
            sequence
        })
        .collect();
    let run = |threads: usize| {
        let mut policy = super::policy_on(threads, &training(&[]));
        let report = policy.forward_backward(&many, Loss::CrossEntropy).unwrap();
        policy.optimizer_step(1e-2).unwrap();
        (report, policy.logprobs(&many).unwrap())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn the_surrogate_counts_what_it_clips_and_stops_its_gradient() {
    let mut policy = policy("grouped_tied", &training(&[]));
    // Ratio e^0.5 everywhere: the upper bound bites where the advantage is positive.
    let sequences = with_advantages(&mut policy, -0.5);
    let report = policy.forward_backward(&sequences, CLIP).unwrap();
    assert_eq!((report.clipped_low, report.clipped_high), (0, 4 + 6 + 1));
    assert!((report.logprob_gap_sum / report.tokens as f64 - 0.5).abs() < 1e-3);
    assert!((report.logprob_gap_max - 0.5).abs() < 1e-3 && report.entropy_sum > 0.0);
    let positive: Vec<TrainSequence> = sequences
        .into_iter()
        .filter(|sequence| sequence.advantages[0] > 0.0)
        .collect();
    policy.optimizer_step(0.0).unwrap();
    policy.forward_backward(&positive, CLIP).unwrap();
    assert!(policy.optimizer_step(0.0).unwrap().grad_norm < 1e-9);

    let sequences = with_advantages(&mut policy, 0.5);
    let report = policy.forward_backward(&sequences, CLIP).unwrap();
    assert_eq!((report.clipped_low, report.clipped_high), (2 + 5 + 3, 0));
}

#[test]
fn on_policy_samples_have_no_gap() {
    let mut policy = policy("grouped_tied", &training(&[]));
    let sequences = with_advantages(&mut policy, 0.0);
    let report = policy.forward_backward(&sequences, CLIP).unwrap();
    assert!(report.logprob_gap_max < 1e-4);
    // At ratio one the loss is the weighted sum of the negated advantages.
    let expected: f64 = sequences
        .iter()
        .map(|sequence| {
            f64::from(-sequence.advantages[0] * sequence.token_weight)
                * sequence.completion.len() as f64
        })
        .sum();
    assert!(
        (report.loss - expected).abs() < 1e-5,
        "{} {expected}",
        report.loss
    );
}

#[test]
fn a_loss_that_is_not_finite_leaves_gradients_as_they_were() {
    let mut policy = policy("grouped_tied", &training(&[]));
    policy
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap();
    let before = gradient(&policy);
    let mut broken = sequences();
    broken[2].token_weight = f32::NAN;
    let error = policy
        .forward_backward(&broken, Loss::CrossEntropy)
        .unwrap_err();
    assert!(matches!(error, ModelError::NonFinite(_)), "{error}");
    assert_eq!(before, gradient(&policy));
}

#[test]
fn a_frozen_tower_stays_and_the_rest_learns() {
    let mut policy = policy("grouped_tied", &training(&["visual."]));
    let named = |policy: &TorchPolicy, name: &str| policy.weights.get(name).copy();
    let names = [
        "visual.blocks.0.attn.qkv.weight",
        "model.layers.1.mlp.gate_up_proj.weight",
    ];
    let before = names.map(|name| named(&policy, name));
    policy
        .forward_backward(&sequences(), Loss::CrossEntropy)
        .unwrap();
    policy.optimizer_step(1e-3).unwrap();
    assert_eq!(before[0], named(&policy, names[0]));
    assert_ne!(before[1], named(&policy, names[1]));
    let part = training(&["model.layers.0.self_attn.q_proj"]);
    let error =
        TorchPolicy::load(&super::golden_folder("grouped_tied"), &part, super::CPU).unwrap_err();
    assert!(
        error.to_string().contains("freeze all or none of"),
        "{error}"
    );
    let slip = training(&["visual.", "model.visual."]);
    let error =
        TorchPolicy::load(&super::golden_folder("grouped_tied"), &slip, super::CPU).unwrap_err();
    assert!(
        error.to_string().contains("`model.visual.`, with which no"),
        "{error}"
    );
}

#[test]
fn weight_decay_is_for_matrices_only() {
    let mut options = training(&[]);
    options.training.as_mut().unwrap().weight_decay = 0.5;
    let mut policy = policy("grouped_tied", &options);
    let norm = policy.weights.get("model.norm.weight").copy();
    let matrix = policy
        .weights
        .get("model.layers.0.self_attn.o_proj.weight")
        .copy();
    // No gradient at all: what moves is moved by decay.
    policy
        .forward_backward(
            &[TrainSequence {
                token_weight: 0.0,
                ..sequence(&sequences()[0].prompt, &[9])
            }],
            Loss::CrossEntropy,
        )
        .unwrap();
    policy.optimizer_step(0.1).unwrap();
    assert_eq!(norm, policy.weights.get("model.norm.weight"));
    let gap = (policy.weights.get("model.layers.0.self_attn.o_proj.weight") - matrix * 0.95)
        .abs()
        .max();
    assert!(gap.double_value(&[]) < 1e-6);
}

#[test]
fn misuse_is_an_error() {
    let mut reader = policy("grouped_tied", &inference());
    assert!(
        reader
            .forward_backward(&sequences(), Loss::CrossEntropy)
            .is_err()
    );
    assert!(reader.optimizer_step(0.1).is_err());
    let mut learner = policy("grouped_tied", &training(&[]));
    let error = learner
        .forward_backward(&sequences(), CLIP)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sequence 0 has 4 completion tokens, but 0 log-probabilities"),
        "{error}"
    );
    let empty = [sequence(&sequences()[0].prompt, &[])];
    assert!(
        learner
            .logprobs(&empty)
            .unwrap_err()
            .to_string()
            .contains("sequence 0 has an empty completion")
    );
}
