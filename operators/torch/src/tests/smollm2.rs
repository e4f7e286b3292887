//! A real model: greedy text of SmolLM2-135M-Instruct against transformers (`tests/golden/smollm2`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::policy::{GenerationRequest, Policy, SamplingParams, TokenizedPrompt};
use serde::Deserialize;

use super::{CPU, inference};
use crate::policy::TorchPolicy;

/// Prompts decoded together.
const BATCH: usize = 25;

#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// Places where the two largest logits are close, and how close.
    close: Vec<(usize, f64)>,
}

fn golden() -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/smollm2/greedy.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the environment says where the downloaded model is"
)]
fn folder() -> PathBuf {
    std::env::var_os("METIS_TEST_SMOLLM2")
        .expect("METIS_TEST_SMOLLM2 is not set; `cargo xtask test-models` sets it")
        .into()
}

#[test]
#[ignore = "takes minutes and needs SmolLM2: `cargo xtask test-models`"]
fn greedy_text_of_smollm2_is_that_of_transformers() {
    tch::set_num_threads(1);
    let golden = golden();
    assert_eq!(golden.len(), 50);
    let mut policy = TorchPolicy::load(&folder(), &inference(), CPU).unwrap();
    let requests: Vec<GenerationRequest> = (0_u64..)
        .zip(&golden)
        .map(|(stream, row)| GenerationRequest {
            prompt: Arc::new(TokenizedPrompt {
                token_ids: row.prompt.clone(),
                images: Vec::new(),
            }),
            prompt_stream: stream,
            sample: 0,
        })
        .collect();
    let params = SamplingParams {
        temperature: 0.0,
        max_new_tokens: golden[0].tokens.len(),
        max_concurrent: BATCH,
        ..SamplingParams::default()
    };
    let ours = policy
        .generate(&requests, &params, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    let mut differences = Vec::new();
    for (index, (ours, theirs)) in ours.iter().zip(&golden).enumerate() {
        assert_eq!(theirs.tokens.len(), 200);
        let pairs = ours.token_ids.iter().zip(&theirs.tokens);
        let Some(place) = pairs.clone().position(|(ours, theirs)| ours != theirs) else {
            assert_eq!(ours.token_ids.len(), theirs.tokens.len());
            continue;
        };
        let gap = theirs.close.iter().find(|(close, _)| *close == place);
        let gap = gap.map_or("more than 1e-3".to_owned(), |(_, gap)| gap.to_string());
        differences.push(format!(
            "prompt {index}, token {place}: {} instead of {}, whose logits are {gap} apart",
            ours.token_ids[place], theirs.tokens[place]
        ));
    }
    assert!(
        differences.is_empty(),
        "{} of {} prompts differ:\n{}",
        differences.len(),
        golden.len(),
        differences.join("\n")
    );
}
