//! The vision tower: what the towers of all families share. Patches go in; features for each merged patch come out.
//!
//! Shapes: `n` patches, `m` merged patches, `w` tower width, `h` heads, `d` head width, `s` spans, `l` span length.

use std::fmt;
use std::sync::Arc;

use engine_core::policy::PatchedImage;
use tch::{Device, Kind, Tensor};

use super::attention::attend_all;
use super::rope::Rope;
use super::window::Spans;
use super::{qwen2_5_vl, qwen3_vl};
use crate::config::{TowerConfig, VisionConfig};
use crate::device::send;
use crate::lora::{self, Adapter};
use crate::parameters::Parameters;

/// Denominator guard of the tower's norms, the same in every published checkpoint.
pub(super) const NORM_EPS: f64 = 1e-6;

/// Patches that go through the tower together; bounds its memory.
const TOWER_PATCHES: usize = 1 << 15;

/// What a tower makes of images.
#[derive(Debug)]
pub(crate) struct Features {
    /// Takes the place of the placeholders' embeddings: `[m, width of the language model]`, merged patches in the order of
    /// the images.
    pub(crate) embeddings: Tensor,
    /// Added to the placeholders after each of the first layers of the language model; each is like `embeddings`.
    pub(crate) deep: Vec<Tensor>,
}

impl Features {
    /// Features of several batches of images, one after the other.
    pub(crate) fn cat(parts: &[Self]) -> Self {
        if let [one] = parts {
            return one.share();
        }
        let cat = |part: &dyn Fn(&Self) -> Tensor| {
            Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0)
        };
        let depth = parts.first().map_or(0, |part| part.deep.len());
        Self {
            embeddings: cat(&|part| part.embeddings.shallow_clone()),
            deep: (0..depth)
                .map(|layer| cat(&|part| part.deep[layer].shallow_clone()))
                .collect(),
        }
    }

    fn share(&self) -> Self {
        Self {
            embeddings: self.embeddings.shallow_clone(),
            deep: self.deep.iter().map(Tensor::shallow_clone).collect(),
        }
    }

    /// The features of some merged patches, in the order of `rows_m`.
    pub(crate) fn select(&self, rows_m: &Tensor) -> Self {
        Self {
            embeddings: self.embeddings.index_select(0, rows_m),
            deep: (self.deep.iter().map(|deep| deep.index_select(0, rows_m))).collect(),
        }
    }
}

