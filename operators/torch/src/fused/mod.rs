//! Our own kernels for training on an NVIDIA GPU in 16 bits: the work between the matrix products of a pass, each part in one pass over
//! memory. `model/norm.rs`, `model/between.rs` and `distribution.rs` have the same by plain operations, for every other device and type.
//!
//! Shapes: `t` tokens, `w` model width, `i` width of the gated unit, `h` query heads, `k` key heads, `d` head width, `n` rows of the
//! output head, `v` vocabulary.

mod places;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use crate::config::TextConfig;
use crate::cuda::{Argument, Function, Module, compile, device_facts};
pub(crate) use places::Places;

const SOURCE: &str = concat!(
    include_str!("../cuda/kernels/common.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/layer.cu"),
    include_str!("kernels/head.cu"),
);

/// Blocks for each multiprocessor of kernels whose blocks go through many rows.
const BLOCKS_EACH: u32 = 4;
/// Threads of blocks of other kernels, of those whose lanes have parts of heads, and of those of the output head.
const THREADS: u32 = 256;
const LANES: u32 = 128;
const HEAD_THREADS: u32 = 512;
/// Values that a lane has of a head.
const LANE_VALUES: i64 = 8;

/// The kernels for the sizes of one model.
#[derive(Debug)]
pub(crate) struct Fused {
    norm_backward: Function,
    gated: Function,
    gated_backward: Function,
    turn: Function,
    turn_back: Function,
    place: Function,
    lift: Function,
    join: Function,
    distribution: Function,
    distribution_backward: Function,
    sizes: Sizes,
    norm_threads: u32,
    /// Blocks of kernels whose blocks go through many rows.
    blocks: u32,
    /// Owns the functions.
    _module: Module,
}

// SAFETY: the handles belong to the process, and starting a kernel is safe from every thread.
#[expect(unsafe_code, reason = "handles of CUDA are pointers")]
unsafe impl Send for Fused {}
// SAFETY: as above; nothing is changed after it was made.
#[expect(unsafe_code, reason = "handles of CUDA are pointers")]
unsafe impl Sync for Fused {}

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sizes {
    hidden: i64,
    intermediate: i64,
    heads: i64,
    key_heads: i64,
    head_dim: i64,
    vocab: i64,
    device: usize,
}

/// Norms of each head of queries and of keys, `[d]` each.
pub(crate) type HeadScales<'a> = [&'a Tensor; 2];

impl Sizes {
    fn of(config: &TextConfig, kind: Kind, device: Device) -> Option<Self> {
        let Device::Cuda(device) = device else {
            return None;
        };
        let fits = kind == Kind::BFloat16
            && [64, 128].contains(&config.head_dim)
            && [config.hidden, config.intermediate, config.vocab]
                .iter()
                .all(|size| size % 8 == 0);
        fits.then_some(Self {
            hidden: config.hidden,
            intermediate: config.intermediate,
            heads: config.heads,
            key_heads: config.key_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
            device,
        })
    }

    fn norm_threads(self) -> u32 {
        (((self.hidden / 8 + 31) / 32 * 32).min(1024)) as u32
    }
}

/// Whether there are kernels for a model.
pub(crate) fn covers(config: &TextConfig, kind: Kind, device: Device) -> bool {
    Sizes::of(config, kind, device).is_some()
}

