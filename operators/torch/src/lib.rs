//! Models on libtorch: the families of language and vision-language models, sampling, losses, optimizer and checkpoints.
//!
//! The only crate that names `tch`. It implements the traits of `engine_core::policy`; nothing of tensors leaves it.

mod allocator;
mod apart;
mod backend;
mod completion;
mod config;
mod cuda;
mod decoder;
mod device;
mod generate;
mod guard;
mod init;
mod layout;
mod loss;
mod memory;
mod model;
mod optimizer;
mod parallel;
mod parameters;
mod philox;
mod policy;
mod sampling;
mod save;
mod session;
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
