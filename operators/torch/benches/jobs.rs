//! Runs generation jobs that a script describes and writes what came out and how long it took.
//!
//! `jobs MODEL JOBS.json RESULTS.json [cpu|cuda]`. The scripts in `benches/` make the models and the jobs, run others' programs on the
//! same, and compare: correctness as well as speed.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, LoadOptions, ModelBackend, PatchedImage,
    Policy, Precision, SamplingParams, SessionLimits, SessionRequest, StopCheck, TokenizedPrompt,
    TrainSequence,
};
use operators_torch::{DeviceChoice, TorchBackend};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Jobs {
    precision: Precision,
    /// Threads of the CPU; as many as there are if not given.
    threads: Option<usize>,
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    name: String,
    prompts: Vec<Prompt>,
    /// Which prompts are asked for, in this order; each with its samples.
    #[serde(default)]
    order: Option<Vec<usize>>,
    samples: u32,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    top_k: usize,
    #[serde(default = "one")]
    top_p: f64,
    #[serde(default)]
    min_p: f64,
    #[serde(default = "one")]
    repetition_penalty: f64,
    #[serde(default)]
    presence_penalty: f64,
    #[serde(default)]
    frequency_penalty: f64,
    max_new_tokens: usize,
    max_concurrent: usize,
    /// Through a session instead of `generate`; with the length at which each request stops.
    #[serde(default)]
    lengths: Option<Vec<usize>>,
    /// How often it runs; times are of the last.
    #[serde(default = "once")]
    times: usize,
    /// Whether the completions are written.
    #[serde(default)]
    keep: bool,
    /// Whether log-probabilities are computed again by the training path.
    #[serde(default)]
    recompute: bool,
}

#[derive(Deserialize)]
struct Prompt {
    token_ids: Vec<u32>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    grid_thw: [usize; 3],
    /// Little-endian 32-bit floats.
    file: PathBuf,
}

fn one() -> f64 {
    1.0
}

fn once() -> usize {
    1
}

#[derive(Serialize)]
struct Report {
    name: String,
    seconds: f64,
    tokens: usize,
    tokens_per_second: f64,
    /// Until the first token of any request.
    first_token_seconds: f64,
    /// Median of the time between two steps.
    step_milliseconds: f64,
    /// The same in each fifth of the steps.
    step_milliseconds_by_fifth: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completions: Option<Vec<Kept>>,
    /// Log-probabilities of the training path.
    #[serde(skip_serializing_if = "Option::is_none")]
    recomputed: Option<Vec<Vec<f32>>>,
}

#[derive(Serialize)]
struct Kept {
    prompt: usize,
    sample: u32,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
    truncated_logprobs: Vec<f32>,
    entropies: Vec<f32>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| text != "--bench")
        .collect();
    let [model, jobs, results, rest @ ..] = &arguments[..] else {
        println!("usage: jobs MODEL JOBS.json RESULTS.json [cpu|cuda]");
        return Ok(());
    };
    let jobs: Jobs = serde_json::from_slice(&std::fs::read(jobs)?)?;
    let device = match rest.first().map(String::as_str) {
        Some("cpu") => DeviceChoice::Cpu,
        _ => DeviceChoice::Auto,
    };
    let backend = TorchBackend::new(device, jobs.threads)?;
    let options = LoadOptions {
        precision: jobs.precision,
        training: None,
    };
    let start = Instant::now();
    let mut policy = backend.load(Path::new(model), &options)?;
    println!(
        "loaded {} in {:.1} s",
        policy.info().device,
        start.elapsed().as_secs_f64()
    );
    let mut reports = Vec::new();
    for job in jobs.jobs {
        let report = job.run(&mut *policy)?;
        println!(
            "{}: {:.3} s, {:.0} tokens/s, {:.3} ms a step {:.2?}, first token after {:.3} s",
            report.name,
            report.seconds,
            report.tokens_per_second,
            report.step_milliseconds,
            report.step_milliseconds_by_fifth,
            report.first_token_seconds
        );
        reports.push(report);
        std::fs::write(results, serde_json::to_vec(&reports)?)?;
    }
    Ok(())
}

