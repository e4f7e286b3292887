//! Whole runs beside PyTorch: losses of every step and the weights at the end (`tests/golden/sft/make.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use engine_core::policy::{
    LoadOptions, LoraOptions, Loss, PatchedImage, Policy, Precision, TokenizedPrompt, TrainOptions,
    TrainSequence,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use super::golden::{Golden, policy};
use crate::layout::{Part, canonical};
use crate::parameters::Parameters;
use crate::policy::TorchPolicy;

const MODEL: &str = "qwen2_5_vl/grouped_tied";
/// Largest difference of a step's loss, and of a weight at the end.
const LOSS_GAP: f64 = 1e-4;
const WEIGHT_GAP: f64 = 1e-3;

#[derive(Deserialize)]
struct Examples {
    /// Case of the model's golden files, and the image's place in it.
    images: Vec<(usize, usize)>,
    examples: Vec<Example>,
    steps: Vec<Vec<usize>>,
    optimizer: Optimizer,
    lora: Lora,
    full_rates: Vec<f64>,
    lora_rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Example {
    image: Option<usize>,
    prompt: Vec<u32>,
    completion: Vec<u32>,
}

#[derive(Deserialize)]
struct Optimizer {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_grad_norm: f64,
}

#[derive(Deserialize)]
struct Lora {
    rank: usize,
    alpha: f64,
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Expected {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

pub(super) fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

fn json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

pub(super) fn tensors(path: &str) -> BTreeMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(golden(path)).unwrap();
    tensors.into_iter().collect()
}

/// The values of one published weight.
pub(super) fn published(weights: &Parameters, part: &Part) -> Tensor {
    for (parameter, tensor) in weights.list.iter().zip(&weights.tensors) {
        let mut start = 0;
        for other in &parameter.parts {
            if other == part {
                let flat = tensor.detach().flatten(0, -1);
                return flat
                    .narrow(0, start, part.numel())
                    .view(part.shape.as_slice());
            }
            start += other.numel();
        }
    }
    unreachable!("the part is of the list")
}

fn options(examples: &Examples, lora: Option<LoraOptions>) -> LoadOptions {
    let Optimizer {
        beta1,
        beta2,
        epsilon,
        weight_decay,
        max_grad_norm,
    } = examples.optimizer;
    LoadOptions {
        precision: Precision::Float32,
        training: Some(TrainOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            max_grad_norm,
            lora,
            ..TrainOptions::default()
        }),
    }
}

fn images(examples: &Examples) -> Vec<Arc<PatchedImage>> {
    let golden = Golden::read(MODEL);
    let image = |(case, place): &(usize, usize)| Arc::clone(&golden.prompt(*case).images[*place]);
    examples.images.iter().map(image).collect()
}

/// Trains and compares each step's loss and gradient norm. The calls of a step are cut in different places.
fn follow(policy: &mut TorchPolicy, examples: &Examples, rates: &[f64], expected: &Expected) {
    let images = images(examples);
    assert_eq!(rates.len(), expected.losses.len());
    for (step, rate) in rates.iter().enumerate() {
        let batch: Vec<&Example> = examples.steps[step]
            .iter()
            .map(|index| &examples.examples[*index])
            .collect();
        let tokens: usize = batch.iter().map(|example| example.completion.len()).sum();
        let sequence = |example: &&Example| TrainSequence {
            prompt: Arc::new(TokenizedPrompt {
                token_ids: example.prompt.clone(),
                images: example
                    .image
                    .iter()
                    .map(|image| Arc::clone(&images[*image]))
                    .collect(),
            }),
            completion: example.completion.clone(),
            token_weight: 1.0 / tokens as f32,
            ..TrainSequence::default()
        };
        let sequences: Vec<TrainSequence> = batch.iter().map(sequence).collect();
        let (first, rest) = sequences.split_at(step % sequences.len());
        let mut loss = 0.0;
        for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
            loss += policy
                .forward_backward(part, Loss::CrossEntropy)
                .unwrap()
                .loss;
        }
        let gap = (loss - expected.losses[step]).abs();
        assert!(
            gap < LOSS_GAP,
            "step {step}: {loss} {}",
            expected.losses[step]
        );
        let norm = policy.optimizer_step(*rate).unwrap().grad_norm;
        let theirs = expected.grad_norms[step];
        assert!(
            (norm / theirs - 1.0).abs() < 2e-3,
            "step {step}: {norm} {theirs}"
        );
    }
}

fn largest_gap(left: &Tensor, right: &Tensor) -> f64 {
    let gap = left.to_kind(Kind::Double) - right.to_kind(Kind::Double);
    gap.abs().max().double_value(&[])
}

#[test]
fn fifty_steps_follow_transformers() {
    let examples: Examples = json("sft/examples.json");
    let mut policy = policy(MODEL, &options(&examples, None));
    let parts: Vec<Part> = policy
        .weights
        .own()
        .flat_map(|(own, _)| own.parts.clone())
        .collect();
    let value = |policy: &TorchPolicy, part: &Part| published(&policy.weights, part).copy();
    let before: Vec<Tensor> = parts.iter().map(|part| value(&policy, part)).collect();
    follow(
        &mut policy,
        &examples,
        &examples.full_rates,
        &json("sft/full.json"),
    );
    let moved: BTreeMap<String, Tensor> = tensors("sft/full.safetensors")
        .into_iter()
        .map(|(name, moved)| (canonical(&name).into_owned(), moved))
        .collect();
    assert_eq!(moved.len(), parts.len());
    for (part, before) in parts.iter().zip(&before) {
        let gap = largest_gap(
            &(value(&policy, part) - before),
            &moved[canonical(&part.name).as_ref()],
        );
        assert!(gap < WEIGHT_GAP, "{}: {gap}", part.name);
    }
}

#[test]
fn twenty_steps_with_adapters_follow_peft() {
    let examples: Examples = json("sft/examples.json");
    let lora = LoraOptions {
        rank: examples.lora.rank,
        alpha: examples.lora.alpha,
        targets: examples.lora.targets.clone(),
    };
    let mut policy = policy(MODEL, &options(&examples, Some(lora)));
    let adapters: Vec<usize> = policy.weights.trained();
    // peft's names are the newer ones, behind its own prefix.
    let in_memory = |tensors: BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
        let name =
            |name: &str| canonical(name.strip_prefix("base_model.model.").unwrap()).into_owned();
        tensors
            .iter()
            .map(|(theirs, tensor)| (name(theirs), tensor.shallow_clone()))
            .collect()
    };
    let initial = in_memory(tensors("lora/initial.safetensors"));
    assert_eq!(initial.len(), adapters.len());
    for adapter in &adapters {
        let mut tensor = policy.weights.tensors[*adapter].detach();
        tensor.copy_(&initial[&policy.weights.list[*adapter].name]);
    }
    follow(
        &mut policy,
        &examples,
        &examples.lora_rates,
        &json("lora/following.json"),
    );
    let last = in_memory(tensors("lora/final.safetensors"));
    for adapter in &adapters {
        let name = &policy.weights.list[*adapter].name;
        let gap = largest_gap(&policy.weights.tensors[*adapter].detach(), &last[name]);
        assert!(gap < WEIGHT_GAP, "{name}: {gap}");
    }
}
