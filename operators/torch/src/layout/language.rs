//! Weights of the language model, for all families.

use super::{Init, List};
use crate::config::TextConfig;

/// Prefix of a layer.
pub(crate) fn layer(index: usize) -> String {
    format!("model.layers.{index}.")
}

pub(super) fn language(config: &TextConfig, list: &mut List) {
    let normal = Init::Normal(config.initializer_range);
    let (width, inner) = (config.hidden, config.intermediate);
    let queries = config.heads * config.head_dim;
    let keys = config.key_heads * config.head_dim;
    list.single("model.embed_tokens.weight", &[config.vocab, width], normal);
    for index in 0..config.layers {
        let layer = layer(index);
        let attention = format!("{layer}self_attn.");
        let qkv = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        list.single(
            &format!("{layer}input_layernorm.weight"),
            &[width],
            Init::Ones,
        );
        list.joined(&attention, "qkv_proj", &qkv, Some(width), normal);
        if config.qkv_bias {
            list.joined(&attention, "qkv_proj", &qkv, None, Init::Zeros);
        }
        if config.qk_norm {
            for name in ["q_norm", "k_norm"] {
                let name = format!("{attention}{name}.weight");
                list.single(&name, &[config.head_dim], Init::Ones);
            }
        }
        list.single(
            &format!("{attention}o_proj.weight"),
            &[width, queries],
            normal,
        );
        list.single(
            &format!("{layer}post_attention_layernorm.weight"),
            &[width],
            Init::Ones,
        );
        let mlp = format!("{layer}mlp.");
        let gate_up = [("gate_proj", inner), ("up_proj", inner)];
        list.joined(&mlp, "gate_up_proj", &gate_up, Some(width), normal);
        list.single(&format!("{mlp}down_proj.weight"), &[width, inner], normal);
    }
    list.single("model.norm.weight", &[width], Init::Ones);
}
