//! `rl-train`: reinforcement learning with verifiable rewards.
//!
//! Use it to sharpen what a model can sometimes do. One loop (`trainer.rs`): sample a group of answers to each prompt, verify, score,
//! compare within the group, update, record. Keeps every rollout of every step beside the trained model.
//!
//! What differs between algorithms is in `algorithms/`, one file each with its formula; which groups are learnt from in `filter.rs`.

mod advantages;
mod aggregation;
mod algorithms;
mod buffer;
mod checks;
mod collect;
mod config;
mod figures;
mod filter;
mod group;
mod judging;
mod kl;
mod learn;
mod minibatch;
mod operator;
mod record;
mod reward;
#[cfg(test)]
mod tests;
mod trainer;

pub use aggregation::{Aggregation, TokenSum};
pub use algorithms::{
    Algorithm, Cispo, Dapo, DrGrpo, Grpo, Gspo, ReinforcePlusPlus, Rloo, Statistics,
};
pub use config::{Dealt, RlTrain};
pub use filter::{Bounds, Buffer, Fallback, Filter, Resample, Stale, Surplus};
pub use kl::{Kl, KlPlace};

/// Adds the kind.
pub fn register(registry: &mut engine_core::Registry) {
    registry.register::<RlTrain>();
}
