//! `sft-train`: supervised fine-tuning on completions.
//!
//! Use it to teach what examples show. The loss is on completion tokens alone; examples that do not fit are dropped and
//! named, never cut.

mod config;
mod example_rows;
mod operator;
#[cfg(test)]
mod tests;

pub use config::SftTrain;

/// Adds the kind.
pub fn register(registry: &mut engine_core::Registry) {
    registry.register::<SftTrain>();
}
