//! `config.json` of Qwen2 and Qwen2.5.

use serde_json::Value;

use super::raw::{Axes, HeadDim, RawText, TextTraits, section};
use super::{Family, ModelConfig};

const TEXT: TextTraits = TextTraits {
    qkv_bias: true,
    qk_norm: false,
    head_dim: HeadDim::Optional,
    default_theta: None,
    axes: Axes::One,
};

pub(super) fn parse(value: Value) -> Result<ModelConfig, String> {
    let text: RawText = section(value)?;
    let tied = text.tie_word_embeddings.unwrap_or(false);
    Ok(ModelConfig {
        family: Family::Qwen2,
        text: text.check(TEXT)?,
        vision: None,
        tied,
    })
}
