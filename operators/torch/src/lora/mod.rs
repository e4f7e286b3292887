//! Low-rank adapters (LoRA): `W + s B A` with `s = alpha / rank`, where only `A` and `B` are trained.
//!
//! The weights that a model computes with have their adapters in them: `M = W + s B A` is written anew after each step of the
//! optimizer, from a copy of `W` that is kept. Whatever reads weights (generation, scoring, saving) knows nothing of
//! adapters and sees what is trained. In training [`add`] makes the gradient of `y = x M^T` reach `A` and `B`; the gradient of
//! `x` goes through `M`. In 16 bits `M` is rounded: what an adapter adds shows once it is half the distance of two numbers.
//!
//! Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
//!
//! Shapes: `t` tokens, `w` inputs, `n` outputs, `r` rank.

mod files;
mod targets;

use engine_core::error::ModelError;
use engine_core::policy::{LoraOptions, TrainOptions};
use engine_core::seed;
use tch::{Kind, Tensor};

use crate::layout::{Init, Parameter, Part, canonical};
use crate::parameters::wide_kind;
use crate::philox;

pub(crate) use files::save;

/// Elements of the pieces that weights are merged in; bounds the memory of a merge.
const MERGE_PIECE: i64 = 1 << 25;

/// Ends of the names of adapters' weights.
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// One adapted module as it is published: a part of a weight in memory.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// First row in the weight, and number of rows.
    start: i64,
    rows: i64,
    /// Places of `A` and `B` in the list of weights.
    a: usize,
    b: usize,
}

/// An adapted weight in memory.
#[derive(Debug)]
struct Site {
    /// Its place in the list of weights.
    weight: usize,
    modules: Vec<Module>,
    /// The weight without its adapters.
    base: Tensor,
}

/// The adapters of a model.
#[derive(Debug)]
pub(crate) struct Lora {
    options: LoraOptions,
    seed: u64,
    /// What peft calls the adapted modules: as it must be told to find the same ones.
    target_modules: Vec<String>,
    /// Whether the model has a tower; peft then names modules otherwise.
    nested: bool,
    sites: Vec<Site>,
}

impl Lora {
    /// Finds what is to be adapted and appends the weights of its adapters to the list. `None` when there are to be none.
    ///
    /// # Errors
    /// [`ModelError::Input`] for options that are no adapters, or fit no layer.
    pub(crate) fn new(
        list: &mut Vec<Parameter>,
        options: &TrainOptions,
    ) -> Result<Option<Self>, ModelError> {
        let Some(lora) = &options.lora else {
            return Ok(None);
        };
        let found = targets::find(list, lora, &options.freeze)?;
        let rank = i64::try_from(lora.rank).unwrap_or(i64::MAX);
        let mut sites: Vec<Site> = Vec::new();
        for target in found.modules {
            let Parameter { parts, .. } = &list[target.weight];
            let start = parts[..target.part].iter().map(|part| part.shape[0]).sum();
            let part = &parts[target.part];
            let (rows, columns) = (part.shape[0], part.shape[1]);
            let name = part.name.trim_end_matches(".weight").to_owned();
            let module = Module {
                start,
                rows,
                a: list.len(),
                b: list.len() + 1,
            };
            list.push(weight(&format!("{name}{A}"), [rank, columns]));
            list.push(weight(&format!("{name}{B}"), [rows, rank]));
            match sites.last_mut() {
                Some(site) if site.weight == target.weight => site.modules.push(module),
                _ => sites.push(Site {
                    weight: target.weight,
                    modules: vec![module],
                    base: Tensor::new(),
                }),
            }
        }
        Ok(Some(Self {
            options: lora.clone(),
            seed: options.seed,
            target_modules: found.names,
            nested: found.nested,
            sites,
        }))
    }

    /// The same adapters for another thread.
    pub(crate) fn share(&self) -> Self {
        let site = |site: &Site| Site {
            weight: site.weight,
            modules: site.modules.clone(),
            base: site.base.shallow_clone(),
        };
        Self {
            options: self.options.clone(),
            target_modules: self.target_modules.clone(),
            sites: self.sites.iter().map(site).collect(),
            ..*self
        }
    }

