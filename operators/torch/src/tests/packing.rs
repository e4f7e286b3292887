//! Sequences in one pass: that none sees another, and that shared prompts are worth what copies of them are.

use std::sync::Arc;

use engine_core::policy::{
    LoadOptions, Loss, Policy, TokenizedPrompt, TrainOptions, TrainSequence,
};
use tch::{Device, Kind, Tensor};

use super::golden::folder;
use super::{CPU, sequence};
use crate::DeviceChoice;
use crate::completion::micro_batches;
use crate::policy::{Place, TorchPolicy};

const MODELS: [&str; 3] = ["qwen2/grouped_tied", "qwen3/wide_heads", "llama/smol"];

fn load(name: &str, micro_batch_tokens: usize) -> TorchPolicy {
    tch::set_num_threads(1);
    let options = LoadOptions {
        training: Some(TrainOptions {
            micro_batch_tokens: Some(micro_batch_tokens),
            ..TrainOptions::default()
        }),
        ..super::inference()
    };
    TorchPolicy::load_as(&folder(name), &options, Kind::Double, CPU).unwrap()
}

fn words(stream: u32, count: usize) -> Vec<u32> {
    (0..count as u32)
        .map(|place| 7 + crate::philox::philox([stream, place, 0, 0], [5, 6])[0] % 80)
        .collect()
}

fn prompt(stream: u32, count: usize) -> Arc<TokenizedPrompt> {
    Arc::new(TokenizedPrompt {
        token_ids: words(stream, count),
        images: Vec::new(),
    })
}

/// Short and long ones, equal ones, with prompts of their own and shared ones.
fn sequences() -> Vec<TrainSequence> {
    let prompts = [prompt(1, 70), prompt(2, 3), prompt(3, 30), prompt(4, 17)];
    let lengths = [
        (0, 5),
        (0, 100),
        (0, 1),
        (0, 33),
        (0, 5),
        (1, 90),
        (2, 12),
        (2, 1),
        (3, 1),
        (3, 1),
        (1, 66),
        (2, 40),
    ];
    (lengths.into_iter().enumerate())
        .map(|(index, (prompt, count))| {
            sequence(&prompts[prompt], &words(10 + index as u32, count))
        })
        .collect()
}

fn gradient(policy: &TorchPolicy) -> Tensor {
    Tensor::cat(policy.training.as_ref().unwrap().gradients.buffers(), 0)
}

fn largest_gap(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

#[test]
fn sequences_together_are_worth_what_they_are_alone() {
    for name in MODELS {
        let sequences = sequences();
        let (mut together, mut alone) = (load(name, 4096), load(name, 4096));
        assert_eq!(
            micro_batches(&together.model, &sequences, Some(4096))
                .unwrap()
                .len(),
            1
        );
        let whole = together
            .forward_backward(&sequences, Loss::CrossEntropy)
            .unwrap();
        let mut loss = 0.0;
        for sequence in &sequences {
            let report = alone.forward_backward(std::slice::from_ref(sequence), Loss::CrossEntropy);
            loss += report.unwrap().loss;
        }
        assert!((whole.loss - loss).abs() < 1e-9, "{name}");
        let gap = largest_gap(&gradient(&together), &gradient(&alone));
        assert!(gap < 1e-9, "{name}: {gap}");
        let logprobs = together.logprobs(&sequences).unwrap();
        for (sequence, expected) in sequences.iter().zip(&logprobs) {
            let found = alone
                .logprobs(std::slice::from_ref(sequence))
                .unwrap()
                .remove(0);
            assert_eq!(found.len(), expected.len());
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(one, other)| (one - other).abs() < 1e-5)
            );
        }
    }
}

#[test]
fn a_changed_sequence_changes_no_other_to_the_last_bit() {
    let mut policy = load("qwen2/grouped_tied", 4096);
    let mut sequences = sequences();
    let before = policy.logprobs(&sequences).unwrap();
    for token in &mut sequences[1].completion {
        *token += 1;
    }
    let after = policy.logprobs(&sequences).unwrap();
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before == after, index != 1, "sequence {index}");
    }
}

