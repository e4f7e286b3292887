//! The architectures: one language model with the parts that a family asks for, and a vision tower for each family of
//! vision-language models.

pub(crate) mod attention;
mod batches;
pub(crate) mod between;
pub(crate) mod cache;
pub(crate) mod flash;
mod kernel;
pub(crate) mod language;
pub(crate) mod layer;
mod long;
pub(crate) mod norm;
pub(crate) mod packed;
mod pieces;
pub(crate) mod position;
pub(crate) mod prompt;
mod qwen2_5_vl;
mod qwen3_vl;
pub(crate) mod rope;
pub(crate) mod tower;
pub(crate) mod tower_pass;
pub(crate) mod window;

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::device::upload;
use crate::parameters::Parameters;
use language::Language;
use tower::Vision;

/// The layers of a loaded model: views of its weights, and the maths between them.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) language: Language,
    /// `None` for a model of text alone.
    pub(crate) vision: Option<Vision>,
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
        let vision = (config.vision.as_ref()).map(|vision| Vision::new(vision, weights));
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
    upload(values, device)
}
