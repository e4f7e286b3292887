//! The vision tower: patches in, one vector of the language model's width for each merged patch out.
//!
//! Shapes: `n` patches, `m` merged patches, `w` tower width, `h` heads, `d` head width, `s` spans, `l` span length.

use std::sync::Arc;

use engine_core::policy::PatchedImage;
use tch::{Device, Kind, Tensor};

use super::attention::attend_all;
use super::indices;
use super::rope::{Rope, vision_rope};
use super::window::{Spans, WindowPlan, inverse};
use crate::config::VisionConfig;
use crate::layout;
use crate::parameters::Parameters;

/// Denominator guard of the tower's norms, the same in every published checkpoint.
const NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(weights: &Parameters, name: &str) -> Self {
        Self {
            weight: weights.get(&format!("{name}.weight")),
            bias: weights.get(&format!("{name}.bias")),
        }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

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
pub(crate) struct Vision {
    config: VisionConfig,
    patch_embed: Tensor,
    blocks: Vec<Block>,
    merger_norm: Tensor,
    merger_in: Linear,
    merger_out: Linear,
}

impl Vision {
    pub(crate) fn new(config: &VisionConfig, weights: &Parameters) -> Self {
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
                    full: config.full_blocks.contains(&index),
                }
            })
            .collect();
        Self {
            config: config.clone(),
            patch_embed: weights.get("visual.patch_embed.proj.weight"),
            blocks,
            merger_norm: weights.get("visual.merger.ln_q.weight"),
            merger_in: Linear::new(weights, "visual.merger.mlp.0"),
            merger_out: Linear::new(weights, "visual.merger.mlp.2"),
        }
    }

    /// Grid of merged patches of an image.
    ///
    /// # Errors
    /// When the image's grid does not fit the tower or its pixels; the message is a lower-case fragment.
    pub(crate) fn merged_grid(&self, image: &PatchedImage) -> Result<[i64; 3], String> {
        let [time, height, width] = image.grid_thw.map(|size| size as i64);
        let merge = self.config.merge;
        if time < 1 || height < 1 || width < 1 || height % merge != 0 || width % merge != 0 {
            return Err(format!(
                "an image has a grid of {time} x {height} x {width} patches; sides must be multiples of {merge}"
            ));
        }
        let expected = time * height * width * self.config.patch_width();
        if image.patches.len() as i64 != expected {
            return Err(format!(
                "an image of {time} x {height} x {width} patches has {} values instead of {expected}",
                image.patches.len()
            ));
        }
        Ok([time, height / merge, width / merge])
    }

    /// Encodes images, one after the other.
    ///
    /// # Shapes
    /// - returns `[m, width of the language model]`, merged patches in the order of the images
    pub(crate) fn encode(
        &self,
        images: &[Arc<PatchedImage>],
        kind: Kind,
        device: Device,
    ) -> Tensor {
        let grids: Vec<[i64; 3]> = images
            .iter()
            .map(|image| image.grid_thw.map(|size| size as i64))
            .collect();
        let plan = WindowPlan::new(&self.config, &grids, device);
        let pixels: Vec<Tensor> = images
            .iter()
            .map(|image| Tensor::from_slice(&image.patches))
            .collect();
        let (unit, width) = (self.config.merge_unit(), self.config.hidden);
        let pixels = Tensor::cat(&pixels, 0)
            .view([-1, unit * self.config.patch_width()])
            .to_device(device);
        let order = indices(&plan.order, device);
        // [m, unit * patch] in window order -> [n, patch]
        let patches = pixels
            .index_select(0, &order)
            .to_kind(kind)
            .view([-1, self.config.patch_width()]);
        let rope = vision_rope(&self.config, &plan.positions, kind, device);
        let mut x = patches.matmul(&self.patch_embed.view([width, -1]).tr());
        for block in &self.blocks {
            let spans = if block.full {
                &plan.frames
            } else {
                &plan.windows
            };
            let attended = self.attention(block, &norm(&x, &block.norm1), &rope, spans);
            x = &x + block.proj.apply(&attended);
            let gate_up = block.gate_up.apply(&norm(&x, &block.norm2)).chunk(2, -1);
            x = &x + block.down.apply(&(gate_up[0].silu() * &gate_up[1]));
        }
        // [n, w] -> [m, unit * w]
        let merged = norm(&x, &self.merger_norm).reshape([-1, unit * width]);
        let out = self
            .merger_out
            .apply(&self.merger_in.apply(&merged).gelu("none"));
        out.index_select(0, &indices(&inverse(&plan.order), device))
    }

    /// Attention within spans; `x_nw` and the result are `[n, w]`.
    fn attention(&self, block: &Block, x_nw: &Tensor, rope: &Rope, spans: &Spans) -> Tensor {
        let heads = self.config.heads;
        let head_dim = self.config.hidden / heads;
        let qkv = block.qkv.apply(x_nw).view([-1, 3 * heads, head_dim]);
        let parts = qkv.split_with_sizes([2 * heads, heads], 1);
        let qkv = Tensor::cat(&[&rope.apply(&parts[0]), &parts[1]], 1);
        let outputs: Vec<Tensor> = spans
            .groups
            .iter()
            .map(|group| {
                let rows = group.rows.as_ref().map(|rows| qkv.index_select(0, rows));
                // [s * l, 3h, d] -> [s, 3h, l, d]
                let part = rows.as_ref().unwrap_or(&qkv).view([
                    group.count,
                    group.length,
                    3 * heads,
                    head_dim,
                ]);
                let part = part.transpose(1, 2).chunk(3, 1);
                let attended = attend_all(&part[0], &part[1], &part[2]);
                // [s, h, l, d] -> [s * l, w]
                attended
                    .transpose(1, 2)
                    .reshape([group.count * group.length, heads * head_dim])
            })
            .collect();
        match &spans.restore {
            Some(restore) => Tensor::cat(&outputs, 0).index_select(0, restore),
            None => outputs.into_iter().next().expect("a partition has a group"),
        }
    }
}

fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), NORM_EPS)
}
