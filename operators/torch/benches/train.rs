//! Trains on batches that a script describes and writes how long it took, how much memory it held, and the losses.
//!
//! `train MODEL JOBS.json RESULTS.json [cpu|cuda]`, for `benches/train.py`, which makes models and batches and runs PyTorch on the same.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine_core::policy::{
    LoadOptions, LoraOptions, Loss, Masters, MemoryDemand, ModelBackend, Precision,
    TokenizedPrompt, TrainOptions, TrainSequence,
};
use operators_torch::{DeviceChoice, TorchBackend};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Jobs {
    precision: Precision,
    threads: Option<usize>,
    #[serde(default)]
    recompute: bool,
    #[serde(default)]
    micro_batch_tokens: Option<usize>,
    #[serde(default)]
    deterministic: bool,
    #[serde(default)]
    masters: Masters,
    #[serde(default)]
    lora_rank: Option<usize>,
    learning_rate: f64,
    max_grad_norm: f64,
    weight_decay: f64,
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    name: String,
    /// The batches of the steps: sequences of token ids, the first `prompt` of each without loss.
    batches: Vec<Vec<Vec<u32>>>,
    /// Tokens of a sequence that carry no loss.
    prompt: usize,
    /// Steps at the beginning that are not timed.
    warm_up: usize,
}

#[derive(Serialize)]
struct Report {
    name: String,
    /// Of each step that is timed.
    seconds: Vec<f64>,
    /// Forward and backward of each step that is timed, without the optimizer.
    gradient_seconds: Vec<f64>,
    tokens_per_second: f64,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    planned_bytes: u64,
    peak_bytes: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| text != "--bench")
        .collect();
    let [model, jobs, results, rest @ ..] = &arguments[..] else {
        println!("usage: train MODEL JOBS.json RESULTS.json [cpu|cuda]");
        return Ok(());
    };
    let jobs: Jobs = serde_json::from_slice(&std::fs::read(jobs)?)?;
    let device = match rest.first().map(String::as_str) {
        Some("cpu") => DeviceChoice::Cpu,
        _ => DeviceChoice::Auto,
    };
    let backend = TorchBackend::new(device, jobs.threads)?;
    let reports = jobs
        .jobs
        .iter()
        .map(|job| run(&backend, Path::new(model), &jobs, job))
        .collect::<Result<Vec<Report>, _>>()?;
    std::fs::write(results, serde_json::to_vec(&reports)?)?;
    Ok(())
}

/// A job on a freshly loaded model, so that jobs do not sway each other.
fn run(
    backend: &TorchBackend,
    model: &Path,
    jobs: &Jobs,
    job: &Job,
) -> Result<Report, Box<dyn std::error::Error>> {
    let lora = |rank| LoraOptions {
        rank,
        alpha: 2.0 * rank as f64,
        targets: Vec::new(),
    };
    let training = TrainOptions {
        weight_decay: jobs.weight_decay,
        max_grad_norm: jobs.max_grad_norm,
        lora: jobs.lora_rank.map(lora),
        masters: jobs.masters,
        recompute: jobs.recompute,
        deterministic: jobs.deterministic,
        micro_batch_tokens: jobs.micro_batch_tokens,
        ..TrainOptions::default()
    };
    let options = LoadOptions {
        precision: jobs.precision,
        training: Some(training),
    };
    let mut policy = backend.load(model, &options)?;
    let longest = job.batches.iter().flatten().map(Vec::len).max();
    let tokens = |batch: &Vec<Vec<u32>>| batch.iter().map(Vec::len).sum::<usize>();
    let all = job.batches.iter().map(tokens).max();
    let plan = policy.plan_memory(&MemoryDemand {
        train_tokens: longest.unwrap_or(0),
        call_tokens: all.unwrap_or(0),
        ..MemoryDemand::default()
    })?;
    let mut report = Report {
        name: job.name.clone(),
        seconds: Vec::new(),
        gradient_seconds: Vec::new(),
        tokens_per_second: 0.0,
        losses: Vec::new(),
        grad_norms: Vec::new(),
        planned_bytes: plan.peak(),
        peak_bytes: 0,
    };
    let mut tokens = 0;
    for (number, batch) in job.batches.iter().enumerate() {
        let sequences = sequences(batch, job.prompt);
        let start = Instant::now();
        let loss = policy.forward_backward(&sequences, Loss::CrossEntropy)?;
        let gradient = start.elapsed();
        // Reading the norm waits for the device.
        let step = policy.optimizer_step(jobs.learning_rate)?;
        if number >= job.warm_up {
            report.seconds.push(start.elapsed().as_secs_f64());
            report.gradient_seconds.push(gradient.as_secs_f64());
            tokens += batch.iter().map(Vec::len).sum::<usize>();
        }
        report.losses.push(loss.loss);
        report.grad_norms.push(step.grad_norm);
    }
    report.tokens_per_second = tokens as f64 / report.seconds.iter().sum::<f64>();
    report.peak_bytes = policy.peak_memory();
    println!(
        "{}: {:.0} tokens/s, peak {:.2} GiB, planned {:.2} GiB",
        report.name,
        report.tokens_per_second,
        report.peak_bytes as f64 / (1_u64 << 30) as f64,
        report.planned_bytes as f64 / (1_u64 << 30) as f64
    );
    Ok(report)
}

/// Each sequence with the mean over all tokens of the batch that carry loss.
fn sequences(batch: &[Vec<u32>], prompt: usize) -> Vec<TrainSequence> {
    let learnt: usize = batch.iter().map(|ids| ids.len() - prompt).sum();
    batch
        .iter()
        .map(|ids| TrainSequence {
            prompt: Arc::new(TokenizedPrompt {
                token_ids: ids[..prompt].to_vec(),
                images: Vec::new(),
            }),
            completion: ids[prompt..].to_vec(),
            token_weight: 1.0 / learnt as f32,
            ..TrainSequence::default()
        })
        .collect()
}
