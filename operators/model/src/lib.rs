//! Operators that use a model: sampling, reinforcement learning, fine-tuning. They know the traits of a policy, not libtorch.

pub mod advantage;
pub mod alarms;
pub mod augment;
pub mod cast_model;
mod checkpoint;
mod columns;
mod endpoint;
mod epoch_order;
mod faults;
pub mod init_model;
pub mod load_model;
mod local_judge;
mod memory_note;
mod metric_rows;
pub mod optimizer;
mod part_sampler;
pub mod processor;
pub mod prompt_rows;
pub mod rl_train;
pub mod rollout;
mod rollout_rows;
mod sampling;
mod sampling_keys;
pub mod schedule;
pub mod sft_train;
mod stop_strings;
#[cfg(test)]
mod test_support;
mod update;

use engine_core::Registry;

pub use local_judge::LocalJudge;

/// Adds every operator of this crate.
pub fn register(registry: &mut Registry) {
    augment::register(registry);
    cast_model::register(registry);
    init_model::register(registry);
    load_model::register(registry);
    rl_train::register(registry);
    rollout::register(registry);
    sft_train::register(registry);
}
