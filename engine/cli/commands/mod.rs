//! One file or folder for each command.

mod check;
mod completions;
mod dev;
mod diff;
mod difference;
mod export;
mod gc;
mod graph;
mod lineage;
mod plan;
mod replay;
mod run;
mod runs;
mod serve;
mod show;
mod sql;
mod verify;
mod why;

use crate::args::{Arguments, Command};
use crate::exit::Exit;

pub(crate) use run::remarks;
pub use serve::serve_model;

/// Runs the command of this process.
pub(crate) fn dispatch(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.command {
        Command::Check(arguments) => check::check(&arguments),
        Command::Plan(arguments) => plan::plan(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Runs(arguments) => runs::runs(&arguments),
        Command::Serve(arguments) => serve::serve(&arguments),
        Command::Show(arguments) => show::show(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Sql(arguments) => sql::sql(&arguments),
        Command::Export(arguments) => export::export(&arguments),
        Command::Verify(arguments) => verify::verify(&arguments),
        Command::Why(arguments) => why::why(&arguments),
        Command::Lineage(arguments) => lineage::lineage(&arguments),
        Command::Gc(arguments) => gc::gc(&arguments),
        Command::Graph(arguments) => graph::graph(&arguments),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::Dev(command) => dev::dev(&command),
    }
}

/// Prints data.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
