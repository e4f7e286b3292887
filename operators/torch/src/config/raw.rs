//! Fields of `config.json` that the families share, as they stand in the file, and the checks of them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Llama3Scaling, RopeAxes, RopeConfig, TextConfig, TowerConfig, VisionConfig};

/// Spread of the initial weights where the configuration gives none.
const DEFAULT_INITIALIZER_RANGE: f64 = 0.02;
/// Base of the tower's rotary angles where the configuration gives none, as in every published checkpoint.
const DEFAULT_VISION_THETA: f64 = 10_000.0;

/// What distinguishes the language models of the families.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextTraits {
    pub(super) qkv_bias: bool,
    pub(super) qk_norm: bool,
    pub(super) head_dim: HeadDim,
    /// Rotary base where the file gives none.
    pub(super) default_theta: Option<f64>,
    pub(super) axes: Axes,
}

/// Where the width of a head stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadDim {
    /// Heads share the model width.
    Shared,
    /// In `head_dim`, or as above where that is not given.
    Optional,
    /// In `head_dim`.
    Given,
}

/// How `mrope_section` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axes {
    One,
    Blocks,
    Interleaved,
}

#[derive(Deserialize)]
pub(super) struct RawText {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    max_position_embeddings: usize,
    initializer_range: Option<f64>,
    pub(super) tie_word_embeddings: Option<bool>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    partial_rotary_factor: Option<f64>,
}

#[derive(Default, Deserialize)]
pub(super) struct RawRope {
    #[serde(rename = "type")]
    old_kind: Option<String>,
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    mrope_section: Option<Vec<i64>>,
    mrope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Fields of a tower that both vision-language families have.
#[derive(Deserialize)]
pub(super) struct RawVision {
    depth: usize,
    hidden_size: i64,
    intermediate_size: i64,
    num_heads: i64,
    in_channels: Option<i64>,
    in_chans: Option<i64>,
    pub(super) patch_size: i64,
    temporal_patch_size: i64,
    pub(super) spatial_merge_size: i64,
    out_hidden_size: Option<i64>,
    rope_parameters: Option<RawRope>,
    initializer_range: Option<f64>,
    pub(super) hidden_act: Option<String>,
}

fn silu() -> String {
    "silu".to_owned()
}

/// Reads one section of the file.
pub(super) fn section<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

impl RawText {
    pub(super) fn check(self, traits: TextTraits) -> Result<TextConfig, String> {
        self.check_settings()?;
        let key_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        divides(
            "num_key_value_heads",
            key_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        let head_dim = match (traits.head_dim, self.head_dim) {
            (HeadDim::Optional | HeadDim::Given, Some(head_dim)) => head_dim,
            (HeadDim::Given, None) => return Err("no head_dim".to_owned()),
            (HeadDim::Optional, None) | (HeadDim::Shared, _) => {
                divides(
                    "num_attention_heads",
                    self.num_attention_heads,
                    "hidden_size",
                    self.hidden_size,
                )?;
                self.hidden_size / self.num_attention_heads
            }
        };
        if head_dim < 2 || head_dim % 2 != 0 {
            return Err(format!("the head width {head_dim} is not even"));
        }
        let theta = self.rope_theta.or(traits.default_theta);
        let rope = self.rope_parameters.or(self.rope_scaling);
        let rope = rope
            .unwrap_or_default()
            .check(theta, head_dim, traits.axes)?;
        Ok(TextConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            key_heads,
            head_dim,
            norm_eps: self.rms_norm_eps,
            qkv_bias: traits.qkv_bias,
            qk_norm: traits.qk_norm,
            rope,
            max_positions: self.max_position_embeddings,
            initializer_range: self.initializer_range.unwrap_or(DEFAULT_INITIALIZER_RANGE),
        })
    }

