//! `config.json` of Qwen3-VL.

use serde::Deserialize;
use serde_json::Value;

use super::raw::{Axes, HeadDim, RawText, RawVision, TextTraits, only, section};
use super::{Family, ModelConfig, TowerConfig};

const TEXT: TextTraits = TextTraits {
    qkv_bias: false,
    qk_norm: true,
    head_dim: HeadDim::Given,
    default_theta: None,
    axes: Axes::Interleaved,
};

#[derive(Deserialize)]
struct RawModel {
    text_config: Value,
    vision_config: Value,
    image_token_id: u32,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawDeepstack {
    num_position_embeddings: i64,
    deepstack_visual_indexes: Vec<usize>,
}

pub(super) fn parse(value: Value) -> Result<ModelConfig, String> {
    let model: RawModel = section(value)?;
    let text: RawText = section(model.text_config)?;
    let tied = model.tie_word_embeddings.or(text.tie_word_embeddings);
    let text = text.check(TEXT)?;
    let deep: RawDeepstack = section(model.vision_config.clone())?;
    let vision: RawVision = section(model.vision_config)?;
    if let Some(act) = &vision.hidden_act {
        only("vision_config.hidden_act", act, "gelu_pytorch_tanh")?;
    }
    let tower = TowerConfig::Deepstack {
        table_side: square_root(deep.num_position_embeddings)?,
        taps: deep.deepstack_visual_indexes,
    };
    let vision = vision.check(&text, model.image_token_id, tower)?;
    check_taps(&vision.tower, vision.depth, text.layers)?;
    Ok(ModelConfig {
        family: Family::Qwen3Vl,
        text,
        vision: Some(vision),
        tied: tied.unwrap_or(false),
    })
}

fn square_root(count: i64) -> Result<i64, String> {
    (1..=count)
        .take_while(|side| side * side <= count)
        .find(|side| side * side == count)
        .ok_or_else(|| {
            format!("vision_config.num_position_embeddings {count} is not the square of a side")
        })
}

fn check_taps(tower: &TowerConfig, depth: usize, layers: usize) -> Result<(), String> {
    let TowerConfig::Deepstack { taps, .. } = tower else {
        return Ok(());
    };
    // Features are added in the order of the blocks, whatever the order of the list.
    if !taps.is_sorted_by(|left, right| left < right) || taps.iter().any(|tap| *tap >= depth) {
        return Err(format!(
            "vision_config.deepstack_visual_indexes {taps:?} must rise and stay below the depth {depth}"
        ));
    }
    if taps.len() > layers {
        return Err(format!(
            "vision_config.deepstack_visual_indexes has {} entries for {layers} layers",
            taps.len()
        ));
    }
    Ok(())
}
