//! `completions`: what a shell needs to complete this command line.

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::args::{Arguments, CompletionsArgs};
use crate::exit::Exit;

pub(crate) fn completions(arguments: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "metis-flow", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}