    /// Places of the adapters' weights in the list of weights.
    fn places(&self) -> impl Iterator<Item = usize> {
        let modules = self.sites.iter().flat_map(|site| &site.modules);
        modules.flat_map(|module| [module.a, module.b])
    }

    pub(crate) fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// First values: `A` uniform with the variance of a linear layer's usual ones, `B` zero, as peft has it.
    pub(crate) fn initialise(&self, part: &Part, target: &mut Tensor) {
        if !part.name.ends_with(A) {
            return;
        }
        let mut values = vec![0.0_f32; target.numel()];
        // Kaiming's bound for `a = sqrt(5)`: sqrt(6 / ((1 + a^2) * inputs)).
        let bound = 1.0 / (part.shape[1] as f64).sqrt();
        philox::fill_uniform(seed::derive(self.seed, &part.name), bound, &mut values);
        target.copy_(&Tensor::from_slice(&values));
    }

    /// Copies the weights as they are before any adapter is in them.
    pub(crate) fn keep_bases(&mut self, tensors: &[Tensor]) {
        for site in &mut self.sites {
            site.base = tensors[site.weight].copy();
        }
    }

    /// The weights without adapters.
    pub(crate) fn bases(&self, tensors: &[Tensor]) -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = tensors.iter().map(Tensor::shallow_clone).collect();
        for site in &self.sites {
            tensors[site.weight] = site.base.shallow_clone();
        }
        tensors
    }

    /// Makes room of their own for the adapted weights, so that other adapters can be merged into it.
    pub(crate) fn detach_sites(&self, tensors: &mut [Tensor]) {
        for site in &self.sites {
            tensors[site.weight] = site.base.empty_like();
        }
    }

    /// Writes `W + s B A` into the adapted weights, with the adapters among these tensors.
    pub(crate) fn merge_into(&self, tensors: &[Tensor]) {
        tch::no_grad(|| {
            for site in &self.sites {
                // Rows without an adapter may not be there yet.
                if site.modules.iter().map(|module| module.rows).sum::<i64>() != site.base.size()[0]
                {
                    tensors[site.weight].shallow_clone().copy_(&site.base);
                }
                for module in &site.modules {
                    self.merge_module(site, module, tensors);
                }
            }
        });
    }

    fn merge_module(&self, site: &Site, module: &Module, tensors: &[Tensor]) {
        let (a, b) = (&tensors[module.a], &tensors[module.b]);
        let kind = wide_kind(site.base.kind());
        let piece = (MERGE_PIECE / site.base.size()[1]).max(1);
        let mut row = 0;
        while row < module.rows {
            let count = piece.min(module.rows - row);
            let rows = |x: &Tensor| x.narrow(0, module.start + row, count);
            let change = b.narrow(0, row, count).mm(a).g_mul_scalar_(self.scale());
            let merged = rows(&site.base).to_kind(kind) + change;
            rows(&tensors[site.weight]).copy_(&merged);
            row += count;
        }
    }

    /// The adapter of a weight, with its parts among these tensors.
    pub(crate) fn adapter(&self, weight: usize, tensors: &[Tensor]) -> Option<Adapter> {
        let site = self.sites.iter().find(|site| site.weight == weight)?;
        let parts = site.modules.iter().map(|module| AdapterPart {
            start: module.start,
            places: [module.a, module.b],
            a: tensors[module.a].shallow_clone(),
            b: tensors[module.b].shallow_clone(),
        });
        Some(Adapter {
            parts: parts.collect(),
            outputs: site.base.size()[0],
            scale: self.scale(),
        })
    }

    fn scale(&self) -> f64 {
        self.options.alpha / self.options.rank as f64
    }
}

