//! The words of the system: tables, the pipeline file, problems with spans, run records. No behaviour beyond
//! parsing: what a pipeline file says is worked into a plain graph of stages, and nothing is known of operators.

pub mod pipeline;
pub mod problem;
pub mod record;
pub mod tables;
pub mod yaml;

pub use problem::{Label, Problem, Span};
pub use tables::TableName;
