//! The words of the system: tables, the pipeline file, problems with spans, run records. No behaviour beyond parsing.

pub mod pipeline;
pub mod problem;
pub mod record;
pub mod tables;
pub mod yaml;

pub use problem::{Label, Problem, Span};
pub use tables::TableName;