/// Images that go through the tower together.
pub(crate) fn image_batches(
    images: &[Arc<PatchedImage>],
) -> impl Iterator<Item = &[Arc<PatchedImage>]> {
    let mut rest = images;
    std::iter::from_fn(move || {
        let mut patches = 0;
        let end = rest.iter().take_while(|image| {
            let fits = patches < TOWER_PATCHES;
            patches += image.grid_thw.iter().product::<usize>();
            fits
        });
        let (batch, after) = rest.split_at(end.count());
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

/// What a tower needs to know of some images.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) rope: Rope,
    /// Patches of one frame.
    pub(super) frames: Spans,
    /// Patches of one window, in the tower with windows.
    pub(super) windows: Option<Spans>,
    /// For each merged patch of the tower its place among the images' own, and the way back; None where they are the same.
    pub(super) order: Option<[Tensor; 2]>,
    /// Rows of the table of position embeddings and their shares, four for each patch, where there is one.
    pub(super) table: Option<[Tensor; 2]>,
}

/// The parts of one family's tower, which are run one after the other.
pub(super) trait Blocks: Send + fmt::Debug {
    fn plan(&self, grids: &[[i64; 3]], kind: Kind, device: Device) -> Plan;

    /// Embeds patches.
    ///
    /// # Shapes
    /// - `pixels`: `[m, patches of a merged patch * values of a patch]`, as the images have them; returns `[n, w]`
    fn embed(&self, pixels: &Tensor, plan: &Plan) -> Tensor;

    /// Runs a block: `[n, w]` -> `[n, w]`.
    fn block(&self, index: usize, x_nw: &Tensor, plan: &Plan) -> Tensor;

    /// Number, counted from 0, of the features that leave the tower after a block.
    fn tap(&self, _block: usize) -> Option<usize> {
        None
    }

    /// Features after a block that has a tap: `[m, width of the language model]`.
    fn deep(&self, _block: usize, _x_nw: &Tensor) -> Tensor {
        unreachable!("asked of towers with taps alone")
    }

    /// Features at the end: `[m, width of the language model]`.
    fn merge(&self, x_nw: &Tensor, plan: &Plan) -> Tensor;
}

/// A tower of any family.
#[derive(Debug)]
pub(crate) struct Vision {
    pub(crate) config: VisionConfig,
    pub(super) blocks: Box<dyn Blocks>,
}

impl Vision {
    pub(crate) fn new(config: &VisionConfig, weights: &Parameters) -> Self {
        let blocks: Box<dyn Blocks> = match &config.tower {
            TowerConfig::Windowed {
                window,
                full_blocks,
            } => Box::new(qwen2_5_vl::Tower::new(
                config,
                *window,
                full_blocks,
                weights,
            )),
            TowerConfig::Deepstack { table_side, taps } => {
                Box::new(qwen3_vl::Tower::new(config, *table_side, taps, weights))
            }
        };
        Self {
            config: config.clone(),
            blocks,
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

    /// Number of merged patches of an image.
    pub(crate) fn merged_patches(&self, image: &PatchedImage) -> i64 {
        image.grid_thw.iter().product::<usize>() as i64 / self.config.merge_unit()
    }

    /// Encodes images, one after the other.
    fn encode(&self, images: &[Arc<PatchedImage>], kind: Kind, device: Device) -> Features {
        let (pixels, plan) = self.prepare(images, kind, device);
        let mut x = self.blocks.embed(&pixels, &plan);
        let mut deep = Vec::new();
        for block in 0..self.config.depth {
            x = self.blocks.block(block, &x, &plan);
            deep.extend((self.blocks.tap(block)).map(|_| self.blocks.deep(block, &x)));
        }
        Features {
            embeddings: self.blocks.merge(&x, &plan),
            deep,
        }
    }

    /// As [`Vision::encode`], in passes of bounded size.
    pub(crate) fn encode_all(
        &self,
        images: &[Arc<PatchedImage>],
        kind: Kind,
        device: Device,
    ) -> Features {
        let parts: Vec<Features> = image_batches(images)
            .map(|images| self.encode(images, kind, device))
            .collect();
        Features::cat(&parts)
    }

    /// The patches of images, `[m, ..]`, and what the tower needs to know of them.
    pub(super) fn prepare(
        &self,
        images: &[Arc<PatchedImage>],
        kind: Kind,
        device: Device,
    ) -> (Tensor, Plan) {
        let grids: Vec<[i64; 3]> = images
            .iter()
            .map(|image| image.grid_thw.map(|size| size as i64))
            .collect();
        let pixels: Vec<Tensor> = images
            .iter()
            .map(|image| Tensor::from_slice(&image.patches))
            .collect();
        let pixels = send(&Tensor::cat(&pixels, 0), device)
            .view([-1, self.config.merge_unit() * self.config.patch_width()]);
        (pixels, self.blocks.plan(&grids, kind, device))
    }
}

/// A matrix with a bias.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
    adapter: Option<Adapter>,
}

impl Linear {
    pub(super) fn new(weights: &Parameters, name: &str) -> Self {
        Self {
            weight: weights.get(&format!("{name}.weight")),
            bias: weights.get(&format!("{name}.bias")),
            adapter: weights.adapter(&format!("{name}.weight")),
        }
    }

    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        lora::add(
            x.linear(&self.weight, Some(&self.bias)),
            x,
            self.adapter.as_ref(),
        )
    }
}

/// Attention within spans of patches, before the output projection.
///
/// # Shapes
/// - `x_nw` and the result: `[n, w]`
pub(super) fn attend_in_spans(
    config: &VisionConfig,
    qkv: &Linear,
    x_nw: &Tensor,
    rope: &Rope,
    spans: &Spans,
) -> Tensor {
    let (heads, head_dim) = (config.heads, config.head_dim());
    let qkv = qkv.apply(x_nw).view([-1, 3 * heads, head_dim]);
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
