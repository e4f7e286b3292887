//! Generation on fixed prompts: tokens a second and milliseconds a step.
//!
//! ```text
//! cargo bench --workspace --bench generate -- MODEL_FOLDER [--device cpu|cuda] [--precision float32|bfloat16] [--threads N]
//!     [--sequences 1,16,64] [--prompt-tokens 64] [--new-tokens 64] [--temperature 0] [--image] [--repeat 3]
//! ```
//!
//! Prints one JSON line for each number of sequences. `benches/generate_cpu.py` does the same with transformers. Prompts are
//! all different; `--image` puts an image of 64 patches into each.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and stops at the first fault"
)]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, LoadOptions, ModelBackend, PatchedImage,
    Policy, Precision, SamplingParams, TokenizedPrompt,
};
use operators_torch::{DeviceChoice, TorchBackend};
use serde_json::{Value, json};

/// Ids below this are special tokens.
const FIRST_ID: u64 = 20;
/// Patches along each side of the image.
const SIDE: usize = 8;

struct Settings {
    folder: PathBuf,
    config: Value,
    prompt_tokens: usize,
    new_tokens: usize,
    temperature: f64,
    repeat: usize,
    image: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let number =
        |name: &str, usual: usize| option(name).map_or(usual, |text| text.parse().unwrap());
    let Some(folder) = arguments.first().filter(|first| !first.starts_with("--")) else {
        // Without a model, as in a run of all benches, there is nothing to measure.
        println!("give a model folder");
        return;
    };
    let folder = PathBuf::from(folder);
    let settings = Settings {
        config: serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap())
            .unwrap(),
        folder,
        prompt_tokens: number("--prompt-tokens", 64),
        new_tokens: number("--new-tokens", 64),
        temperature: option("--temperature").map_or(0.0, |text| text.parse().unwrap()),
        repeat: number("--repeat", 3),
        image: arguments.iter().any(|argument| argument == "--image"),
    };
    let choice = match option("--device").as_deref() {
        Some("cuda") => DeviceChoice::Cuda(0),
        _ => DeviceChoice::Cpu,
    };
    let precision = match option("--precision").as_deref() {
        Some("bfloat16") => Precision::Bfloat16,
        _ => Precision::Float32,
    };
    let backend = TorchBackend::new(choice, Some(number("--threads", 2))).unwrap();
    let options = LoadOptions {
        precision,
        training: None,
    };
    let mut policy = backend.load(&settings.folder, &options).unwrap();
    let sequences = option("--sequences").unwrap_or_else(|| "1,16,64".to_owned());
    for count in sequences.split(',') {
        let count = count.parse().unwrap();
        println!("{}", measure(&mut *policy, &settings, count));
    }
}

fn measure(policy: &mut dyn Policy, settings: &Settings, count: usize) -> Value {
    let requests: Vec<GenerationRequest> = (0..count)
        .map(|index| GenerationRequest {
            prompt: Arc::new(prompt(settings, index as u64)),
            prompt_stream: index as u64,
            sample: 0,
        })
        .collect();
    let first = timed(policy, settings, &requests, 1).0;
    let mut seconds = Vec::new();
    let mut done = Vec::new();
    for _ in 0..settings.repeat {
        let (taken, completions) = timed(policy, settings, &requests, settings.new_tokens);
        seconds.push(taken);
        done = completions;
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens: usize = done
        .iter()
        .map(|completion| completion.token_ids.len())
        .sum();
    let steps = settings.new_tokens.saturating_sub(1).max(1) as f64;
    let head = done
        .last()
        .map(|last| &last.token_ids[..8.min(last.token_ids.len())]);
    json!({
        "peer": "metis-flow",
        "sequences": count,
        "tokens": tokens,
        "seconds": median,
        "tokens_per_s": tokens as f64 / median,
        "first_token_s": first,
        "step_ms": (median - first) / steps * 1e3,
        "head": head,
    })
}

fn timed(
    policy: &mut dyn Policy,
    settings: &Settings,
    requests: &[GenerationRequest],
    new_tokens: usize,
) -> (f64, Vec<Completion>) {
    let params = SamplingParams {
        temperature: settings.temperature,
        max_new_tokens: new_tokens,
        ..SamplingParams::default()
    };
    let start = Instant::now();
    let done = policy
        .generate(requests, &params, &mut |_: GenerationProgress| {
            ControlFlow::Continue(())
        })
        .unwrap();
    (start.elapsed().as_secs_f64(), done)
}

/// Prompt `index`; the Python side makes the same one.
fn prompt(settings: &Settings, index: u64) -> TokenizedPrompt {
    let vocab = integer(&settings.config, "vocab_size").min(40_000) as u64;
    let id = |place: u64| FIRST_ID + (place * 7919 + index * 104_729) % (vocab - FIRST_ID);
    let ids = (0..settings.prompt_tokens as u64).map(id);
    let mut token_ids: Vec<u32> = ids.map(|id| u32::try_from(id).unwrap()).collect();
    let mut images = Vec::new();
    if settings.image {
        let vision = &settings.config["vision_config"];
        let unit = integer(vision, "spatial_merge_size").pow(2);
        let patch = integer(vision, "patch_size").pow(2);
        let width = 3 * patch * integer(vision, "temporal_patch_size");
        let special = |name: &str| u32::try_from(integer(&settings.config, name)).unwrap();
        let span = std::iter::once(special("vision_start_token_id"))
            .chain(std::iter::repeat_n(
                special("image_token_id"),
                SIDE * SIDE / unit,
            ))
            .chain([special("vision_end_token_id")]);
        token_ids.splice(4..4, span);
        let value = |place: usize| (0.1 * place as f64 + index as f64).sin() as f32;
        images.push(Arc::new(PatchedImage {
            patches: (0..SIDE * SIDE * width).map(value).collect(),
            grid_thw: [1, SIDE, SIDE],
        }));
    }
    TokenizedPrompt { token_ids, images }
}

/// A number of the configuration, or of its part for text.
fn integer(config: &Value, name: &str) -> usize {
    let found = config.get(name).or_else(|| config["text_config"].get(name));
    let found = found.and_then(Value::as_u64);
    usize::try_from(found.unwrap_or_else(|| panic!("config.json has no {name}"))).unwrap()
}
