//! `dev`: what is generated from the sources of this program.

use super::print_json;
use crate::args::DevCommand;
use crate::exit::Exit;

pub(crate) fn dev(command: &DevCommand) -> anyhow::Result<Exit> {
    match command {
        DevCommand::Schema => print_json(&engine_plan::json_schema(&crate::registry()))?,
    }
    Ok(Exit::Done)
}
