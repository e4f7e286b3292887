//! The integration tests: one binary that drives the real programs in temporary stores.

mod cache;
mod data;
mod diagnostics;
mod kill;
mod layers;
mod run;
mod schema;
mod support;
