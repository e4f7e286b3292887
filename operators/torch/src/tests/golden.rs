//! Equality with transformers: logits, positions, greedy decoding, loss and gradient norm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::policy::{
    GenerationRequest, LoadOptions, Loss, PatchedImage, Policy, Precision, SamplingParams,
    TokenizedPrompt, TrainSequence,
};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::{CPU, inference, training};
use crate::layout::canonical;
use crate::parameters::padded;
use crate::policy::TorchPolicy;

/// Largest difference of a logit in 32 bits.
const TOLERANCE: f64 = 2e-4;

/// Every model: one folder of golden files for each.
pub(super) const MODELS: [&str; 13] = [
    "qwen2_5_vl/grouped_tied",
    "qwen2_5_vl/odd_untied",
    "qwen2_5_vl/multi_query",
    "qwen3_vl/grouped_tied",
    "qwen3_vl/odd_untied",
    "qwen3_vl/patch16",
    "qwen2/grouped_tied",
    "qwen2/odd_untied",
    "qwen3/wide_heads",
    "qwen3/narrow_heads",
    "llama/smol",
    "llama/scaled_released",
    "llama/scaled_untied",
];

#[derive(Deserialize)]
struct Facts {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    grids: Vec<[usize; 3]>,
    loss: f64,
    learnt_tokens: usize,
    grad_norm: f64,
    /// By weight, as transformers names them.
    grad_norms: BTreeMap<String, f64>,
    bf16_error: f64,
}

pub(super) struct Golden {
    facts: Facts,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    pub(super) fn read(name: &str) -> Self {
        let folder = folder(name);
        let facts =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let tensors = Tensor::read_safetensors(folder.join("cases.safetensors"))
            .unwrap()
            .into_iter()
            .collect();
        Self { facts, tensors }
    }

    /// Number of cases.
    pub(super) fn count(&self) -> usize {
        self.facts.cases.len()
    }

    pub(super) fn ids(&self, case: usize, name: &str) -> Vec<u32> {
        let ids = Vec::<i64>::try_from(&self.tensors[&format!("{case}.{name}")]).unwrap();
        ids.into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }

    pub(super) fn prompt(&self, case: usize) -> TokenizedPrompt {
        let mut images = Vec::new();
        let mut start = 0;
        for grid in &self.facts.cases[case].grids {
            let count = grid.iter().product::<usize>() as i64;
            let pixels = self.tensors[&format!("{case}.pixel_values")]
                .narrow(0, start, count)
                .flatten(0, -1);
            start += count;
            images.push(Arc::new(PatchedImage {
                patches: Vec::try_from(pixels).unwrap(),
                grid_thw: *grid,
            }));
        }
        TokenizedPrompt {
            token_ids: self.ids(case, "input_ids"),
            images,
        }
    }
}

/// The folder of a model, `FAMILY/NAME`.
pub(super) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

pub(super) fn policy(name: &str, options: &LoadOptions) -> TorchPolicy {
    tch::set_num_threads(1);
    TorchPolicy::load(&folder(name), options, CPU).unwrap()
}

fn logits(policy: &TorchPolicy, prompt: &TokenizedPrompt) -> (Tensor, Vec<[i64; 3]>) {
    tch::no_grad(|| {
        let positions = policy.model.check_prompt(prompt, 0).unwrap();
        let prefilled = policy.model.prefill(
            &[Arc::new(prompt.clone())],
            std::slice::from_ref(&positions),
        );
        (
            policy.model.language.logits(&prefilled.hidden),
            positions.tokens,
        )
    })
}

fn check_model(name: &str) {
    let golden = Golden::read(name);
    let mut policy = policy(name, &training(&[]));
    assert_eq!(policy.info().family, name.split('/').next().unwrap());
    for case in 0..golden.facts.cases.len() {
        check_logits(name, case, &golden, &policy);
        check_greedy(name, case, &golden, &mut policy);
        check_gradient(name, case, &golden, &mut policy);
    }
}

