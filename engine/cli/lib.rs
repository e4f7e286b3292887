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
mod output;
mod progress;
mod project;
mod render;
mod report;
mod select;
mod signals;
mod telemetry;
mod tensorboard;
mod text;

use std::process::ExitCode;

use clap::Parser as _;
use engine_core::Registry;

pub use commands::serve_model;
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
    end_quietly_without_reader();
    let arguments = args::Arguments::parse();
    logging::start(arguments.log);
    match commands::dispatch(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&error).into(),
    }
}

/// Makes an end of the reader of standard output, such as `head`, an end of this process and no failure; and any other
/// fault of standard output, such as a full disk, an error like all others.
fn end_quietly_without_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>();
        let Some(fault) = text.and_then(|text| text.strip_prefix("failed printing to stdout: "))
        else {
            usual(info);
            return;
        };
        let is_broken_pipe = fault.contains("Broken pipe");
        if !is_broken_pipe {
            eprintln!("error: could not write to standard output: {fault}");
        }
        #[expect(clippy::exit, reason = "nobody reads on")]
        std::process::exit(i32::from(!is_broken_pipe));
    }));
}
