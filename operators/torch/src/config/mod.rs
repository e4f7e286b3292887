//! `config.json` of the families that this crate builds: what it says, checked, in one form for all of them.
//!
//! Both layouts are read: the published one (`rope_theta`, `rope_scaling`, and for Qwen2.5-VL text fields at the top) and that of
//! transformers 5 (`text_config`, `rope_parameters`). A setting that changes the mathematics and is not built is an error.

mod llama;
mod qwen2;
mod qwen2_5_vl;
mod qwen3;
mod qwen3_vl;
mod raw;
#[cfg(test)]
mod tests;

use std::path::Path;

use engine_core::error::ModelError;
use serde_json::Value;

/// An architecture, named as in `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Vision-language: window attention in the tower, rotary positions along three axes.
    Qwen2_5Vl,
    /// Vision-language: tower features added after the first layers, interleaved rotary axes, norms of queries and keys.
    Qwen3Vl,
    /// Text: biases of queries, keys and values. Qwen2.5 has the same.
    Qwen2,
    /// Text: norms of queries and keys.
    Qwen3,
    /// Text: `SmolLM2` has it too.
    Llama,
}

impl Family {
    /// All of them.
    const ALL: [Self; 5] = [
        Self::Qwen2_5Vl,
        Self::Qwen3Vl,
        Self::Qwen2,
        Self::Qwen3,
        Self::Llama,
    ];

    /// The `model_type` of `config.json`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qwen2_5Vl => "qwen2_5_vl",
            Self::Qwen3Vl => "qwen3_vl",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }
}

/// Sizes of the whole model. Integers are `i64` because tensor sizes are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) family: Family,
    pub(crate) text: TextConfig,
    /// `None` for a model of text alone.
    pub(crate) vision: Option<VisionConfig>,
    /// Whether the output head is the embedding table.
    pub(crate) tied: bool,
}

/// Sizes of the language model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TextConfig {
    pub(crate) vocab: i64,
    pub(crate) hidden: i64,
    pub(crate) intermediate: i64,
    pub(crate) layers: usize,
    pub(crate) heads: i64,
    pub(crate) key_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) norm_eps: f64,
    /// Whether queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// Whether each head of queries and keys has a norm before its rotation.
    pub(crate) qk_norm: bool,
    pub(crate) rope: RopeConfig,
    pub(crate) max_positions: usize,
    pub(crate) initializer_range: f64,
}

/// Rotary frequencies of the language model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub(crate) theta: f64,
    pub(crate) axes: RopeAxes,
    pub(crate) scaling: Option<Llama3Scaling>,
}

/// Which axis each rotary frequency follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RopeAxes {
    /// Text has one position.
    One,
    /// The first frequencies follow time, the next height, the last width; how many of each.
    Blocks([i64; 3]),
    /// Time, height and width take turns until height and width have their number; the rest follow time.
    Interleaved([i64; 3]),
}

/// Stretches low frequencies to longer contexts than the model was trained on first (rope type `llama3`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Llama3Scaling {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    pub(crate) original_positions: f64,
}

/// Sizes of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VisionConfig {
    /// Placeholder of one merged patch.
    pub(crate) image_token_id: u32,
    pub(crate) depth: usize,
    pub(crate) hidden: i64,
    pub(crate) intermediate: i64,
    pub(crate) heads: i64,
    pub(crate) channels: i64,
    pub(crate) patch: i64,
    pub(crate) temporal_patch: i64,
    /// Patches that one merged patch has along each side.
    pub(crate) merge: i64,
    pub(crate) out_hidden: i64,
    pub(crate) rope_theta: f64,
    pub(crate) initializer_range: f64,
    pub(crate) tower: TowerConfig,
}

/// What only one family's tower has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TowerConfig {
    /// Qwen2.5-VL.
    Windowed {
        /// Side of an attention window, in merged patches.
        window: i64,
        /// Blocks that attend over the whole image.
        full_blocks: Vec<usize>,
    },
    /// Qwen3-VL.
    Deepstack {
        /// Side of the square table of position embeddings.
        table_side: i64,
        /// Blocks after which features are taken for the first layers of the language model.
        taps: Vec<usize>,
    },
}

impl VisionConfig {
    /// Values in one flattened patch.
    pub(crate) fn patch_width(&self) -> i64 {
        self.channels * self.temporal_patch * self.patch * self.patch
    }

    /// Patches in one merged patch.
    pub(crate) fn merge_unit(&self) -> i64 {
        self.merge * self.merge
    }

    /// Width of a head.
    pub(crate) fn head_dim(&self) -> i64 {
        self.hidden / self.heads
    }
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::File`] when it is missing, is not JSON, lacks a field or asks for what this crate does not build.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| ModelError::File {
            path: path.clone(),
            message: error.to_string(),
        })?;
        Self::parse(&text).map_err(|message| ModelError::File { path, message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let name = value.get("model_type").and_then(Value::as_str);
        let name = name.ok_or("no model_type")?;
        let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) else {
            let known: Vec<String> = Family::ALL
                .iter()
                .map(|family| format!("`{}`", family.name()))
                .collect();
            return Err(format!(
                "model_type is `{name}`; this back end builds {}",
                known.join(", ")
            ));
        };
        if value
            .get("quantization_config")
            .is_some_and(|quantised| !quantised.is_null())
        {
            return Err(
                "quantization_config is set; only weights of 16, 32 or 64 bits are read".to_owned(),
            );
        }
        let config = match family {
            Family::Qwen2_5Vl => qwen2_5_vl::parse(value),
            Family::Qwen3Vl => qwen3_vl::parse(value),
            Family::Qwen2 => qwen2::parse(value),
            Family::Qwen3 => qwen3::parse(value),
            Family::Llama => llama::parse(value),
        }?;
        match &config.vision {
            Some(vision) if i64::from(vision.image_token_id) >= config.text.vocab => Err(format!(
                "image_token_id {} is not below vocab_size {}",
                vision.image_token_id, config.text.vocab
            )),
            _ => Ok(config),
        }
    }
}
