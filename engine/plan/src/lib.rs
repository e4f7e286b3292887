//! From the text of a pipeline to a checked plan and its stage keys.
//!
//! Pure: no I/O, clock, environment or randomness. Everything that can be known to be wrong before a run is found
//! here, all of it at once, each problem with its place in the text.

mod columns;
mod compile;
mod graph;
mod json_schema;
mod key;
mod plan;
mod wiring;

#[cfg(test)]
mod compose_tests;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use compile::{locate, plan};
pub use json_schema::json_schema;
pub use key::{StageKey, first_difference, stage_key};
pub use plan::{Plan, Source, Stage};
pub use schemas::pipeline::QuarantineBudget;
