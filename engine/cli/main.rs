//! The `metis-flow` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    metis_flow::main()
}
