//! The command line: arguments, the terminal, exit codes. What is run lives in the crates below.
//!
//! This library never names the model library, so that the engine's process does not load it; only the worker does.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on the terminal"
)]

mod args;
mod commands;
mod exit;
mod logging;
mod progress;
mod project;
mod render;
mod report;
mod signals;
mod text;

use std::process::ExitCode;

use clap::Parser as _;
use engine_core::Registry;

pub use logging::start_worker_log;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All operators. Engine and worker have the same.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    operators_data::register(&mut registry);
    operators_model::register(&mut registry);
    registry
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    logging::start(arguments.log);
    match commands::dispatch(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&error).into(),
    }
}
