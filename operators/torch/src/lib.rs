//! Models on libtorch: the families of language and vision-language models, sampling, losses, optimizer and checkpoints.
//!
//! The only crate that names `tch`. It implements the traits of `engine_core::policy`; nothing of tensors leaves it.

mod accumulate;
mod allocator;
mod apart;
mod backend;
mod completion;
mod config;
mod cuda;
mod decoder;
mod deterministic;
mod device;
mod distribution;
mod fused;
mod generate;
mod groups;
mod guard;
mod head;
mod init;
mod layout;
mod lora;
mod loss;
mod memory;
mod model;
mod optimizer;
mod parallel;
mod parameters;
mod philox;
mod plan;
mod policy;
mod sampling;
mod save;
mod session;
mod sink;
mod skinny;
mod state;
mod team;
mod train;
mod weights;
mod wide;

#[cfg(test)]
mod tests;

pub use backend::TorchBackend;
pub use device::DeviceChoice;
