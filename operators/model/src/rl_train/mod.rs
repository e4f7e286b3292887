//! `rl-train`: reinforcement learning with verifiable rewards (GRPO).
//!
//! Use it to sharpen what a model can sometimes do. One loop: sample a group of answers to each prompt, verify, score,
//! compare within the group, update, record. Keeps every rollout of every step beside the trained model.

mod config;
mod operator;
mod record;
mod step;
#[cfg(test)]
mod tests;

pub use config::{Algorithm, Grpo, RlTrain};

/// Adds the kind.
pub fn register(registry: &mut engine_core::Registry) {
    registry.register::<RlTrain>();
}
