//! Tests of whole models, on the tiny ones below `tests/golden`.

mod checkpoints;
mod follows_pytorch;
mod generation;
mod golden;
mod lora;
mod memory;
mod optimizer;
mod packing;
mod persistence;
mod published;
mod recompute;
mod resuming;
mod saved;
mod session;
mod smollm2;
mod training;

use std::path::PathBuf;
use std::sync::Arc;

use engine_core::policy::{
    LoadOptions, PatchedImage, Precision, SamplingParams, TokenizedPrompt, TrainOptions,
    TrainSequence,
};
use tch::{Device, Kind};

use crate::philox;
use crate::policy::{Place, TorchPolicy};

const CPU: Place = Place {
    device: Device::Cpu,
    threads: 2,
};

fn golden_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/qwen2_5_vl")
        .join(name)
}

fn inference() -> LoadOptions {
    LoadOptions {
        precision: Precision::Float32,
        training: None,
    }
}

fn training(freeze: &[&str]) -> LoadOptions {
    let training = TrainOptions {
        freeze: freeze.iter().map(|prefix| (*prefix).to_owned()).collect(),
        ..TrainOptions::default()
    };
    LoadOptions {
        precision: Precision::Float32,
        training: Some(training),
    }
}

fn policy(name: &str, options: &LoadOptions) -> TorchPolicy {
    tch::set_num_threads(1);
    TorchPolicy::load(&golden_folder(name), options, CPU).unwrap()
}

fn policy_on(threads: usize, options: &LoadOptions) -> TorchPolicy {
    tch::set_num_threads(1);
    let place = Place { threads, ..CPU };
    TorchPolicy::load(&golden_folder("grouped_tied"), options, place).unwrap()
}

fn policy_in_64_bits(name: &str, options: &LoadOptions) -> TorchPolicy {
    TorchPolicy::load_as(&golden_folder(name), options, Kind::Double, CPU).unwrap()
}

/// An image for the golden models `grouped_tied` (patches of 4, merged by 2).
fn image(stream: u64, height: usize, width: usize) -> Arc<PatchedImage> {
    let mut patches = vec![0.0; height * width * 96];
    philox::fill_normal(stream, 1.0, &mut patches);
    Arc::new(PatchedImage {
        patches,
        grid_thw: [1, height, width],
    })
}

/// A prompt for `grouped_tied`: text of some length, with an image behind the second token if there is one.
fn prompt(stream: u64, length: usize, image: Option<Arc<PatchedImage>>) -> Arc<TokenizedPrompt> {
    let text = |place: u32| 7 + philox::philox([stream as u32, place, 0, 0], [1, 2])[0] % 113;
    let mut token_ids: Vec<u32> = (0..length as u32).map(text).collect();
    if let Some(image) = &image {
        let placeholders = image.grid_thw.iter().product::<usize>() / 4;
        token_ids.splice(
            2..2,
            std::iter::once(3)
                .chain(std::iter::repeat_n(5, placeholders))
                .chain([4]),
        );
    }
    Arc::new(TokenizedPrompt {
        token_ids,
        images: image.into_iter().collect(),
    })
}

/// Prompts of several lengths, with and without images, two of which are equal in size.
fn prompts() -> Vec<Arc<TokenizedPrompt>> {
    vec![
        prompt(1, 9, None),
        prompt(2, 4, Some(image(1, 4, 6))),
        prompt(3, 9, Some(image(2, 4, 6))),
        prompt(4, 13, Some(image(3, 8, 14))),
        prompt(5, 2, None),
    ]
}

fn sequence(prompt: &Arc<TokenizedPrompt>, completion: &[u32]) -> TrainSequence {
    TrainSequence {
        prompt: Arc::clone(prompt),
        completion: completion.to_vec(),
        token_weight: 0.05,
        ..TrainSequence::default()
    }
}

/// Sequences of several lengths; some share a prompt.
fn sequences() -> Vec<TrainSequence> {
    let prompts = prompts();
    vec![
        sequence(&prompts[3], &[11, 12, 13, 2]),
        sequence(&prompts[0], &[20, 2]),
        sequence(&prompts[1], &[31, 32, 33, 34, 35, 2]),
        sequence(&prompts[0], &[40, 41, 42, 43, 2]),
        sequence(&prompts[4], &[2]),
        sequence(&prompts[1], &[50, 51, 2]),
    ]
}

fn sampling(max_concurrent: usize) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        max_new_tokens: 12,
        stop_token_ids: vec![2, 8, 9, 10],
        seed: 7,
        max_concurrent,
        ..SamplingParams::default()
    }
}
