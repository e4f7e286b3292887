//! `config.json` of the Qwen2.5-VL family, in the published layout (text fields at the top, `rope_scaling`) and in
//! that of transformers 5 (`text_config`, `rope_parameters`).

use std::path::Path;

use engine_core::error::ModelError;
use serde::Deserialize;

/// The `model_type` that this crate builds.
pub(crate) const FAMILY: &str = "qwen2_5_vl";

/// Sizes of the whole model. Integers are `i64` because tensor sizes are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) text: TextConfig,
    pub(crate) vision: VisionConfig,
    /// Placeholder of one merged patch.
    pub(crate) image_token_id: u32,
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
    pub(crate) rope_theta: f64,
    /// How many of the rotary frequencies follow time, height and width.
    pub(crate) rope_sections: Vec<i64>,
    pub(crate) max_positions: usize,
    pub(crate) initializer_range: f64,
}

/// Sizes of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VisionConfig {
    pub(crate) depth: usize,
    pub(crate) hidden: i64,
    pub(crate) intermediate: i64,
    pub(crate) heads: i64,
    pub(crate) channels: i64,
    pub(crate) patch: i64,
    pub(crate) temporal_patch: i64,
    /// Patches that one merged patch has along each side.
    pub(crate) merge: i64,
    /// Side of an attention window, in merged patches.
    pub(crate) window: i64,
    /// Blocks that attend over the whole image.
    pub(crate) full_blocks: Vec<usize>,
    pub(crate) out_hidden: i64,
    pub(crate) rope_theta: f64,
    pub(crate) initializer_range: f64,
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
}

#[derive(Deserialize)]
struct RawModel {
    model_type: String,
    text_config: Option<serde_json::Value>,
    vision_config: RawVision,
    image_token_id: u32,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawText {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    max_position_embeddings: usize,
    initializer_range: Option<f64>,
    tie_word_embeddings: Option<bool>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(rename = "type")]
    old_kind: Option<String>,
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    mrope_section: Option<Vec<i64>>,
}

#[derive(Deserialize)]
struct RawVision {
    depth: usize,
    hidden_size: i64,
    intermediate_size: i64,
    num_heads: i64,
    in_channels: Option<i64>,
    in_chans: Option<i64>,
    patch_size: i64,
    temporal_patch_size: i64,
    spatial_merge_size: i64,
    window_size: i64,
    fullatt_block_indexes: Vec<usize>,
    out_hidden_size: Option<i64>,
    rope_parameters: Option<RawRope>,
    initializer_range: Option<f64>,
    #[serde(default = "silu")]
    hidden_act: String,
}

fn silu() -> String {
    "silu".to_owned()
}

/// Spread of the initial weights where the configuration gives none.
const DEFAULT_INITIALIZER_RANGE: f64 = 0.02;
/// Base of the tower's rotary angles where the configuration gives none, as in every published checkpoint.
const DEFAULT_VISION_THETA: f64 = 10_000.0;

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
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let family = value
            .get("model_type")
            .and_then(serde_json::Value::as_str)
            .unwrap_or("");
        if family != FAMILY {
            return Err(format!(
                "model_type is `{family}`; this back end builds `{FAMILY}`"
            ));
        }
        let model: RawModel =
            serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        debug_assert_eq!(model.model_type, FAMILY);
        let text: RawText = serde_json::from_value(model.text_config.unwrap_or(value))
            .map_err(|error| error.to_string())?;
        let tied = model
            .tie_word_embeddings
            .or(text.tie_word_embeddings)
            .unwrap_or(false);
        let text = text.check()?;
        let vision = model.vision_config.check(&text)?;
        if i64::from(model.image_token_id) >= text.vocab {
            return Err(format!(
                "image_token_id {} is not below vocab_size {}",
                model.image_token_id, text.vocab
            ));
        }
        Ok(Self {
            text,
            vision,
            image_token_id: model.image_token_id,
            tied,
        })
    }
}