#[test]
fn a_shared_prompt_is_worth_what_copies_of_it_are() {
    let sequences = sequences();
    let copies: Vec<TrainSequence> = (sequences.iter())
        .map(|sequence| TrainSequence {
            prompt: Arc::new(TokenizedPrompt::clone(&sequence.prompt)),
            ..sequence.clone()
        })
        .collect();
    let (mut shared, mut copied) = (
        load("qwen2/grouped_tied", 4096),
        load("qwen2/grouped_tied", 4096),
    );
    let one = shared
        .forward_backward(&sequences, Loss::CrossEntropy)
        .unwrap();
    let other = copied
        .forward_backward(&copies, Loss::CrossEntropy)
        .unwrap();
    assert!((one.loss - other.loss).abs() < 1e-9);
    assert!(largest_gap(&gradient(&shared), &gradient(&copied)) < 1e-9);
}

#[test]
fn a_pass_has_no_more_tokens_than_asked() {
    let sequences = sequences();
    for limit in [1, 110, 300, 4096] {
        let mut policy = load("qwen2/grouped_tied", limit);
        let batches = micro_batches(&policy.model, &sequences, Some(limit)).unwrap();
        let mut seen: Vec<usize> = Vec::new();
        for batch in &batches {
            let prompts: usize = batch
                .prompts
                .iter()
                .map(|prompt| prompt.token_ids.len())
                .sum();
            let own = |(index, _): &(usize, usize)| sequences[*index].completion.len() - 1;
            let tokens = prompts + batch.rows.iter().map(own).sum::<usize>();
            assert!(
                tokens <= limit || batch.rows.len() == 1,
                "{tokens} of {limit}"
            );
            seen.extend(batch.rows.iter().map(|(index, _)| *index));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..sequences.len()).collect::<Vec<_>>());
        let mut whole = load("qwen2/grouped_tied", 4096);
        policy
            .forward_backward(&sequences, Loss::CrossEntropy)
            .unwrap();
        whole
            .forward_backward(&sequences, Loss::CrossEntropy)
            .unwrap();
        assert!(
            largest_gap(&gradient(&policy), &gradient(&whole)) < 1e-9,
            "{limit}"
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn on_a_gpu_gradients_lose_no_more_than_in_16_bits_on_the_cpu() {
    let gpu = DeviceChoice::Cuda(0).resolve().unwrap();
    for (name, recompute) in [("qwen2/grouped_tied", false), ("llama/smol", true)] {
        let gradient_on = |kind: Kind, device: Device| {
            let options = LoadOptions {
                training: Some(TrainOptions {
                    recompute,
                    ..TrainOptions::default()
                }),
                ..super::inference()
            };
            let place = Place { device, ..CPU };
            let mut policy = TorchPolicy::load_as(&folder(name), &options, kind, place).unwrap();
            policy
                .forward_backward(&sequences(), Loss::CrossEntropy)
                .unwrap();
            gradient(&policy)
                .to_device(CPU.device)
                .to_kind(Kind::Double)
        };
        let exact = gradient_on(Kind::Double, CPU.device);
        let error = |found: Tensor| (found - &exact).norm().double_value(&[]);
        let on_cpu = error(gradient_on(Kind::BFloat16, CPU.device));
        // Packed, then piece by piece in 32 bits.
        let (packed, pieces) = (
            error(gradient_on(Kind::BFloat16, gpu)),
            error(gradient_on(Kind::Float, gpu)),
        );
        assert!(packed < 1.5 * on_cpu, "{name}: {packed} {on_cpu}");
        let norm = exact.norm().double_value(&[]);
        assert!(pieces < 1e-3 * norm, "{name}: {pieces} of {norm}");
    }
}
