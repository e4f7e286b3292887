//! `config.json` of Qwen2.5-VL.

use serde::Deserialize;
use serde_json::Value;

use super::raw::{Axes, HeadDim, RawText, RawVision, TextTraits, only, section};
use super::{Family, ModelConfig, TowerConfig};

const TEXT: TextTraits = TextTraits {
    qkv_bias: true,
    qk_norm: false,
    head_dim: HeadDim::Shared,
    default_theta: None,
    axes: Axes::Blocks,
};

#[derive(Deserialize)]
struct RawModel {
    text_config: Option<Value>,
    vision_config: Value,
    image_token_id: u32,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawWindows {
    window_size: i64,
    fullatt_block_indexes: Vec<usize>,
}

pub(super) fn parse(value: Value) -> Result<ModelConfig, String> {
    let model: RawModel = section(value.clone())?;
    let text: RawText = section(model.text_config.unwrap_or(value))?;
    let tied = model.tie_word_embeddings.or(text.tie_word_embeddings);
    let text = text.check(TEXT)?;
    let windows: RawWindows = section(model.vision_config.clone())?;
    let vision: RawVision = section(model.vision_config)?;
    if let Some(act) = &vision.hidden_act {
        only("vision_config.hidden_act", act, "silu")?;
    }
    let merged = (vision.spatial_merge_size * vision.patch_size).max(1);
    if windows.window_size < merged {
        return Err(format!(
            "vision_config.window_size {} is smaller than a merged patch",
            windows.window_size
        ));
    }
    let tower = TowerConfig::Windowed {
        window: windows.window_size / merged,
        full_blocks: windows.fullatt_block_indexes,
    };
    let vision = vision.check(&text, model.image_token_id, tower)?;
    Ok(ModelConfig {
        family: Family::Qwen2_5Vl,
        text,
        vision: Some(vision),
        tied: tied.unwrap_or(false),
    })
}