impl RawText {
    fn check(self) -> Result<TextConfig, String> {
        only_silu("hidden_act", &self.hidden_act)?;
        if self.use_sliding_window {
            return Err("use_sliding_window is set; only full attention is built".to_owned());
        }
        let rope = self.rope_parameters.or(self.rope_scaling);
        let kind = rope
            .as_ref()
            .and_then(|rope| rope.rope_type.as_deref().or(rope.old_kind.as_deref()));
        if let Some(kind) = kind.filter(|kind| !matches!(*kind, "default" | "mrope")) {
            return Err(format!("rotary scaling `{kind}` is not built; use `mrope`"));
        }
        let theta = rope
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta);
        divides(
            "num_attention_heads",
            self.num_attention_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        divides(
            "num_key_value_heads",
            self.num_key_value_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        let head_dim = self.hidden_size / self.num_attention_heads;
        let sections = rope
            .and_then(|rope| rope.mrope_section)
            .ok_or("no mrope_section in rope_scaling (or rope_parameters)")?;
        if sections.len() != 3 || 2 * sections.iter().sum::<i64>() != head_dim {
            return Err(format!(
                "mrope_section {sections:?} must be three numbers with sum {}",
                head_dim / 2
            ));
        }
        Ok(TextConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            key_heads: self.num_key_value_heads,
            head_dim,
            norm_eps: self.rms_norm_eps,
            rope_theta: theta.ok_or("no rope_theta")?,
            rope_sections: sections,
            max_positions: self.max_position_embeddings,
            initializer_range: self.initializer_range.unwrap_or(DEFAULT_INITIALIZER_RANGE),
        })
    }
}

impl RawVision {
    fn check(self, text: &TextConfig) -> Result<VisionConfig, String> {
        only_silu("vision_config.hidden_act", &self.hidden_act)?;
        divides(
            "vision_config.num_heads",
            self.num_heads,
            "vision_config.hidden_size",
            self.hidden_size,
        )?;
        if (self.hidden_size / self.num_heads) % 4 != 0 {
            return Err("the head width of vision_config must be a multiple of 4".to_owned());
        }
        let out_hidden = self.out_hidden_size.unwrap_or(text.hidden);
        if out_hidden != text.hidden {
            return Err(format!(
                "vision_config.out_hidden_size {out_hidden} is not hidden_size {}",
                text.hidden
            ));
        }
        if self.patch_size < 1 || self.spatial_merge_size < 1 || self.temporal_patch_size < 1 {
            return Err("patch and merge sizes of vision_config must be positive".to_owned());
        }
        let window = self.window_size / self.spatial_merge_size / self.patch_size;
        if window < 1 {
            return Err(format!(
                "vision_config.window_size {} is smaller than a merged patch",
                self.window_size
            ));
        }
        Ok(VisionConfig {
            depth: self.depth,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_heads,
            channels: self.in_channels.or(self.in_chans).unwrap_or(3),
            patch: self.patch_size,
            temporal_patch: self.temporal_patch_size,
            merge: self.spatial_merge_size,
            window,
            full_blocks: self.fullatt_block_indexes,
            out_hidden,
            rope_theta: self
                .rope_parameters
                .and_then(|rope| rope.rope_theta)
                .unwrap_or(DEFAULT_VISION_THETA),
            initializer_range: self.initializer_range.unwrap_or(text.initializer_range),
        })
    }
}

fn only_silu(key: &str, value: &str) -> Result<(), String> {
    if value == "silu" {
        Ok(())
    } else {
        Err(format!("{key} is `{value}`; only `silu` is built"))
    }
}

fn divides(part_key: &str, part: i64, whole_key: &str, whole: i64) -> Result<(), String> {
    if part > 0 && whole > 0 && whole % part == 0 {
        Ok(())
    } else {
        Err(format!(
            "{whole_key} {whole} is not a multiple of {part_key} {part}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/qwen2_5_vl")
            .join(name)
    }

    #[test]
    fn both_layouts_are_read() {
        let released = ModelConfig::read(&folder("grouped_tied")).unwrap();
        assert!((released.text.rope_theta - 1000.0).abs() < 1e-9);
        assert_eq!(released.text.rope_sections, [1, 1, 2]);
        assert!(released.tied);
        let nested = ModelConfig::read(&folder("odd_untied")).unwrap();
        assert!((nested.text.rope_theta - 1_000_000.0).abs() < 1e-9);
        assert_eq!((nested.text.head_dim, nested.vision.window), (12, 2));
        assert!(!nested.tied);
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let text = std::fs::read_to_string(folder("grouped_tied").join("config.json")).unwrap();
        let broken =
            |from: &str, to: &str| ModelConfig::parse(&text.replace(from, to)).unwrap_err();
        assert!(
            broken(
                "\"model_type\": \"qwen2_5_vl\"",
                "\"model_type\": \"llama\""
            )
            .contains("`llama`")
        );
        assert!(broken("\"mrope\"", "\"yarn\"").contains("`yarn`"));
        assert!(
            broken("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3")
                .contains("num_key_value_heads 3")
        );
        assert!(broken("\"vocab_size\": 120,", "").contains("vocab_size"));
    }
}
