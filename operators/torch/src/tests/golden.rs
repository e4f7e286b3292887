//! Equality with transformers: logits, positions, greedy decoding, loss and gradient norm.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::policy::{
    GenerationRequest, Loss, PatchedImage, Policy, SamplingParams, TokenizedPrompt, TrainSequence,
};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::{golden_folder, inference, policy, training};
use crate::policy::TorchPolicy;

/// Largest difference of a logit in 32 bits.
const TOLERANCE: f64 = 2e-4;

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
}

struct Golden {
    facts: Facts,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let folder = golden_folder(name);
        let facts =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let tensors = Tensor::read_safetensors(folder.join("cases.safetensors"))
            .unwrap()
            .into_iter()
            .collect();
        Self { facts, tensors }
    }

    fn ids(&self, case: usize, name: &str) -> Vec<u32> {
        let ids = Vec::<i64>::try_from(&self.tensors[&format!("{case}.{name}")]).unwrap();
        ids.into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }

    fn prompt(&self, case: usize) -> TokenizedPrompt {
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
    for (case, facts) in golden.facts.cases.iter().enumerate() {
        let prompt = golden.prompt(case);
        let (found, positions) = logits(&policy, &prompt);
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

        let greedy = golden.ids(case, "greedy");
        let params = SamplingParams {
            temperature: 0.0,
            max_new_tokens: greedy.len(),
            stop_token_ids: vec![],
            seed: 0,
            max_concurrent: 1,
            apart: Vec::new(),
        };
        let request = GenerationRequest {
            prompt: Arc::new(prompt.clone()),
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

        let split = prompt.token_ids.len() - facts.learnt_tokens;
        let mut start = prompt.clone();
        let completion = start.token_ids.split_off(split);
        let sequence = TrainSequence {
            prompt: Arc::new(start),
            token_weight: 1.0 / completion.len() as f32,
            completion,
            advantage: 0.0,
            sampler_logprobs: Vec::new(),
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
        let norm = policy.optimizer_step(0.0).unwrap().grad_norm;
        assert!(
            (norm / facts.grad_norm - 1.0).abs() < 1e-3,
            "{name} case {case}: {norm} {}",
            facts.grad_norm
        );
    }
}

#[test]
fn grouped_heads_and_tied_embeddings_equal_transformers() {
    check_model("grouped_tied");
}

#[test]
fn odd_sizes_and_an_own_head_equal_transformers() {
    check_model("odd_untied");
}

#[test]
fn one_key_head_and_merges_of_nine_equal_transformers() {
    check_model("multi_query");
}

#[test]
fn padding_does_not_change_a_prompt() {
    let golden = Golden::read("grouped_tied");
    let policy = policy("grouped_tied", &inference());
    let prompts: Vec<Arc<TokenizedPrompt>> =
        (0..3).map(|case| Arc::new(golden.prompt(case))).collect();
    let positions: Vec<_> = prompts
        .iter()
        .map(|prompt| policy.model.check_prompt(prompt, 0).unwrap())
        .collect();
    let together = tch::no_grad(|| policy.model.prefill(&prompts, &positions));
    for (row, prompt) in prompts.iter().enumerate() {
        let (alone, _) = logits(&policy, prompt);
        let length = prompt.token_ids.len() as i64;
        let padded = together
            .hidden
            .narrow(0, row as i64 * together.padded, length);
        let gap = (policy.model.language.logits(&padded) - alone)
            .abs()
            .max()
            .to_kind(Kind::Double)
            .double_value(&[]);
        assert!(gap < 1e-4, "prompt {row}: {gap}");
    }
}
