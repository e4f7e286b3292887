//! The integration tests: one binary that drives the real programs in temporary stores.

#![expect(
    clippy::unwrap_used,
    reason = "a fault in a test's own setting stops that test"
)]

#[macro_use]
mod support;

mod at_once;
mod cache;
mod completions;
mod compose;
mod curate;
mod data;
mod diagnostics;
mod diff;
mod endpoint;
mod every_kind;
mod exec;
mod export_hf;
mod faulty_store;
mod fine_tune;
mod gc;
mod graph;
mod kill;
mod kill_random;
mod layers;
mod lineage;
mod plan_cmd;
mod random;
mod replay;
mod rl_algorithms;
mod run;
mod s3;
mod samples;
mod schema;
mod score;
mod serve;
mod show;
mod tables;
mod tidy;
mod trace;
mod train_resume;
mod verifiers;
mod verify_cmd;
mod why;
mod your_data;