    /// Settings with one value that is built.
    fn check_settings(&self) -> Result<(), String> {
        only("hidden_act", &self.hidden_act, "silu")?;
        let sliding = match &self.layer_types {
            Some(types) => match types.iter().find(|kind| *kind != "full_attention") {
                Some(kind) if kind != "sliding_attention" => {
                    return Err(format!(
                        "layer_types has `{kind}`; only full attention is built"
                    ));
                }
                kind => kind.is_some(),
            },
            // Layers below `max_window_layers` attend in full.
            None => {
                self.use_sliding_window
                    && self.max_window_layers.unwrap_or(0) < self.num_hidden_layers
            }
        };
        if sliding {
            return Err(
                "some layers attend in a sliding window; only full attention is built".to_owned(),
            );
        }
        if self.attention_bias {
            return Err("attention_bias is set; it is not built".to_owned());
        }
        if self.mlp_bias {
            return Err("mlp_bias is set; it is not built".to_owned());
        }
        whole_rotation(self.partial_rotary_factor)
    }
}

impl RawRope {
    fn check(self, theta: Option<f64>, head_dim: i64, axes: Axes) -> Result<RopeConfig, String> {
        whole_rotation(self.partial_rotary_factor)?;
        let kind = self.rope_type.as_deref().or(self.old_kind.as_deref());
        let scaling = match kind {
            None | Some("default") => None,
            Some("mrope") if axes != Axes::One => None,
            Some("llama3") => Some(self.llama3()?),
            Some(kind) => {
                return Err(format!(
                    "rotary scaling `{kind}` is not built; `default`, `llama3` and, with images, `mrope` are"
                ));
            }
        };
        let theta = self.rope_theta.or(theta).ok_or("no rope_theta")?;
        let axes = match axes {
            Axes::One => RopeAxes::One,
            Axes::Blocks => RopeAxes::Blocks(self.sections(head_dim)?),
            Axes::Interleaved if self.mrope_interleaved == Some(false) => {
                return Err(
                    "mrope_interleaved is false; only interleaved axes are built".to_owned(),
                );
            }
            Axes::Interleaved => RopeAxes::Interleaved(self.sections(head_dim)?),
        };
        Ok(RopeConfig {
            theta,
            axes,
            scaling,
        })
    }

    fn sections(&self, head_dim: i64) -> Result<[i64; 3], String> {
        let sections = self
            .mrope_section
            .as_ref()
            .ok_or("no mrope_section in rope_scaling (or rope_parameters)")?;
        <[i64; 3]>::try_from(sections.as_slice())
            .ok()
            .filter(|sections| 2 * sections.iter().sum::<i64>() == head_dim)
            .filter(|sections| sections.iter().all(|count| *count >= 0))
            .ok_or_else(|| {
                format!(
                    "mrope_section {sections:?} must be three numbers with sum {}",
                    head_dim / 2
                )
            })
    }

    fn llama3(&self) -> Result<Llama3Scaling, String> {
        let field = |name: &str, value: Option<f64>| {
            value
                .filter(|value| *value > 0.0)
                .ok_or_else(|| format!("rotary scaling `llama3` needs a positive `{name}`"))
        };
        let scaling = Llama3Scaling {
            factor: field("factor", self.factor)?,
            low_freq_factor: field("low_freq_factor", self.low_freq_factor)?,
            high_freq_factor: field("high_freq_factor", self.high_freq_factor)?,
            original_positions: field(
                "original_max_position_embeddings",
                self.original_max_position_embeddings,
            )?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(format!(
                "high_freq_factor {} is not above low_freq_factor {}",
                scaling.high_freq_factor, scaling.low_freq_factor
            ));
        }
        Ok(scaling)
    }
}

impl RawVision {
    pub(super) fn check(
        self,
        text: &TextConfig,
        image_token_id: u32,
        tower: TowerConfig,
    ) -> Result<VisionConfig, String> {
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
        Ok(VisionConfig {
            image_token_id,
            depth: self.depth,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_heads,
            channels: self.in_channels.or(self.in_chans).unwrap_or(3),
            patch: self.patch_size,
            temporal_patch: self.temporal_patch_size,
            merge: self.spatial_merge_size,
            out_hidden,
            rope_theta: self
                .rope_parameters
                .and_then(|rope| rope.rope_theta)
                .unwrap_or(DEFAULT_VISION_THETA),
            initializer_range: self.initializer_range.unwrap_or(text.initializer_range),
            tower,
        })
    }
}

pub(super) fn only(key: &str, value: &str, built: &str) -> Result<(), String> {
    if value == built {
        Ok(())
    } else {
        Err(format!("{key} is `{value}`; only `{built}` is built"))
    }
}

fn whole_rotation(factor: Option<f64>) -> Result<(), String> {
    match factor {
        Some(factor) if factor < 1.0 => Err(format!(
            "partial_rotary_factor is {factor}; only whole heads are rotated"
        )),
        _ => Ok(()),
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