impl Fused {
    /// The kernels for a model, compiled when they are first asked for; `None` for what they do not cover.
    ///
    /// # Errors
    /// When the run-time compiler is missing or refuses.
    pub(crate) fn of(
        config: &TextConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Option<Arc<Self>>, ModelError> {
        static COMPILED: Mutex<Option<HashMap<Sizes, Arc<Fused>>>> = Mutex::new(None);
        let Some(sizes) = Sizes::of(config, kind, device) else {
            return Ok(None);
        };
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        if let Some(fused) = compiled.get(&sizes) {
            return Ok(Some(Arc::clone(fused)));
        }
        let fused = Arc::new(Self::compile(sizes)?);
        compiled.insert(sizes, Arc::clone(&fused));
        Ok(Some(fused))
    }

    /// Kernels for the heads of a test, on the first GPU.
    #[cfg(test)]
    pub(crate) fn for_test(heads: i64, key_heads: i64, head_dim: i64) -> Self {
        Self::compile(Sizes {
            hidden: 64,
            intermediate: 64,
            heads,
            key_heads,
            head_dim,
            vocab: 64,
            device: 0,
        })
        .expect("a GPU")
    }

    fn compile(sizes: Sizes) -> Result<Self, ModelError> {
        // Makes the context of libtorch current on this thread.
        drop(Tensor::zeros(
            [1],
            (Kind::Float, Device::Cuda(sizes.device)),
        ));
        let (processors, capability) = device_facts(i32::try_from(sizes.device).unwrap_or(0))?;
        let norm_threads = sizes.norm_threads();
        let macros = [
            format!("-DHIDDEN={}", sizes.hidden),
            format!("-DINTERMEDIATE={}", sizes.intermediate),
            format!("-DHEADS={}", sizes.heads),
            format!("-DKEY_HEADS={}", sizes.key_heads),
            format!("-DHEAD_DIM={}", sizes.head_dim),
            format!("-DVOCAB={}", sizes.vocab),
            format!("-DNORM_THREADS={norm_threads}"),
        ];
        let module = Module::load(&compile(SOURCE, &macros, capability)?)?;
        Ok(Self {
            norm_backward: module.function("norm_backward")?,
            gated: module.function("gated")?,
            gated_backward: module.function("gated_backward")?,
            turn: module.function("turn")?,
            turn_back: module.function("turn_back")?,
            place: module.function("place")?,
            lift: module.function("lift")?,
            join: module.function("join")?,
            distribution: module.function("distribution")?,
            distribution_backward: module.function("distribution_backward")?,
            sizes,
            norm_threads,
            blocks: BLOCKS_EACH * processors,
            _module: module,
        })
    }

    /// Gradients of what an RMS norm was given, plus `residual`, and of its scale.
    ///
    /// # Shapes
    /// - `x`, `gradient`, `residual`: `[t, w]`; `scale`: `[w]`; returns `[t, w]` and `[w]` in 32 bits
    pub(crate) fn norm_backward(
        &self,
        x: &Tensor,
        (scale, eps): (&Tensor, f64),
        gradient: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let rows = x.size()[0];
        let (x, gradient) = (x.contiguous(), gradient.contiguous());
        let residual = residual.map(Tensor::contiguous);
        let out = x.empty_like();
        let blocks = i64::from(self.blocks).min(rows.max(1));
        let partials = Tensor::empty([blocks, self.sizes.hidden], (Kind::Float, x.device()));
        let arguments = [
            Argument::from(&x),
            scale.into(),
            (&gradient).into(),
            residual.as_ref().into(),
            (&out).into(),
            (&partials).into(),
            (eps as f32).into(),
            (rows as i32).into(),
        ];
        let size = ([blocks as u32, 1], self.norm_threads);
        self.norm_backward
            .launch_among_operations(size, &arguments)?;
        Ok((out, summed(&partials)))
    }

    /// `silu(gate) * up`: `[t, 2 i]` -> `[t, i]`.
    pub(crate) fn gated(&self, gate_up: &Tensor) -> Result<Tensor, ModelError> {
        let rows = gate_up.size()[0];
        let options = (Kind::BFloat16, gate_up.device());
        let out = Tensor::empty([rows, self.sizes.intermediate], options);
        self.gated
            .launch_among_operations(self.unit_size(rows), &[gate_up.into(), (&out).into()])?;
        Ok(out)
    }

    /// Its backward pass, in place: `gate_up` becomes its gradient, and `inner`, the gradient of what came out, becomes what came out.
    ///
    /// # Shapes
    /// - `gate_up`: `[t, 2 i]`; `inner`: `[t, i]`
    pub(crate) fn gated_backward(
        &self,
        gate_up: &Tensor,
        inner: &Tensor,
    ) -> Result<(), ModelError> {
        let size = self.unit_size(gate_up.size()[0]);
        self.gated_backward
            .launch_among_operations(size, &[gate_up.into(), inner.into()])
    }

    fn unit_size(&self, rows: i64) -> ([u32; 2], u32) {
        let columns = (self.sizes.intermediate / 8) as u32;
        ([rows as u32, columns.div_ceil(THREADS)], THREADS)
    }

    /// Blocks of kernels that take some heads of each row at once.
    fn head_size(&self, rows: i64, heads: i64) -> ([u32; 2], u32) {
        let lanes = rows * heads * (self.sizes.head_dim / LANE_VALUES);
        ([(lanes as u32).div_ceil(LANES), 1], LANES)
    }

    /// Norms, where there are, and rotates queries and keys. In place, or with `places` to the rows of the attention, zeros in padding: what
    /// is attended with, and with norms what was there before.
    ///
    /// # Shapes
    /// - `qkv`: `[t, h + 2 k, d]`; `table`: `[t, d / 2, 2]`, cosines and sines in 32 bits; returns `[.., h + 2 k, d]` and `[t, h + k, d]`
    pub(crate) fn turn(
        &self,
        qkv: &Tensor,
        scales: Option<HeadScales<'_>>,
        eps: f64,
        table: &Tensor,
        places: Option<&Places>,
    ) -> Result<(Tensor, Option<Tensor>), ModelError> {
        let Sizes {
            heads,
            key_heads,
            head_dim,
            ..
        } = self.sizes;
        let (rows, all) = (qkv.size()[0], heads + 2 * key_heads);
        let options = (Kind::BFloat16, qkv.device());
        let out = places.map_or_else(
            || qkv.shallow_clone(),
            |places| Tensor::empty([places.total, all, head_dim], options),
        );
        let raw = scales.map(|_| Tensor::empty([rows, heads + key_heads, head_dim], options));
        let rows = out.size()[0];
        let arguments = [
            Argument::from(qkv),
            (&out).into(),
            places.map(|places| &places.sources).into(),
            raw.as_ref().into(),
            scales.map(|scales| scales[0]).into(),
            scales.map(|scales| scales[1]).into(),
            (eps as f32).into(),
            table.into(),
            (rows as i32).into(),
        ];
        self.turn
            .launch_among_operations(self.head_size(rows, all), &arguments)?;
        Ok((out, raw))
    }

    /// The way back: the gradient of what was projected, and of the norms where there are.
    ///
    /// # Shapes
    /// - gradients of queries `[.., h, d]`, keys and values `[.., k, d]`, by `places` if there are, those of queries zero in all rows of a token
    ///   but the first; `raw`: as [`Fused::turn`] gave it; returns `[t, h + 2 k, d]`, and `[2, d]` in 32 bits
    pub(crate) fn turn_back(
        &self,
        gradients: &[Tensor; 3],
        norms: Option<(&Tensor, HeadScales<'_>)>,
        eps: f64,
        table: &Tensor,
        places: Option<&Places>,
    ) -> Result<(Tensor, Option<Tensor>), ModelError> {
        let Sizes {
            heads,
            key_heads,
            head_dim,
            ..
        } = self.sizes;
        let [queries, keys, values] = gradients.each_ref().map(Tensor::contiguous);
        let (rows, device) = (table.size()[0], queries.device());
        let size = [rows, heads + 2 * key_heads, head_dim];
        let out = Tensor::empty(size, (Kind::BFloat16, device));
        let blocks = i64::from(self.blocks);
        let partials = norms.map(|_| Tensor::empty([blocks, 2, head_dim], (Kind::Float, device)));
        let copies = places.and_then(|places| places.copies.as_ref());
        let arguments = [
            Argument::from(&queries),
            (&keys).into(),
            (&values).into(),
            places.map(|places| &places.rows).into(),
            copies.map(|copies| &copies.starts).into(),
            copies.map(|copies| &copies.rows).into(),
            norms.map(|(raw, _)| raw).into(),
            norms.map(|(_, scales)| scales[0]).into(),
            norms.map(|(_, scales)| scales[1]).into(),
            (eps as f32).into(),
            table.into(),
            (&out).into(),
            partials.as_ref().into(),
            (rows as i32).into(),
        ];
        self.turn_back
            .launch_among_operations(([self.blocks, 1], LANES), &arguments)?;
        Ok((out, partials.as_ref().map(summed)))
    }

    /// Puts tokens into their first rows of the attention, and zeros into the others.
    ///
    /// # Shapes
    /// - `x`: `[t, h, d]`; `sources`: of [`Places`], for some rows; returns `[.., h, d]`
    pub(crate) fn place(&self, x: &Tensor, sources: &Tensor) -> Result<Tensor, ModelError> {
        let x = x.contiguous();
        let Sizes {
            heads, head_dim, ..
        } = self.sizes;
        let rows = sources.size()[0];
        let out = Tensor::empty([rows, heads, head_dim], (Kind::BFloat16, x.device()));
        let arguments = [
            Argument::from(&x),
            (&out).into(),
            sources.into(),
            (rows as i32).into(),
        ];
        self.place
            .launch_among_operations(self.word_size(rows), &arguments)?;
        Ok(out)
    }

    /// Takes tokens from their first rows of the attention.
    ///
    /// # Shapes
    /// - `x`: some rows, `[.., h, d]`; `sources`: of [`Places`], for these; `out`: `[t, h, d]`
    pub(crate) fn lift(
        &self,
        x: &Tensor,
        sources: &Tensor,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let x = x.contiguous();
        let rows = sources.size()[0];
        let arguments = [
            Argument::from(&x),
            out.into(),
            sources.into(),
            (rows as i32).into(),
        ];
        self.lift
            .launch_among_operations(self.word_size(rows), &arguments)
    }

    fn word_size(&self, rows: i64) -> ([u32; 2], u32) {
        let words = rows * self.sizes.heads * self.sizes.head_dim / LANE_VALUES;
        ([(words as u32).div_ceil(THREADS), 1], THREADS)
    }

    /// Joins attention to two sets of keys by their log-sum-exps, in place of the first.
    ///
    /// # Shapes
    /// - `out`, `part`: `[q, h, d]`; `sums`: `[h, q]` in 32 bits, rows of a longer tensor; `part_sums`: `[h, q]`
    pub(crate) fn join(
        &self,
        [out, part]: [&Tensor; 2],
        [sums, part_sums]: [&Tensor; 2],
    ) -> Result<(), ModelError> {
        let rows = out.size()[0];
        let arguments = [
            Argument::from(out),
            part.into(),
            sums.into(),
            part_sums.into(),
            (sums.stride()[0] as i32).into(),
            (rows as i32).into(),
        ];
        let size = self.head_size(rows, self.sizes.heads);
        self.join.launch_among_operations(size, &arguments)
    }

    /// Of each row of logits: log-sum-exp, log-probability of a token, entropy; all `[n]` in 32 bits.
    ///
    /// # Shapes
    /// - `logits`: `[n, v]`; `tokens`: `[n]`
    pub(crate) fn distribution(
        &self,
        logits: &Tensor,
        tokens: &Tensor,
    ) -> Result<[Tensor; 3], ModelError> {
        let rows = logits.size()[0];
        let results = [(); 3].map(|()| Tensor::empty([rows], (Kind::Float, logits.device())));
        let [logsumexp, logprobs, entropies] = &results;
        let arguments = [
            Argument::from(logits),
            tokens.into(),
            logsumexp.into(),
            logprobs.into(),
            entropies.into(),
        ];
        self.distribution
            .launch_among_operations(([rows as u32, 1], HEAD_THREADS), &arguments)?;
        Ok(results)
    }

    /// Puts the gradient of the logits in their place.
    ///
    /// # Shapes
    /// - `logits`: `[n, v]`; `tokens` and log-sum-exp, entropy and the gradients of log-probability and entropy: `[n]` in 32 bits
    pub(crate) fn distribution_backward(
        &self,
        logits: &Tensor,
        tokens: &Tensor,
        [logsumexp, entropies]: [&Tensor; 2],
        [of_logprobs, of_entropies]: [&Tensor; 2],
    ) -> Result<(), ModelError> {
        let arguments = [
            Argument::from(logits),
            tokens.into(),
            logsumexp.into(),
            entropies.into(),
            of_logprobs.into(),
            of_entropies.into(),
        ];
        let size = ([logits.size()[0] as u32, 1], HEAD_THREADS);
        self.distribution_backward
            .launch_among_operations(size, &arguments)
    }
}

/// Sum over the first axis.
fn summed(partials: &Tensor) -> Tensor {
    partials.sum_dim_intlist(0, false, None::<Kind>)
}