fn check_logits(name: &str, case: usize, golden: &Golden, policy: &TorchPolicy) {
    let (found, positions) = logits(policy, &golden.prompt(case));
    if let Some(expected) = golden.tensors.get(&format!("{case}.positions")) {
        let found: Vec<i64> = (0..3)
            .flat_map(|axis| positions.iter().map(move |place| place[axis]))
            .collect();
        assert_eq!(
            found,
            Vec::<i64>::try_from(expected.flatten(0, -1)).unwrap(),
            "{name} {case}: positions"
        );
    }
    let gap = (found - &golden.tensors[&format!("{case}.logits")])
        .abs()
        .max()
        .double_value(&[]);
    assert!(
        gap < TOLERANCE,
        "{name} case {case}: logits differ by {gap}"
    );
}

fn check_greedy(name: &str, case: usize, golden: &Golden, policy: &mut TorchPolicy) {
    let greedy = golden.ids(case, "greedy");
    let params = SamplingParams {
        temperature: 0.0,
        max_new_tokens: greedy.len(),
        max_concurrent: 1,
        ..SamplingParams::default()
    };
    let request = GenerationRequest {
        prompt: Arc::new(golden.prompt(case)),
        prompt_stream: 0,
        sample: 0,
    };
    let completions = policy
        .generate(&[request], &params, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        completions[0].token_ids, greedy,
        "{name} case {case}: greedy decoding"
    );
}

fn check_gradient(name: &str, case: usize, golden: &Golden, policy: &mut TorchPolicy) {
    let facts = &golden.facts.cases[case];
    let mut start = golden.prompt(case);
    let completion = (start.token_ids).split_off(start.token_ids.len() - facts.learnt_tokens);
    let sequence = TrainSequence {
        prompt: Arc::new(start),
        token_weight: 1.0 / completion.len() as f32,
        completion,
        ..TrainSequence::default()
    };
    let report = policy
        .forward_backward(&[sequence], Loss::CrossEntropy)
        .unwrap();
    assert!(
        (report.loss - facts.loss).abs() < 1e-4,
        "{name} case {case}: {} {}",
        report.loss,
        facts.loss
    );
    let expected: BTreeMap<String, f64> = (facts.grad_norms.iter())
        .map(|(name, norm)| (canonical(name).into_owned(), *norm))
        .filter(|(_, norm)| *norm > 0.0)
        .collect();
    let found = gradient_norms(policy);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (weight, norm) in found {
        let gap = (norm - expected[&weight]).abs();
        assert!(
            gap < 1e-3 * expected[&weight] + 1e-5,
            "{name} case {case}, {weight}: {norm} {}",
            expected[&weight]
        );
    }
    let norm = policy.optimizer_step(0.0).unwrap().grad_norm;
    assert!(
        (norm / facts.grad_norm - 1.0).abs() < 1e-3,
        "{name} case {case}: {norm} {}",
        facts.grad_norm
    );
}

/// Length of each weight's gradient where there is one, by the weight's name in memory.
fn gradient_norms(policy: &TorchPolicy) -> BTreeMap<String, f64> {
    let weights = &policy.weights;
    let buffers = policy.training.as_ref().unwrap().gradients.buffers();
    let trained = weights.buckets.iter().filter(|bucket| bucket.trained);
    let mut norms = BTreeMap::new();
    for (bucket, buffer) in trained.zip(buffers) {
        let mut start = 0;
        for member in &bucket.members {
            let parameter = &weights.list[*member];
            let mut place = start;
            for part in &parameter.parts {
                let norm = buffer.narrow(0, place, part.numel()).norm();
                norms.insert(canonical(&part.name).into_owned(), norm.double_value(&[]));
                place += part.numel();
            }
            start += padded(parameter.numel());
        }
    }
    norms.retain(|_, norm| *norm > 0.0);
    norms
}

