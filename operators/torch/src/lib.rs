//! Models on libtorch: the Qwen2.5-VL family, sampling, losses, optimizer and checkpoints.
//!
//! The only crate that names `tch`. It implements the traits of `engine_core::policy`; nothing of tensors leaves it.

mod allocator;
mod apart;
mod backend;
mod completion;
mod config;
mod device;
mod generate;
mod guard;
mod init;
mod layout;
mod loss;
mod model;
mod optimizer;
mod parallel;
mod parameters;
mod philox;
mod policy;
mod sampling;
mod save;
mod state;
mod train;
mod weights;

#[cfg(test)]
mod tests;

pub use backend::TorchBackend;
pub use device::DeviceChoice;
