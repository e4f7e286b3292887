//! The backward pass: that recomputing changes nothing, that frozen parts change no other gradient, and that every weight of every
//! family has the gradient that finite differences say.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::policy::{LoadOptions, Loss, Policy, TrainOptions, TrainSequence};
use tch::{Kind, Tensor};

use super::golden::{Golden, folder};
use super::{CPU, sequence};
use crate::optimizer::Gradients;
use crate::policy::TorchPolicy;

/// A model of each family, tied and untied heads among them.
const MODELS: [&str; 6] = [
    "qwen2_5_vl/odd_untied",
    "qwen3_vl/grouped_tied",
    "qwen2/grouped_tied",
    "qwen3/wide_heads",
    "llama/scaled_untied",
    "llama/smol",
];

fn load(name: &str, options: TrainOptions, kind: Kind) -> TorchPolicy {
    tch::set_num_threads(1);
    let options = LoadOptions {
        training: Some(options),
        ..super::inference()
    };
    TorchPolicy::load_as(&folder(name), &options, kind, CPU).unwrap()
}

fn frozen(prefixes: &[&str], recompute: bool) -> TrainOptions {
    TrainOptions {
        freeze: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
        recompute,
        ..TrainOptions::default()
    }
}

/// Completions of the golden prompts: one prompt has three, the others have one.
fn sequences(name: &str) -> Vec<TrainSequence> {
    let golden = Golden::read(name);
    let mut sequences = Vec::new();
    for case in 0..golden.count() {
        let prompt = Arc::new(golden.prompt(case));
        let ids = golden.ids(case, "greedy");
        sequences.push(sequence(&prompt, &ids));
        if case == 1 {
            sequences.push(sequence(&prompt, &ids[..1]));
            sequences.push(sequence(&prompt, &ids[1..]));
        }
    }
    sequences
}

/// The gradient of each trained weight by its name.
fn gradients(policy: &TorchPolicy) -> BTreeMap<String, Tensor> {
    let weights = &policy.weights;
    let gradients = &policy.training.as_ref().unwrap().gradients;
    (weights.trained().into_iter())
        .map(|index| {
            let name = weights.list[index].name.clone();
            (name, gradients.view(weights, index).copy())
        })
        .collect()
}

fn gradients_with(name: &str, options: TrainOptions) -> (f64, BTreeMap<String, Tensor>) {
    let mut policy = load(name, options, Kind::Float);
    let report = policy
        .forward_backward(&sequences(name), Loss::CrossEntropy)
        .unwrap();
    (report.loss, gradients(&policy))
}

/// Parts that may be frozen: the tower, some of it, the first layers, the language model.
fn freezes(name: &str, is_tied: bool) -> Vec<Vec<&'static str>> {
    let mut freezes = vec![vec![], vec!["model.embed_tokens.", "model.layers.0."]];
    let language = match name.split_once('/') {
        Some(("qwen3_vl", _)) => "model.language_model.",
        Some(("qwen2_5_vl", _)) => "model.",
        _ => return freezes,
    };
    freezes.extend([vec!["visual."], vec!["visual.blocks."], vec![language]]);
    if !is_tied {
        freezes.push(vec![language, "lm_head."]);
    }
    freezes
}

#[test]
fn recomputing_gives_the_same_bits() {
    for name in MODELS {
        let (_, all) = gradients_with(name, frozen(&[], false));
        for freeze in freezes(name, !all.contains_key("lm_head.weight")) {
            let kept = gradients_with(name, frozen(&freeze, false));
            let recomputed = gradients_with(name, frozen(&freeze, true));
            assert_eq!(kept, recomputed, "{name} {freeze:?}");
            assert_eq!(
                kept.1.len() == all.len(),
                freeze.is_empty(),
                "{name} {freeze:?}"
            );
            assert!(!kept.1.is_empty(), "{name} {freeze:?}");
            for (weight, gradient) in &kept.1 {
                let gap = (gradient - &all[weight]).abs().max().double_value(&[]);
                assert!(gap < 1e-5, "{name} {freeze:?} {weight}: {gap}");
                let largest = gradient.abs().max().double_value(&[]);
                assert!(largest > 0.0, "{name} {freeze:?} {weight}");
            }
        }
    }
}

#[test]
fn every_weight_has_the_gradient_of_finite_differences() {
    for (place, name) in MODELS.into_iter().enumerate() {
        let mut policy = load(name, frozen(&[], place % 2 == 0), Kind::Double);
        let sequences = sequences(name);
        let value = |policy: &mut TorchPolicy| {
            policy.training.as_mut().unwrap().gradients = Gradients::default();
            let report = policy.forward_backward(&sequences, Loss::CrossEntropy);
            report.unwrap().loss
        };
        value(&mut policy);
        let gradients = gradients(&policy);
        for (index, (weight, gradient)) in gradients.iter().enumerate() {
            let mut direction = vec![0.0_f32; gradient.numel()];
            crate::philox::fill_normal(index as u64, 1.0, &mut direction);
            let direction = Tensor::from_slice(&direction)
                .view(gradient.size().as_slice())
                .to_kind(Kind::Double);
            let expected = (&direction * gradient).sum(Kind::Double).double_value(&[]);
            let step = 1e-5;
            let shifted = |policy: &mut TorchPolicy, by: f64| {
                let mut tensor = policy.weights.get(weight);
                tch::no_grad(|| tensor += &direction * by);
                value(policy)
            };
            let found = shifted(&mut policy, step) - shifted(&mut policy, -2.0 * step);
            shifted(&mut policy, step);
            let found = found / (2.0 * step);
            assert!(
                (found - expected).abs() < 1e-5 * expected.abs().max(0.1),
                "{name} {weight}: {found} {expected}"
            );
        }
    }
}