fn weight(published: &str, shape: [i64; 2]) -> Parameter {
    let part = Part {
        name: published.to_owned(),
        shape: shape.to_vec(),
    };
    Parameter {
        name: canonical(published).into_owned(),
        parts: vec![part],
        shape: shape.to_vec(),
        init: Init::Zeros,
    }
}

/// The trained part of a weight in memory.
#[derive(Debug)]
pub(crate) struct Adapter {
    parts: Vec<AdapterPart>,
    outputs: i64,
    scale: f64,
}

/// The adapter of some rows of a weight.
#[derive(Debug)]
struct AdapterPart {
    start: i64,
    /// Places of `A` and `B` in the list of weights.
    places: [usize; 2],
    /// `[r, w]`
    a: Tensor,
    /// `[rows, r]`
    b: Tensor,
}

/// Lets the gradient of a linear layer's output reach its adapter.
///
/// With `h = x A^T` and `C = s B`, `y` becomes `y + (h - sg(h)) sg(C)^T + sg(h) (C - sg(C))^T`, where `sg` stops the gradient. Both
/// terms are zero; the derivative of the first reaches `A`, that of the second `B`, and they are those of `s (x A^T) B^T`. `x` is
/// taken without gradient: its own goes through the weight that `y` was made with, which has the adapter in it. The two
/// are one product of the two halves side by side.
///
/// # Shapes
/// - `y_tn`: `[t, n]`, changed in place; `x_tw`: `[t, w]`
///
/// # Types and device
/// Those of `x`; `A` and `B` are converted to it, and their gradients back.
pub(crate) fn add(mut y_tn: Tensor, x_tw: &Tensor, adapter: Option<&Adapter>) -> Tensor {
    let Some(adapter) = adapter.filter(|adapter| adapter.is_learning()) else {
        return y_tn;
    };
    let (a, b) = adapter.joined(x_tw.kind());
    let h = x_tw.detach().mm(&a.tr());
    let (h_now, b_now) = (h.detach(), b.detach());
    let left = Tensor::cat(&[&(h - &h_now), &h_now], 1);
    let right = Tensor::cat(&[&b_now, &(b - &b_now)], 1);
    y_tn.addmm_(&left, &right.tr())
}

impl Adapter {
    /// Whether gradients are asked for.
    fn is_learning(&self) -> bool {
        // A view follows the mode that it is made in.
        self.parts.iter().any(|part| part.a.tr().requires_grad())
    }

    /// Gradients of `A` and `B` of each part, with their places in the list of weights, for a layer whose backward pass is not
    /// recorded.
    ///
    /// # Shapes
    /// - `x_tw`: the layer's input, `[t, w]`; `dy_tn`: the gradient of its output, `[t, n]`
    pub(crate) fn gradients(&self, x_tw: &Tensor, dy_tn: &Tensor) -> Vec<(usize, Tensor)> {
        tch::no_grad(|| {
            let mut gradients = Vec::new();
            for part in &self.parts {
                let dy = dy_tn.narrow(1, part.start, part.b.size()[0]);
                let a = part.a.to_kind(x_tw.kind());
                // Scaled as in `joined`, so that both ways round alike.
                let b = (&part.b * self.scale).to_kind(x_tw.kind());
                gradients.push((part.places[0], dy.mm(&b).tr().mm(x_tw)));
                let mut by_b = dy.tr().mm(&x_tw.mm(&a.tr()));
                gradients.push((part.places[1], by_b.g_mul_scalar_(self.scale)));
            }
            gradients
        })
    }

