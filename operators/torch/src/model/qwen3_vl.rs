//! The tower of Qwen3-VL: position embeddings interpolated to each image's grid, attention over whole images, and features
//! from several depths.
//!
//! Source: Bai et al. 2025, "Qwen3-VL Technical Report"; the layout of weights and positions is that of the published
//! checkpoints.
//!
//! Shapes: `n` patches, `m` merged patches, `w` tower width.

use tch::{Device, Kind, Tensor};

use super::indices;
use super::rope::vision_rope;
use super::tower::{Blocks, Linear, NORM_EPS, Plan, attend_in_spans};
use super::window::{frames, merged_order};
use crate::config::VisionConfig;
use crate::device::upload;
use crate::layout::{qwen3_vl::deep_merger, vision_block};
use crate::parameters::Parameters;

/// A norm with scale and shift.
#[derive(Debug)]
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn new(weights: &Parameters, name: &str) -> Self {
        Self {
            weight: weights.get(&format!("{name}.weight")),
            bias: weights.get(&format!("{name}.bias")),
        }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.layer_norm(self.weight.size(), weight, bias, NORM_EPS, false)
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    /// Set where features leave the tower, with their number.
    tap: Option<(usize, Merger)>,
}

/// Joins the patches of a merged patch and maps them to the language model's width.
#[derive(Debug)]
struct Merger {
    norm: LayerNorm,
    /// Whether the norm is over the joined patches; otherwise it is over each.
    joined_norm: bool,
    input: Linear,
    output: Linear,
}

impl Merger {
    fn new(weights: &Parameters, prefix: &str, joined_norm: bool) -> Self {
        Self {
            norm: LayerNorm::new(weights, &format!("{prefix}norm")),
            joined_norm,
            input: Linear::new(weights, &format!("{prefix}linear_fc1")),
            output: Linear::new(weights, &format!("{prefix}linear_fc2")),
        }
    }

    /// `[n, w]` -> `[m, width of the language model]`, with `merged` the width of the joined patches.
    fn apply(&self, x_nw: &Tensor, merged: i64) -> Tensor {
        let x = if self.joined_norm {
            self.norm.apply(&x_nw.reshape([-1, merged]))
        } else {
            self.norm.apply(x_nw).reshape([-1, merged])
        };
        self.output.apply(&self.input.apply(&x).gelu("none"))
    }
}

/// The tower's weights.
#[derive(Debug)]
pub(super) struct Tower {
    config: VisionConfig,
    table_side: i64,
    patch_embed: Tensor,
    patch_bias: Tensor,
    /// `[table_side * table_side, w]`
    table: Tensor,
    blocks: Vec<Block>,
    merger: Merger,
}

impl Tower {
    pub(super) fn new(
        config: &VisionConfig,
        table_side: i64,
        taps: &[usize],
        weights: &Parameters,
    ) -> Self {
        let blocks = (0..config.depth)
            .map(|index| {
                let prefix = vision_block(index);
                let linear = |name: &str| Linear::new(weights, &format!("{prefix}{name}"));
                let norm = |name: &str| LayerNorm::new(weights, &format!("{prefix}{name}"));
                let tap = taps.iter().position(|tap| *tap == index);
                Block {
                    norm1: norm("norm1"),
                    qkv: linear("attn.qkv"),
                    proj: linear("attn.proj"),
                    norm2: norm("norm2"),
                    up: linear("mlp.linear_fc1"),
                    down: linear("mlp.linear_fc2"),
                    tap: tap.map(|tap| (tap, Merger::new(weights, &deep_merger(tap), true))),
                }
            })
            .collect();
        Self {
            config: config.clone(),
            table_side,
            patch_embed: weights.get("visual.patch_embed.proj.weight"),
            patch_bias: weights.get("visual.patch_embed.proj.bias"),
            table: weights.get("visual.pos_embed.weight"),
            blocks,
            merger: Merger::new(weights, "visual.merger.", false),
        }
    }

    /// Position embeddings, bilinear between the four nearest of the table: `[n, w]`.
    fn positions(&self, [corners, shares]: &[Tensor; 2], kind: Kind) -> Tensor {
        let corners = (self.table.index_select(0, corners)).view([-1, 4, self.config.hidden]);
        // The sum is in 32 bits at least, whatever the weights are.
        (corners * shares)
            .sum_dim_intlist(1, false, None::<Kind>)
            .to_kind(kind)
    }

    /// Width of the patches of a merged patch.
    fn merged_width(&self) -> i64 {
        self.config.hidden * self.config.merge_unit()
    }
}

