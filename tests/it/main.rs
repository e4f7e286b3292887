//! The integration tests: one binary that drives the real programs in temporary stores.

#![expect(
    clippy::unwrap_used,
    reason = "a fault in a test's own setting stops that test"
)]

mod cache;
mod completions;
mod data;
mod diagnostics;
mod gc;
mod graph;
mod kill;
mod layers;
mod lineage;
mod run;
mod schema;
mod support;
mod tidy;
mod why;
