//! One RL step of `pipelines/rise.yaml` (16 prompts, 8 samples each) and one SFT step, timed phase by phase.
//!
//! ```text
//! cargo bench --bench rl_step -- [--device cpu|cuda] [--threads N] [--repeat N] [--write-inputs FILE.json]
//! ```
//!
//! Prints one JSON line with medians. `benches/rl_step.py` does the same step in PyTorch with transformers, on the inputs
//! that `--write-inputs` leaves.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and stops at the first fault"
)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::AsArray;
use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, LoadOptions, Loss, ModelBackend, Policy,
    Precision, SamplingParams, TokenizedPrompt, TrainOptions, TrainSequence,
};
use operators_model::processor::Processor;
use operators_model::prompt_rows::{ContentPart, Message};
use operators_torch::{DeviceChoice, TorchBackend};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

const PROMPTS: usize = 16;
const SAMPLES: u32 = 8;
const MAX_NEW_TOKENS: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let device = option("--device").unwrap_or_else(|| "cpu".to_owned());
    let threads = option("--threads").map_or(2, |text| text.parse().unwrap());
    let repeat: usize = option("--repeat").map_or(9, |text| text.parse().unwrap());
    let root =
        PathBuf::from(option("--root").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned()));
    let folder = root.join("examples/models/base");
    let processor = Processor::load(&folder).unwrap();
    let prompts = prompts(&root.join("examples/data/train.parquet"), &processor);
    if let Some(file) = option("--write-inputs") {
        write_inputs(Path::new(&file), &folder, &processor, &prompts);
    }
    let choice = if device == "cpu" {
        DeviceChoice::Cpu
    } else {
        DeviceChoice::Cuda(0)
    };
    let backend = TorchBackend::new(choice, Some(threads)).unwrap();
    let mut policy = backend.load(&folder, &load_options()).unwrap();

    let (mut generation, mut update, mut sft, mut rates) = (vec![], vec![], vec![], vec![]);
    let mut tokens = 0;
    for round in 0..=repeat {
        let start = Instant::now();
        let completions = generate(policy.as_mut(), &processor, &prompts, round as u64);
        let generated = start.elapsed().as_secs_f64();
        let start = Instant::now();
        learn(policy.as_mut(), &prompts, &completions);
        let updated = start.elapsed().as_secs_f64();
        let start = Instant::now();
        imitate(policy.as_mut(), &prompts, &completions);
        let imitated = start.elapsed().as_secs_f64();
        // The first round warms up.
        if round > 0 {
            tokens = completions
                .iter()
                .map(|completion| completion.token_ids.len())
                .sum();
            generation.push(generated);
            update.push(updated);
            sft.push(imitated);
            rates.push(tokens as f64 / generated);
        }
    }
    let step: Vec<f64> = generation
        .iter()
        .zip(&update)
        .map(|(left, right)| left + right)
        .collect();
    println!(
        "{}",
        json!({
            "peer": "metis-flow",
            "device": backend.describe(),
            "threads": threads,
            "rollouts": PROMPTS * SAMPLES as usize,
            "generation_s": median(generation),
            "update_s": median(update),
            "step_s": median(step),
            "completion_tokens": tokens,
            "generated_tokens_per_s": median(rates),
            "sft_32_sequences_s": median(sft),
        })
    );
}

fn load_options() -> LoadOptions {
    let training = TrainOptions {
        freeze: vec!["visual.".to_owned()],
        beta2: 0.95,
        ..TrainOptions::default()
    };
    LoadOptions {
        precision: Precision::Float32,
        training: Some(training),
    }
}

fn generate(
    policy: &mut dyn Policy,
    processor: &Processor,
    prompts: &[Arc<TokenizedPrompt>],
    round: u64,
) -> Vec<Completion> {
    let requests: Vec<GenerationRequest> = prompts
        .iter()
        .enumerate()
        .flat_map(|(index, prompt)| {
            (0..SAMPLES).map(move |sample| GenerationRequest {
                prompt: Arc::clone(prompt),
                prompt_stream: index as u64,
                sample,
            })
        })
        .collect();
    let params = SamplingParams {
        temperature: 1.0,
        max_new_tokens: MAX_NEW_TOKENS,
        stop_token_ids: processor.stop_token_ids().to_vec(),
        seed: round,
        max_concurrent: 256,
        ..SamplingParams::default()
    };
    policy
        .generate(&requests, &params, &mut |_: GenerationProgress| {
            ControlFlow::Continue(())
        })
        .unwrap()
}