impl Blocks for Tower {
    fn plan(&self, grids: &[[i64; 3]], kind: Kind, device: Device) -> Plan {
        let positions = merged_order(self.config.merge, grids);
        let places = Places::new(self.table_side, grids, &positions);
        let shares = upload(&places.shares, device);
        Plan {
            kind,
            rope: vision_rope(&self.config, &positions, kind, device),
            frames: frames(grids, device),
            windows: None,
            order: None,
            table: Some([indices(&places.corners, device), shares.view([-1, 4, 1])]),
        }
    }

    fn embed(&self, pixels: &Tensor, plan: &Plan) -> Tensor {
        let patches = pixels
            .to_kind(plan.kind)
            .view([-1, self.config.patch_width()]);
        let embed = self.patch_embed.view([self.config.hidden, -1]);
        let table = plan.table.as_ref().expect("the plan is this tower's");
        patches.linear(&embed, Some(&self.patch_bias)) + self.positions(table, plan.kind)
    }

    fn block(&self, index: usize, x_nw: &Tensor, plan: &Plan) -> Tensor {
        let block = &self.blocks[index];
        let normed = block.norm1.apply(x_nw);
        let attended = attend_in_spans(&self.config, &block.qkv, &normed, &plan.rope, &plan.frames);
        let x = x_nw + block.proj.apply(&attended);
        let up = block.up.apply(&block.norm2.apply(&x));
        &x + block.down.apply(&up.gelu("tanh"))
    }

    fn tap(&self, block: usize) -> Option<usize> {
        (self.blocks[block].tap.as_ref()).map(|(number, _)| *number)
    }

    fn deep(&self, block: usize, x_nw: &Tensor) -> Tensor {
        let (_, merger) = self.blocks[block]
            .tap
            .as_ref()
            .expect("the block has a tap");
        merger.apply(x_nw, self.merged_width())
    }

    fn merge(&self, x_nw: &Tensor, _plan: &Plan) -> Tensor {
        self.merger.apply(x_nw, self.merged_width())
    }
}

/// Where each patch lies in the table of position embeddings.
#[derive(Debug, Default)]
struct Places {
    /// Rows of the four nearest embeddings, patch after patch.
    corners: Vec<i64>,
    /// Their shares, which add up to 1.
    shares: Vec<f32>,
}

impl Places {
    /// Stretches the table over each image so that its corners meet the image's.
    fn new(side: i64, grids: &[[i64; 3]], positions: &[[i64; 2]]) -> Self {
        let mut places = Self::default();
        let mut rest = positions.iter();
        for [time, height, width] in grids {
            let count = usize::try_from(time * height * width).unwrap_or(0);
            for [row, column] in rest.by_ref().take(count) {
                let (rows, columns) =
                    (between(*row, *height, side), between(*column, *width, side));
                for (row, row_share) in rows {
                    for (column, column_share) in columns {
                        places.corners.push(row * side + column);
                        places.shares.push(row_share * column_share);
                    }
                }
            }
        }
        places
    }
}

/// The two places of a line of `side` places between which `index` of `size` falls, with their shares.
fn between(index: i64, size: i64, side: i64) -> [(i64, f32); 2] {
    let place = index as f32 * (side - 1) as f32 / (size - 1).max(1) as f32;
    let share = place - place.floor();
    let low = (place.floor() as i64).min(side - 1);
    [(low, 1.0 - share), ((low + 1).min(side - 1), share)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corners_of_an_image_are_those_of_the_table() {
        let grids = [[1, 4, 2]];
        let positions = merged_order(2, &grids);
        assert_eq!(positions[..5], [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]);
        let places = Places::new(3, &grids, &positions);
        let at = |patch: usize| {
            let range = 4 * patch..4 * patch + 4;
            let pairs = places.corners[range.clone()]
                .iter()
                .zip(&places.shares[range]);
            pairs
                .filter(|(_, share)| **share > 0.0)
                .map(|(row, share)| (*row, *share))
                .collect::<Vec<_>>()
        };
        assert_eq!(at(0), [(0, 1.0)]);
        assert_eq!(at(1), [(2, 1.0)]);
        // Row 1 of 4 over 3 rows of the table: two thirds of the way from the first to the second.
        assert_eq!(
            at(2).iter().map(|(row, _)| *row).collect::<Vec<_>>(),
            [0, 3]
        );
        assert!((at(2)[1].1 - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(at(7), [(8, 1.0)]);
        assert_eq!(between(0, 1, 3), [(0, 1.0), (1, 0.0)]);
    }
}
