//! The Qwen2.5-VL architecture: vision tower, merger and a language model with multimodal rotary positions.
//!
//! Source: Bai et al. 2025, "Qwen2.5-VL Technical Report"; the layout of weights and positions is that of the
//! published checkpoints.

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod language;
pub(crate) mod position;
pub(crate) mod prompt;
pub(crate) mod rope;
pub(crate) mod vision;
pub(crate) mod window;

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::parameters::Parameters;
use language::Language;
use vision::Vision;

/// The layers of a loaded model: views of its weights, and the maths between them.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) language: Language,
    pub(crate) vision: Vision,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

impl Model {
    pub(crate) fn new(
        config: ModelConfig,
        weights: &Parameters,
        kind: Kind,
        device: Device,
    ) -> Self {
        let language = Language::new(&config, weights);
        let vision = Vision::new(&config.vision, weights);
        Self {
            config,
            language,
            vision,
            kind,
            device,
        }
    }
}

/// A vector of indices on the device.
pub(crate) fn indices(values: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_device(device)
}
