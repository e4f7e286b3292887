//! The tower of Qwen2.5-VL: patches in the order of attention windows, gated units, one merger.
//!
//! Source: Bai et al. 2025, "Qwen2.5-VL Technical Report"; the layout of weights and positions is that of the
//! published checkpoints.
//!
//! Shapes: `n` patches, `m` merged patches, `w` tower width.

use tch::{Device, Kind, Tensor};

use super::indices;
use super::rope::vision_rope;
use super::tower::{Blocks, Linear, NORM_EPS, Plan, attend_in_spans};
use super::window::{WindowPlan, inverse};
use crate::config::VisionConfig;
use crate::layout;
use crate::parameters::Parameters;

#[derive(Debug)]
struct Block {
    norm1: Tensor,
    qkv: Linear,
    proj: Linear,
    norm2: Tensor,
    gate_up: Linear,
    down: Linear,
    full: bool,
}

/// The tower's weights.
#[derive(Debug)]
pub(super) struct Tower {
    config: VisionConfig,
    window: i64,
    patch_embed: Tensor,
    blocks: Vec<Block>,
    merger_norm: Tensor,
    merger_in: Linear,
    merger_out: Linear,
}

impl Tower {
    pub(super) fn new(
        config: &VisionConfig,
        window: i64,
        full_blocks: &[usize],
        weights: &Parameters,
    ) -> Self {
        let blocks = (0..config.depth)
            .map(|index| {
                let prefix = layout::vision_block(index);
                let linear = |name: &str| Linear::new(weights, &format!("{prefix}{name}"));
                Block {
                    norm1: weights.get(&format!("{prefix}norm1.weight")),
                    qkv: linear("attn.qkv"),
                    proj: linear("attn.proj"),
                    norm2: weights.get(&format!("{prefix}norm2.weight")),
                    gate_up: linear("mlp.gate_up_proj"),
                    down: linear("mlp.down_proj"),
                    full: full_blocks.contains(&index),
                }
            })
            .collect();
        Self {
            config: config.clone(),
            window,
            patch_embed: weights.get("visual.patch_embed.proj.weight"),
            blocks,
            merger_norm: weights.get("visual.merger.ln_q.weight"),
            merger_in: Linear::new(weights, "visual.merger.mlp.0"),
            merger_out: Linear::new(weights, "visual.merger.mlp.2"),
        }
    }
}

impl Blocks for Tower {
    fn plan(&self, grids: &[[i64; 3]], kind: Kind, device: Device) -> Plan {
        let plan = WindowPlan::new(self.config.merge, self.window, grids, device);
        Plan {
            kind,
            rope: vision_rope(&self.config, &plan.positions, kind, device),
            order: Some([
                indices(&plan.order, device),
                indices(&inverse(&plan.order), device),
            ]),
            frames: plan.frames,
            windows: Some(plan.windows),
            table: None,
        }
    }

    fn embed(&self, pixels: &Tensor, plan: &Plan) -> Tensor {
        let [order, _] = plan.order.as_ref().expect("windows have an order");
        // [m, unit * patch] in window order -> [n, patch]
        let patches = pixels
            .index_select(0, order)
            .to_kind(plan.kind)
            .view([-1, self.config.patch_width()]);
        patches.matmul(&self.patch_embed.view([self.config.hidden, -1]).tr())
    }

    fn block(&self, index: usize, x_nw: &Tensor, plan: &Plan) -> Tensor {
        let block = &self.blocks[index];
        let spans = match &plan.windows {
            Some(windows) if !block.full => windows,
            _ => &plan.frames,
        };
        let normed = norm(x_nw, &block.norm1);
        let attended = attend_in_spans(&self.config, &block.qkv, &normed, &plan.rope, spans);
        let x = x_nw + block.proj.apply(&attended);
        let gate_up = block.gate_up.apply(&norm(&x, &block.norm2)).chunk(2, -1);
        &x + block.down.apply(&(gate_up[0].silu() * &gate_up[1]))
    }

    fn merge(&self, x_nw: &Tensor, plan: &Plan) -> Tensor {
        let [_, restore] = plan.order.as_ref().expect("windows have an order");
        // [n, w] -> [m, unit * w]
        let merged = norm(x_nw, &self.merger_norm)
            .reshape([-1, self.config.merge_unit() * self.config.hidden]);
        self.merger_out
            .apply(&self.merger_in.apply(&merged).gelu("none"))
            .index_select(0, restore)
    }
}

fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), NORM_EPS)
}