    /// `A` of all parts, one above the other, `[R, w]`, and `s B` of all parts, `[n, R]`, zero where rows and ranks of different
    /// parts meet.
    fn joined(&self, kind: Kind) -> (Tensor, Tensor) {
        let a: Vec<Tensor> = self.parts.iter().map(|part| part.a.to_kind(kind)).collect();
        let mut blocks = Vec::new();
        let mut row = 0;
        let gap = |rows: i64| Tensor::zeros([rows, 0], (kind, a[0].device()));
        for part in &self.parts {
            if part.start > row {
                blocks.push(gap(part.start - row));
            }
            blocks.push((&part.b * self.scale).to_kind(kind));
            row = part.start + part.b.size()[0];
        }
        if row < self.outputs {
            blocks.push(gap(self.outputs - row));
        }
        let b = match blocks.as_slice() {
            [one] => one.shallow_clone(),
            _ => Tensor::block_diag(&blocks),
        };
        (Tensor::cat(&a, 0), b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn normal(stream: u64, size: [i64; 2]) -> Tensor {
        let mut values = vec![0.0_f32; usize::try_from(size[0] * size[1]).unwrap()];
        philox::fill_normal(stream, 1.0, &mut values);
        let tensor = Tensor::from_slice(&values).view(size);
        tensor.to_kind(Kind::Double)
    }

    /// Gradients of `sum(y * weights)` by `x`, `A` and `B`, and `y`.
    fn gradients(
        y: impl Fn(&Tensor, &[Tensor]) -> Tensor,
        rows: [i64; 2],
    ) -> (Tensor, Vec<Tensor>) {
        let x = normal(1, [5, 7]).set_requires_grad(true);
        let parts: Vec<Tensor> = (0..2)
            .flat_map(|part| {
                let b = normal(20 + part, [rows[usize::try_from(part).unwrap()], 3]);
                [normal(10 + part, [3, 7]), b]
            })
            .map(|part| part.set_requires_grad(true))
            .collect();
        let y = y(&x, &parts);
        let loss = (&y * normal(30, [5, 11])).sum(None::<Kind>);
        let mut inputs = vec![&x];
        inputs.extend(&parts);
        let gradients = Tensor::run_backward(&[&loss], &inputs, false, false);
        (y.detach(), gradients)
    }

    fn adapter(parts: &[Tensor], scale: f64) -> Adapter {
        let part = |index: usize, start: i64| AdapterPart {
            start,
            places: [2 * index, 2 * index + 1],
            a: parts[2 * index].shallow_clone(),
            b: parts[2 * index + 1].shallow_clone(),
        };
        Adapter {
            parts: vec![part(0, 0), part(1, 6)],
            outputs: 11,
            scale,
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_sum_of_weight_and_adapter() {
        // Eleven outputs: four with an adapter, two without, five with another.
        let (rows, scale) = ([4, 5], 0.7);
        let base = normal(2, [11, 7]);
        let change = |parts: &[Tensor]| {
            let gap = Tensor::zeros([2, 7], (Kind::Double, Device::Cpu));
            let product = |part: usize| parts[2 * part + 1].mm(&parts[2 * part]) * scale;
            Tensor::cat(&[product(0), gap, product(1)], 0)
        };
        let (expected_y, expected) =
            gradients(|x, parts| x.mm(&(&base + change(parts)).tr()), rows);
        let (y, found) = gradients(
            |x, parts| {
                let merged = tch::no_grad(|| &base + change(parts));
                let adapter = adapter(parts, scale);
                let y = x.mm(&merged.tr());
                let before = y.detach().copy();
                let y = add(y, x, Some(&adapter));
                assert_eq!(before, y.detach());
                y
            },
            rows,
        );
        let gap = |left: &Tensor, right: &Tensor| (left - right).abs().max().double_value(&[]);
        assert!(gap(&y, &expected_y) < 1e-12);
        assert_eq!(found.len(), 5);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(expected.abs().max().double_value(&[]) > 0.1);
            assert!(gap(found, expected) < 1e-12);
        }
        let parts: Vec<Tensor> = (0..2)
            .flat_map(|part| {
                [
                    normal(10 + part, [3, 7]),
                    normal(20 + part, [4 + part as i64, 3]),
                ]
            })
            .collect();
        let by_hand = adapter(&parts, scale).gradients(&normal(1, [5, 7]), &normal(30, [5, 11]));
        for (place, found) in by_hand {
            assert!(gap(&found, &expected[1 + place]) < 1e-12);
        }
    }
}
