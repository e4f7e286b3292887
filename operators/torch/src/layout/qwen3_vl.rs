//! Weights of Qwen3-VL's tower.

use super::{Init, List, vision_block};
use crate::config::VisionConfig;

/// Prefix of the merger behind a tapped block; `tap` counts them.
pub(crate) fn deep_merger(tap: usize) -> String {
    format!("visual.deepstack_merger_list.{tap}.")
}

pub(super) fn tower(config: &VisionConfig, table_side: i64, taps: usize, list: &mut List) {
    let normal = Init::Normal(config.initializer_range);
    let (width, inner) = (config.hidden, config.intermediate);
    let patch = [
        width,
        config.channels,
        config.temporal_patch,
        config.patch,
        config.patch,
    ];
    list.single("visual.patch_embed.proj.weight", &patch, normal);
    list.single("visual.patch_embed.proj.bias", &[width], Init::Zeros);
    let table = [table_side * table_side, width];
    list.single("visual.pos_embed.weight", &table, normal);
    for index in 0..config.depth {
        let block = vision_block(index);
        list.layer_norm(&format!("{block}norm1"), width);
        list.linear(&format!("{block}attn.qkv"), 3 * width, width, normal);
        list.linear(&format!("{block}attn.proj"), width, width, normal);
        list.layer_norm(&format!("{block}norm2"), width);
        list.linear(&format!("{block}mlp.linear_fc1"), inner, width, normal);
        list.linear(&format!("{block}mlp.linear_fc2"), width, inner, normal);
    }
    let merged = width * config.merge_unit();
    let mut merger = |base: &str, norm: i64| {
        list.layer_norm(&format!("{base}norm"), norm);
        list.linear(&format!("{base}linear_fc1"), merged, merged, normal);
        list.linear(
            &format!("{base}linear_fc2"),
            config.out_hidden,
            merged,
            normal,
        );
    };
    merger("visual.merger.", width);
    for tap in 0..taps {
        merger(&deep_merger(tap), merged);
    }
}
