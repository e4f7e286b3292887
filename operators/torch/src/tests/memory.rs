//! The plan of memory beside what a process really takes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engine_core::policy::{
    GenerationProgress, GenerationRequest, LoadOptions, Loss, MemoryDemand, ModelBackend, Policy,
    SamplingParams, TokenizedPrompt, TrainOptions, TrainSequence,
};

use super::sequence;
use crate::memory::of_process;
use crate::{DeviceChoice, TorchBackend};

const VOCAB: u32 = 8000;

/// A model of 20 million weights.
fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("metis-flow-memory-{}", std::process::id()));
    let config = folder.join("config");
    std::fs::create_dir_all(&config).unwrap();
    let text = format!(
        r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": {VOCAB}, "hidden_size": 512,
        "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "hidden_act": "silu", "max_position_embeddings": 4096, "initializer_range": 0.02, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        "bos_token_id": 1, "eos_token_id": 2}}"#
    );
    std::fs::write(config.join("config.json"), text).unwrap();
    folder
}

fn prompt(stream: u32, count: usize) -> Arc<TokenizedPrompt> {
    let word =
        |place: u32| 7 + crate::philox::philox([stream, place, 0, 0], [5, 6])[0] % (VOCAB - 7);
    Arc::new(TokenizedPrompt {
        token_ids: (0..count as u32).map(word).collect(),
        images: Vec::new(),
    })
}

/// Trains or generates in this process, and prints what was planned and what it took.
fn measure(training: Option<TrainOptions>, longest: usize, generate: usize) {
    let folder = folder();
    let backend = TorchBackend::new(DeviceChoice::Cpu, Some(2)).unwrap();
    let model = folder.join("model");
    backend
        .initialise(&folder.join("config"), 1, &model)
        .unwrap();
    let options = LoadOptions {
        training,
        ..super::inference()
    };
    // What the library itself takes is no part of the plan.
    let before = of_process("VmRSS:").unwrap();
    let mut policy = backend.load(&model, &options).unwrap();
    let demand = MemoryDemand {
        train_tokens: longest,
        call_tokens: 3 * longest,
        generate_tokens: if generate > 0 { 400 } else { 0 },
        generate_concurrent: generate,
    };
    let plan = policy.plan_memory(&demand).unwrap();
    if longest > 0 {
        learn(policy.as_mut(), longest);
    }
    if generate > 0 {
        sample(policy.as_mut(), generate);
    }
    let taken = policy.peak_memory() - before;
    println!("\nplanned {} taken {taken}\n{plan:?}", plan.peak());
    std::fs::remove_dir_all(&folder).unwrap();
}

fn learn(policy: &mut dyn Policy, longest: usize) {
    let sequences: Vec<TrainSequence> = (0..3)
        .map(|index| {
            sequence(
                &prompt(index, longest / 4),
                &prompt(9 + index, longest - longest / 4).token_ids,
            )
        })
        .collect();
    policy
        .forward_backward(&sequences, Loss::CrossEntropy)
        .unwrap();
    policy.optimizer_step(1e-4).unwrap();
}

fn sample(policy: &mut dyn Policy, count: usize) {
    let requests: Vec<GenerationRequest> = (0..count)
        .map(|index| GenerationRequest {
            prompt: prompt(index as u32, 392),
            prompt_stream: index as u64,
            sample: 0,
        })
        .collect();
    let params = SamplingParams {
        max_new_tokens: 8,
        ..SamplingParams::default()
    };
    let mut watch = |_: GenerationProgress| ControlFlow::Continue(());
    policy.generate(&requests, &params, &mut watch).unwrap();
}

fn options(recompute: bool, tokens: usize) -> TrainOptions {
    TrainOptions {
        recompute,
        micro_batch_tokens: Some(tokens),
        ..TrainOptions::default()
    }
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn one_that_keeps() {
    measure(Some(options(false, 1536)), 1536, 0);
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn one_that_recomputes() {
    measure(Some(options(true, 2048)), 2048, 0);
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn one_that_generates() {
    measure(None, 0, 48);
}

#[test]
fn what_is_planned_is_what_is_taken() {
    let mut shares = Vec::new();
    for child in [
        "one_that_keeps",
        "one_that_recomputes",
        "one_that_generates",
    ] {
        let name = format!("tests::memory::{child}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&name, "--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("planned "));
        let line = line.unwrap_or_else(|| panic!("{child}: {text}"));
        let (planned, taken) = line.split_once(" taken ").unwrap();
        let share = planned.parse::<f64>().unwrap() / taken.parse::<f64>().unwrap();
        shares.push((share, text));
    }
    assert!(
        shares.iter().all(|(share, _)| (0.8..1.2).contains(share)),
        "{shares:#?}"
    );
}

#[test]
fn what_does_not_fit_says_what_to_change() {
    let folder = super::golden::folder("llama/smol");
    let options = LoadOptions {
        training: Some(TrainOptions::default()),
        ..super::inference()
    };
    let backend = TorchBackend::new(DeviceChoice::Cpu, Some(1)).unwrap();
    let policy = backend.load(Path::new(&folder), &options).unwrap();
    let demand = MemoryDemand {
        train_tokens: 1 << 40,
        ..MemoryDemand::default()
    };
    let error = policy.plan_memory(&demand).unwrap_err().to_string();
    for part in [
        "weights ",
        "optimizer ",
        "activations ",
        "`recompute: true`",
        "`lora`",
        "`precision: bfloat16`",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("micro-batch-tokens"), "{error}");
    let plan = policy.plan_memory(&MemoryDemand::default()).unwrap();
    assert_eq!(
        (plan.activations, plan.gradients, plan.generation),
        (0, 0, 0)
    );
    assert!(plan.optimizer >= 2 * plan.weights && plan.weights > 0);
}
