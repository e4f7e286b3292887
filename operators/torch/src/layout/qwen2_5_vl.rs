//! Weights of Qwen2.5-VL's tower.

use super::{Init, List, vision_block};
use crate::config::VisionConfig;

pub(super) fn tower(config: &VisionConfig, list: &mut List) {
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
    for index in 0..config.depth {
        let block = vision_block(index);
        list.single(&format!("{block}norm1.weight"), &[width], Init::Ones);
        list.linear(&format!("{block}attn.qkv"), 3 * width, width, normal);
        list.linear(&format!("{block}attn.proj"), width, width, normal);
        list.single(&format!("{block}norm2.weight"), &[width], Init::Ones);
        let mlp = format!("{block}mlp.");
        let gate_up = [("gate_proj", inner), ("up_proj", inner)];
        list.joined(&mlp, "gate_up_proj", &gate_up, Some(width), normal);
        list.joined(&mlp, "gate_up_proj", &gate_up, None, Init::Zeros);
        list.linear(&format!("{mlp}down_proj"), width, inner, normal);
    }
    let merged = width * config.merge_unit();
    list.single("visual.merger.ln_q.weight", &[width], Init::Ones);
    list.linear("visual.merger.mlp.0", merged, merged, normal);
    list.linear("visual.merger.mlp.2", config.out_hidden, merged, normal);
}