/// When steps ended, and how many tokens there were by then.
struct Clock {
    start: Instant,
    steps: Vec<(f64, usize)>,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            steps: Vec::new(),
        }
    }

    fn tick(&mut self, tokens: usize) {
        self.steps
            .push((self.start.elapsed().as_secs_f64(), tokens));
    }

    fn report(self, name: String, completions: &[Completion]) -> Report {
        let seconds = self.start.elapsed().as_secs_f64();
        let tokens = completions
            .iter()
            .map(|completion| completion.token_ids.len())
            .sum();
        let gaps: Vec<f64> = self
            .steps
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0) * 1e3)
            .collect();
        let fifth = gaps.len().div_ceil(5).max(1);
        Report {
            name,
            seconds,
            tokens,
            tokens_per_second: tokens as f64 / seconds,
            first_token_seconds: self
                .steps
                .iter()
                .find(|step| step.1 > 0)
                .map_or(0.0, |step| step.0),
            step_milliseconds: median(&gaps),
            step_milliseconds_by_fifth: gaps.chunks(fifth).map(median).collect(),
            completions: None,
            recomputed: None,
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

impl Job {
    fn run(&self, policy: &mut dyn Policy) -> Result<Report, Box<dyn std::error::Error>> {
        let prompts = self
            .prompts
            .iter()
            .map(Prompt::load)
            .collect::<Result<Vec<_>, _>>()?;
        let order = self
            .order
            .clone()
            .unwrap_or_else(|| (0..prompts.len()).collect());
        let places: Vec<(usize, u32)> = order
            .iter()
            .flat_map(|prompt| (0..self.samples).map(move |sample| (*prompt, sample)))
            .collect();
        let requests: Vec<GenerationRequest> = places
            .iter()
            .map(|(prompt, sample)| GenerationRequest {
                prompt: Arc::clone(&prompts[*prompt]),
                prompt_stream: *prompt as u64 + 1,
                sample: *sample,
            })
            .collect();
        let mut last = None;
        for _ in 0..self.times {
            last = Some(match &self.lengths {
                Some(lengths) => self.in_session(policy, &requests, lengths)?,
                None => self.together(policy, &requests)?,
            });
        }
        let (mut report, completions) = last.ok_or("times is 0")?;
        if self.recompute {
            let sequence =
                |(request, completion): (&GenerationRequest, &Completion)| TrainSequence {
                    prompt: Arc::clone(&request.prompt),
                    completion: completion.token_ids.clone(),
                    token_weight: 1.0,
                    ..TrainSequence::default()
                };
            let sequences: Vec<TrainSequence> =
                requests.iter().zip(&completions).map(sequence).collect();
            report.recomputed = Some(policy.logprobs(&sequences)?);
        }
        if self.keep {
            let kept = |((prompt, sample), completion): (&(usize, u32), Completion)| Kept {
                prompt: *prompt,
                sample: *sample,
                token_ids: completion.token_ids,
                logprobs: completion.logprobs,
                truncated_logprobs: completion.truncated_logprobs,
                entropies: completion.entropies,
            };
            report.completions = Some(places.iter().zip(completions).map(kept).collect());
        }
        Ok(report)
    }

    fn params(&self, stop: Option<usize>) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            max_new_tokens: self.max_new_tokens,
            stop_check: stop
                .map(|length| StopCheck(Arc::new(move |tokens| tokens.len() >= length))),
            seed: 17,
            max_concurrent: self.max_concurrent,
            ..SamplingParams::default()
        }
    }

    fn together(
        &self,
        policy: &mut dyn Policy,
        requests: &[GenerationRequest],
    ) -> Result<(Report, Vec<Completion>), Box<dyn std::error::Error>> {
        let mut clock = Clock::new();
        let completions = policy.generate(
            requests,
            &self.params(None),
            &mut |progress: GenerationProgress| {
                clock.tick(progress.tokens);
                ControlFlow::Continue(())
            },
        )?;
        Ok((clock.report(self.name.clone(), &completions), completions))
    }

    /// Requests whose lengths the batch does not know beforehand.
    fn in_session(
        &self,
        policy: &mut dyn Policy,
        requests: &[GenerationRequest],
        lengths: &[usize],
    ) -> Result<(Report, Vec<Completion>), Box<dyn std::error::Error>> {
        let longest = requests
            .iter()
            .map(|request| request.prompt.token_ids.len())
            .max()
            .unwrap_or(0);
        let limits = SessionLimits {
            max_concurrent: self.max_concurrent,
            max_tokens: longest + self.max_new_tokens,
        };
        let mut clock = Clock::new();
        let mut session = policy.session(limits)?;
        let mut ids = std::collections::HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            let id = session.submit(SessionRequest {
                request: request.clone(),
                params: Arc::new(self.params(Some(lengths[index]))),
                top_logprobs: 0,
            })?;
            ids.insert(id, index);
        }
        let mut completions = vec![Completion::default(); requests.len()];
        let mut total = 0;
        while session.pending() > 0 {
            for token in session.step()? {
                let completion = &mut completions[ids[&token.id]];
                completion.token_ids.push(token.token);
                completion.logprobs.push(token.logprob);
                completion.truncated_logprobs.push(token.truncated_logprob);
                completion.entropies.push(token.entropy);
                total += 1;
            }
            clock.tick(total);
        }
        Ok((clock.report(self.name.clone(), &completions), completions))
    }
}

impl Prompt {
    fn load(&self) -> Result<Arc<TokenizedPrompt>, std::io::Error> {
        let mut images = Vec::new();
        for image in &self.images {
            let bytes = std::fs::read(&image.file)?;
            let values = bytes.chunks_exact(4);
            images.push(Arc::new(PatchedImage {
                patches: values
                    .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
                    .collect(),
                grid_thw: image.grid_thw,
            }));
        }
        Ok(Arc::new(TokenizedPrompt {
            token_ids: self.token_ids.clone(),
            images,
        }))
    }
}
