//! `config.json` of Llama and of the models that share its architecture.

use serde_json::Value;

use super::raw::{Axes, HeadDim, RawText, TextTraits, section};
use super::{Family, ModelConfig};

const TEXT: TextTraits = TextTraits {
    qkv_bias: false,
    qk_norm: false,
    head_dim: HeadDim::Optional,
    // The first of them were published without it.
    default_theta: Some(10_000.0),
    axes: Axes::One,
};

pub(super) fn parse(value: Value) -> Result<ModelConfig, String> {
    let text: RawText = section(value)?;
    let tied = text.tie_word_embeddings.unwrap_or(false);
    Ok(ModelConfig {
        family: Family::Llama,
        text: text.check(TEXT)?,
        vision: None,
        tied,
    })
}