/// One policy-gradient update on all rollouts, none dropped: the peer does the same.
fn learn(policy: &mut dyn Policy, prompts: &[Arc<TokenizedPrompt>], completions: &[Completion]) {
    let sequences: Vec<TrainSequence> = completions
        .iter()
        .enumerate()
        .map(|(index, completion)| TrainSequence {
            prompt: Arc::clone(&prompts[index / SAMPLES as usize]),
            completion: completion.token_ids.clone(),
            token_weight: 1.0 / (completions.len() * completion.token_ids.len()) as f32,
            advantages: vec![if index % 2 == 0 { 1.0 } else { -1.0 }],
            sampler_logprobs: completion.logprobs.clone(),
            ..TrainSequence::default()
        })
        .collect();
    policy
        .forward_backward(&sequences, Loss::clipped(0.2, 0.28))
        .unwrap();
    policy.optimizer_step(1e-5).unwrap();
}

/// One fine-tuning step of 32 sequences with a prompt each of its own.
fn imitate(policy: &mut dyn Policy, prompts: &[Arc<TokenizedPrompt>], completions: &[Completion]) {
    let tokens: usize = completions
        .iter()
        .take(32)
        .map(|completion| completion.token_ids.len())
        .sum();
    let sequences: Vec<TrainSequence> = completions
        .iter()
        .take(32)
        .enumerate()
        .map(|(index, completion)| TrainSequence {
            prompt: Arc::new(TokenizedPrompt::clone(&prompts[index % PROMPTS])),
            completion: completion.token_ids.clone(),
            token_weight: 1.0 / tokens as f32,
            ..TrainSequence::default()
        })
        .collect();
    policy
        .forward_backward(&sequences, Loss::CrossEntropy)
        .unwrap();
    policy.optimizer_step(1e-5).unwrap();
}

/// The first prompts of the training set, as the model sees them.
fn prompts(file: &Path, processor: &Processor) -> Vec<Arc<TokenizedPrompt>> {
    let file = std::fs::File::open(file).unwrap();
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .with_batch_size(PROMPTS)
        .build()
        .unwrap();
    let batch = reader.next().unwrap().unwrap();
    let problems = arrow::compute::cast(
        batch.column_by_name("problem").unwrap(),
        &schemas::tables::TEXT,
    )
    .unwrap();
    let images = batch
        .column_by_name("images")
        .unwrap()
        .as_list::<i32>()
        .clone();
    (0..PROMPTS)
        .map(|row| {
            let bytes = images.value(row);
            let bytes = Arc::clone(bytes.as_struct().column_by_name("bytes").unwrap());
            let patches = Arc::new(
                processor
                    .patches(bytes.as_binary::<i32>().value(0))
                    .unwrap(),
            );
            let text = problems
                .as_string::<i64>()
                .value(row)
                .replace("<image>", "");
            let content = vec![ContentPart::Image(String::new()), ContentPart::Text(text)];
            let messages = [Message {
                role: "user".to_owned(),
                content,
            }];
            Arc::new(processor.tokenize(&messages, vec![patches]).unwrap())
        })
        .collect()
}

fn write_inputs(
    file: &Path,
    folder: &Path,
    processor: &Processor,
    prompts: &[Arc<TokenizedPrompt>],
) {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let rows: Vec<serde_json::Value> = prompts
        .iter()
        .map(|prompt| {
            let images: Vec<serde_json::Value> = prompt
                .images
                .iter()
                .map(|image| {
                    let width = image.patches.len() / image.grid_thw.iter().product::<usize>();
                    json!({"patches": image.patches, "patch_width": width, "grid_thw": image.grid_thw})
                })
                .collect();
            json!({"token_ids": prompt.token_ids, "images": images})
        })
        .collect();
    let inputs = json!({
        "prompts": rows,
        "samples": SAMPLES,
        "max_new_tokens": MAX_NEW_TOKENS,
        "stop_token_ids": processor.stop_token_ids(),
        "pad_token_id": config["pad_token_id"],
        "image_token_id": config["image_token_id"],
    });
    std::fs::write(file, inputs.to_string()).unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
