//! `sft-train`: supervised fine-tuning on completions.
//!
//! Use it to teach what examples show. The loss is on the tokens of answers alone; answers that do not fit are dropped and
//! listed, never cut.

mod config;
mod dropped;
mod evaluation;
#[cfg(test)]
mod evaluation_tests;
mod example_rows;
#[cfg(test)]
mod mask_golden;
mod operator;
#[cfg(test)]
mod option_tests;
mod sequences;
#[cfg(test)]
mod tests;
mod trainer;

pub use config::{Keep, SftTrain, Turns};
pub use evaluation::Evaluation;

/// Adds the kind.
pub fn register(registry: &mut engine_core::Registry) {
    registry.register::<SftTrain>();
}