fn check_family(family: &str) {
    let models = MODELS.iter().filter(|name| name.starts_with(family));
    assert!(models.clone().count() > 1);
    models.for_each(|name| check_model(name));
}

#[test]
fn qwen2_5_vl_equals_transformers() {
    check_family("qwen2_5_vl/");
}

#[test]
fn qwen3_vl_equals_transformers() {
    check_family("qwen3_vl/");
}

#[test]
fn qwen2_equals_transformers() {
    check_family("qwen2/");
}

#[test]
fn qwen3_equals_transformers() {
    check_family("qwen3/");
}

#[test]
fn llama_equals_transformers() {
    check_family("llama/");
}

#[test]
fn sixteen_bits_lose_no_more_than_in_transformers() {
    let options = LoadOptions {
        precision: Precision::Bfloat16,
        training: None,
    };
    for name in MODELS {
        let (golden, policy) = (Golden::read(name), policy(name, &options));
        let (mut ours, mut theirs) = (0.0, 0.0);
        for (case, facts) in golden.facts.cases.iter().enumerate() {
            let expected = &golden.tensors[&format!("{case}.logits")];
            let (found, _) = logits(&policy, &golden.prompt(case));
            ours += ((found - expected).norm() / expected.norm()).double_value(&[]);
            theirs += facts.bf16_error;
        }
        assert!(ours < 1.1 * theirs, "{name}: {ours} against {theirs}");
    }
}

#[test]
fn padding_does_not_change_a_prompt() {
    for name in [
        "qwen2_5_vl/grouped_tied",
        "qwen3_vl/grouped_tied",
        "llama/scaled_released",
    ] {
        let golden = Golden::read(name);
        let policy = policy(name, &inference());
        let prompts: Vec<Arc<TokenizedPrompt>> = (0..golden.facts.cases.len())
            .map(|case| Arc::new(golden.prompt(case)))
            .collect();
        let positions: Vec<_> = prompts
            .iter()
            .map(|prompt| policy.model.check_prompt(prompt, 0).unwrap())
            .collect();
        let together = tch::no_grad(|| policy.model.prefill(&prompts, &positions));
        for (row, prompt) in prompts.iter().enumerate() {
            let (alone, _) = logits(&policy, prompt);
            let length = prompt.token_ids.len() as i64;
            let states = together
                .hidden
                .narrow(0, row as i64 * together.padded, length);
            let gap = (policy.model.language.logits(&states) - alone)
                .abs()
                .max()
                .to_kind(Kind::Double)
                .double_value(&[]);
            assert!(gap < 1e-4, "{name} prompt {row}: {gap}");
        }
    }
}

#[test]
fn an_image_in_two_prompts_of_a_batch_is_seen_in_both() {
    let golden = Golden::read("qwen3_vl/grouped_tied");
    let policy = policy("qwen3_vl/grouped_tied", &inference());
    let prompt = golden.prompt(2);
    let (alone, _) = logits(&policy, &prompt);
    let mut other = prompt.clone();
    other.token_ids[0] = 9;
    let prompts = [other, prompt].map(Arc::new);
    let positions: Vec<_> = prompts
        .iter()
        .map(|prompt| policy.model.check_prompt(prompt, 0).unwrap())
        .collect();
    let together = tch::no_grad(|| policy.model.prefill(&prompts, &positions));
    let second = together.hidden.narrow(0, together.padded, together.padded);
    let gap = (policy.model.language.logits(&second) - alone).abs().max();
    assert!(gap.double_value(&[]) < 1e-4);
}

#[test]
fn a_model_of_text_alone_refuses_images() {
    let policy = policy("qwen3/wide_heads", &inference());
    let prompt = Golden::read("qwen3_vl/grouped_tied").prompt(1);
    let error = policy.check_prompt(&prompt, 1).unwrap_err().to_string();
    assert!(
        error.contains("1 images") && error.contains("`qwen3`"),
        "{error}"
    );
}
