//! Sampling: independence of the batch, agreement with recomputed probabilities, limits and errors.

use std::ops::ControlFlow;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, FinishReason, GenerationProgress, GenerationRequest, Policy, SamplingParams,
    TokenizedPrompt, TrainSequence,
};

use super::{image, inference, policy, prompt, prompts, sampling};

fn requests(samples: u32) -> Vec<GenerationRequest> {
    let requests = |(stream, prompt): (usize, Arc<TokenizedPrompt>)| {
        (0..samples).map(move |sample| GenerationRequest {
            prompt: Arc::clone(&prompt),
            prompt_stream: 100 + stream as u64,
            sample,
        })
    };
    prompts()
        .into_iter()
        .enumerate()
        .flat_map(requests)
        .collect()
}

fn generate(requests: &[GenerationRequest], params: &SamplingParams) -> Vec<Completion> {
    policy("grouped_tied", &inference())
        .generate(requests, params, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

fn same(left: &Completion, right: &Completion) {
    assert_eq!(left.token_ids, right.token_ids);
    assert_eq!(left.finish_reason, right.finish_reason);
    for (left, right) in left.logprobs.iter().zip(&right.logprobs) {
        assert!((left - right).abs() < 1e-4, "{left} {right}");
    }
}

#[test]
fn a_sample_does_not_depend_on_the_batch_that_it_is_in() {
    let requests = requests(6);
    let together = generate(&requests, &sampling(64));
    assert!(
        together
            .iter()
            .any(|completion| completion.finish_reason == FinishReason::Stop)
    );
    assert!(
        together
            .iter()
            .any(|completion| completion.finish_reason == FinishReason::Length)
    );

    let reversed: Vec<GenerationRequest> = requests.iter().rev().cloned().collect();
    for (left, right) in together
        .iter()
        .rev()
        .zip(&generate(&reversed, &sampling(5)))
    {
        same(left, right);
    }
    for (index, expected) in together.iter().enumerate().step_by(7) {
        same(
            expected,
            &generate(&requests[index..=index], &sampling(1))[0],
        );
    }
    // A copy of the prompt behind another pointer is the same prompt.
    let copies: Vec<GenerationRequest> = requests
        .iter()
        .map(|request| GenerationRequest {
            prompt: Arc::new((*request.prompt).clone()),
            ..request.clone()
        })
        .collect();
    for (left, right) in together.iter().zip(&generate(&copies, &sampling(16))) {
        same(left, right);
    }
}

#[test]
fn shards_on_threads_give_the_same_samples() {
    let requests = requests(40);
    let mut seen = GenerationProgress::default();
    let run = |threads: usize, seen: &mut GenerationProgress| {
        let mut policy = super::policy_on(threads, &inference());
        let mut progress = |now| {
            *seen = now;
            ControlFlow::Continue(())
        };
        policy
            .generate(&requests, &sampling(200), &mut progress)
            .unwrap()
    };
    let together = run(1, &mut seen);
    assert_eq!(together, run(3, &mut seen));
    assert_eq!(seen.sequences, 200);
    assert_eq!(
        seen.tokens,
        together
            .iter()
            .map(|completion| completion.token_ids.len())
            .sum::<usize>()
    );
    same(
        &together[123],
        &generate(&requests[123..124], &sampling(1))[0],
    );
}

#[test]
fn sampled_probabilities_equal_recomputed_ones() {
    let requests = requests(4);
    let mut policy = policy("grouped_tied", &inference());
    let completions = policy
        .generate(&requests, &sampling(8), &mut |_| ControlFlow::Continue(()))
        .unwrap();
    let sequences: Vec<TrainSequence> = requests
        .iter()
        .zip(&completions)
        .map(|(request, completion)| super::sequence(&request.prompt, &completion.token_ids))
        .collect();
    let recomputed = policy.logprobs(&sequences).unwrap();
    for (completion, recomputed) in completions.iter().zip(&recomputed) {
        assert_eq!(completion.logprobs.len(), recomputed.len());
        for (sampled, recomputed) in completion.logprobs.iter().zip(recomputed) {
            assert!(
                (sampled - recomputed).abs() < 1e-4,
                "{sampled} {recomputed}"
            );
        }
    }
}

#[test]
fn samples_follow_the_distribution() {
    let prompt = prompt(9, 6, None);
    let requests: Vec<GenerationRequest> = (0..4000)
        .map(|sample| GenerationRequest {
            prompt: Arc::clone(&prompt),
            prompt_stream: 3,
            sample,
        })
        .collect();
    let mut params = sampling(4000);
    params.max_new_tokens = 1;
    params.temperature = 3.0;
    let completions = generate(&requests, &params);
    let mut counts = std::collections::BTreeMap::<u32, (f64, f64)>::new();
    for completion in &completions {
        let probability = f64::from(completion.logprobs[0]).exp();
        counts
            .entry(completion.token_ids[0])
            .or_insert((0.0, probability))
            .0 += 1.0;
    }
    for (token, (count, probability)) in counts {
        let spread = (4000.0 * probability * (1.0 - probability)).sqrt();
        assert!(
            (count - 4000.0 * probability).abs() < 5.0 * spread + 1.0,
            "token {token}: {count} {probability}"
        );
    }
}

#[test]
fn a_broken_off_call_is_interrupted_and_progress_counts() {
    let mut policy = policy("grouped_tied", &inference());
    let mut seen = GenerationProgress::default();
    let completions = policy
        .generate(&requests(2), &sampling(3), &mut |progress| {
            seen = progress;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen.sequences, completions.len());
    assert_eq!(
        seen.tokens,
        completions
            .iter()
            .map(|completion| completion.token_ids.len())
            .sum::<usize>()
    );
    let broken = policy.generate(&requests(2), &sampling(3), &mut |_| ControlFlow::Break(()));
    assert!(matches!(broken, Err(ModelError::Interrupted)));
}

#[test]
fn prompts_that_do_not_fit_are_named() {
    let mut policy = policy("grouped_tied", &inference());
    let mut error = |prompt: Arc<TokenizedPrompt>| {
        let request = GenerationRequest {
            prompt,
            prompt_stream: 0,
            sample: 0,
        };
        policy
            .generate(&[request], &sampling(1), &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    let mut missing = (*prompt(1, 5, Some(image(1, 4, 4)))).clone();
    missing.token_ids.remove(3);
    assert!(error(Arc::new(missing)).contains("3 image placeholders"));
    assert!(error(prompt(1, 250, None)).contains("256 positions"));
    let unknown = TokenizedPrompt {
        token_ids: vec![120],
        images: vec![],
    };
    assert!(error(Arc::new(unknown)).contains("token 120 is not below vocab_size 120"));
    assert!(error(prompt(1, 5, Some(image(1, 4, 5)))).contains("multiples of 2"));
}

#[test]
fn runs_that_are_decoded_apart_are_the_same_beside_any_others() {
    let prompts: Vec<_> = (0..9).flat_map(|_| prompts()).collect();
    let run = |ranges: &[std::ops::Range<u32>], threads: usize| {
        let mut policy = super::policy_on(threads, &inference());
        let mut params = sampling(7);
        let mut requests = Vec::new();
        for range in ranges {
            let before = requests.len();
            for (stream, prompt) in prompts.iter().enumerate() {
                requests.extend(range.clone().map(|sample| GenerationRequest {
                    prompt: Arc::clone(prompt),
                    prompt_stream: stream as u64,
                    sample,
                }));
            }
            params.apart.push(requests.len() - before);
        }
        let apart = policy
            .generate(&requests, &params, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        params.apart.clear();
        let together = policy
            .generate(&requests, &params, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        for (left, right) in apart.iter().zip(together) {
            assert_eq!(left.token_ids, right.token_ids);
        }
        apart
    };
    let all = run(&[0..1, 1..2, 2..5], 2);
    assert_eq!(all[90..], run(std::slice::from_ref(&(2..5)), 3));
    assert_eq!(all[45..90], run(std::slice::from_ref(&(1..2)), 1));
    let mut swapped = all[45..90].to_vec();
    swapped.extend_from_slice(&all[..45]);
    assert_eq!(swapped, run(&[1..2, 0..1], 2));
}

/// Callers may find that none of their prompts fits, and ask all the same.
#[test]
fn nothing_asked_is_nothing_sampled() {
    assert!(generate(&[], &sampling(64)).is_empty());
    let apart = SamplingParams {
        apart: vec![0],
        ..sampling(64)
    };
    assert!(generate(&[], &apart).is_empty());
}
