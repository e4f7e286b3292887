//! Generation on an NVIDIA GPU in 16 bits: paged cache, shared prompts, our own kernels, whole steps as CUDA graphs.
//!
//! A [`Gpu`] has what outlives a batch: compiled kernels, chosen matrix products, a stream. A [`batch::Batch`] is a running
//! batch with its memory; it reads the policy's weights where they are. Models and number formats that the kernels do not
//! cover are decoded by `generate.rs` on any device.
//!
//! - `driver`, `compiler`, `aten`, `gemm`, `kernels`, `upload`: what the rest is written in
//! - `memory`: tensors of a batch; `pages`: who has which page
//! - `forward`: the layers; `prompts`: prompts through them in fixed chunks; `decode`: one token of every sequence
//! - `batch`: a running batch; `entrance`: how requests enter it; `generate`: a list of requests

mod aten;
mod batch;
mod compiler;
mod decode;
mod driver;
mod entrance;
mod forward;
mod gemm;
mod generate;
mod kernels;
mod memory;
mod pages;
mod prompts;
mod sequence;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine_core::error::ModelError;
use engine_core::policy::{GenerationSession, SessionLimits};
use tch::{Device, Kind, Tensor};

use crate::model::Model;
use driver::Stream;
use gemm::Gemm;
use kernels::Kernels;

pub(crate) use aten::{Aten, Packed};
pub(crate) use compiler::compile;
pub(crate) use driver::{Argument, Function, Module, device_facts};
pub(crate) use generate::generate;

/// What batches of one model share.
#[derive(Debug)]
pub(crate) struct Gpu {
    aten: Arc<Aten>,
    gemm: Gemm,
    kernels: Kernels,
    stream: Stream,
    device: i32,
}

// SAFETY: the handles belong to the process and are used by one thread at a time, which owns or borrows the value; libtorch makes
// its context current on every thread that it is used from.
#[expect(unsafe_code, reason = "handles of CUDA are pointers")]
unsafe impl Send for Gpu {}

/// Whether a model is decoded here; the reason if not.
///
/// # Errors
/// A lower-case fragment that says why not.
pub(crate) fn supports(model: &Model) -> Result<(), String> {
    if !model.device.is_cuda() {
        Err("it is not on a GPU".to_owned())
    } else if model.kind != Kind::BFloat16 {
        Err("its weights are not bfloat16".to_owned())
    } else {
        kernels::unsupported(&model.config.text).map_or(Ok(()), Err)
    }
}

/// Bytes that decoding takes: for one sequence at a time, and for as many.
pub(crate) fn generation_bytes(model: &Model, sequences: u64, longest: u64) -> (u64, u64) {
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    memory::bytes(model, count(sequences), count(longest))
}

/// Bytes of the device that are free, and all of them.
///
/// # Errors
/// When the driver refuses.
pub(crate) fn device_memory() -> Result<(u64, u64), ModelError> {
    let (free, total) = driver::memory()?;
    Ok((free as u64, total as u64))
}

/// Looks how many bytes of a GPU are taken, by anybody, and gives the most that was seen so far. What libtorch has freed and keeps for
/// later counts too. Generation and training run on streams of their own, and neither takes what the other has freed until memory gets
/// short: where there is plenty this is more than the plan says, in which they follow each other.
pub(crate) fn note_memory(device: Device) -> u64 {
    static MOST: AtomicU64 = AtomicU64::new(0);
    if !device.is_cuda() {
        return 0;
    }
    let used = device_memory().map_or(0, |(free, total)| total - free);
    MOST.fetch_max(used, Ordering::Relaxed).max(used)
}

impl Gpu {
    /// Waits until nothing of the last batch is under way. Its cache is gone by then; what else it had is in libtorch's pools, from which
    /// training takes it when memory gets short.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(crate) fn release(&self) -> Result<(), ModelError> {
        self.stream.synchronise()
    }

    /// Compiles the kernels for a model.
    ///
    /// # Errors
    /// When a library is missing or the compiler refuses.
    pub(crate) fn new(model: &Model) -> Result<Self, ModelError> {
        let Device::Cuda(number) = model.device else {
            return Err(ModelError::Backend("decoding here needs a GPU".to_owned()));
        };
        // Makes the context of libtorch current on this thread.
        drop(Tensor::zeros([1], (Kind::Float, model.device)));
        let device = i32::try_from(number).unwrap_or(0);
        let (processors, capability) = device_facts(device)?;
        Ok(Self {
            aten: Arc::new(Aten::find()?),
            gemm: Gemm::new(model.device)?,
            kernels: Kernels::compile(&model.config.text, processors, capability)?,
            stream: Stream::new()?,
            device,
        })
    }

    /// Opens a batch that requests enter and leave.
    ///
    /// # Errors
    /// When the limits do not fit the memory.
    pub(crate) fn session<'a>(
        &'a mut self,
        model: &'a Model,
        limits: SessionLimits,
    ) -> Result<Box<dyn GenerationSession + 'a>, ModelError> {
        Ok(Box::new(batch::Batch::open(
            self,
            model,
            limits,
            batch::Width::Fitting,
        )?))
    }
}
