//! `show`: a run, a stage of a run, or an artifact by the first digits of its digest.

mod run;
mod stage;
mod trace;

use crate::args::ShowArgs;
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::select::{Runs, Target};

pub(crate) fn show(arguments: &ShowArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let runs = Runs::open(&store)?;
    let target = match &arguments.what {
        None => Target::Run(runs.latest()?),
        Some(what) => runs.target(what)?,
    };
    match target {
        Target::Run(run) if arguments.pipeline => run::pipeline(run),
        Target::Run(run) => match &arguments.trace {
            Some(file) => trace::write(run, file)?,
            None => run::show(run, arguments.json)?,
        },
        Target::Stage(_) | Target::Result(_) if arguments.pipeline || arguments.trace.is_some() => {
            return Err(wrong("--pipeline and --trace show a run, not a stage"));
        }
        Target::Stage(found) => {
            let manifest = runs.result_of(found.record)?;
            stage::show(&store, Some(found), manifest.as_ref(), arguments)?;
        }
        Target::Result(manifest) => stage::show(&store, None, Some(&manifest), arguments)?,
    }
    Ok(Exit::Done)
}
