//! `run`: runs a pipeline and reports.

mod closing;
mod json;
mod options;
mod resume;

use std::sync::Arc;

use anyhow::Context as _;
use engine_plan::Plan;
use engine_runtime::{CancelToken, RunOptions, RunOutcome, RunStatus, execute};
use engine_store::Store;

use super::check::load;
use super::print_json;
use crate::args::{ExecutionArgs, RunArgs};
use crate::exit::Exit;
use crate::logging::is_json;
use crate::progress::{Display, Observers};
use crate::project::{local_folder, open_store, project_folder};
use crate::signals;
use crate::telemetry::Traces;
use crate::tensorboard::Board;

/// Folder of what TensorBoard shows.
const BOARD: &str = "tensorboard";

pub(crate) use closing::remarks;
pub(super) use json::{artifact_json, outcome as outcome_json};
pub(super) use options::{index_of, options, selection};

pub(crate) fn run(arguments: &RunArgs) -> anyhow::Result<Exit> {
    let root = project_folder(&arguments.pipeline.file);
    let Some(plan) = load(&arguments.pipeline, &root)? else {
        return Ok(Exit::Wrong);
    };
    let store = open_store(&arguments.store, &root)?;
    let selection = selection(&plan, &store, &arguments.choice)?;
    let options = options(&arguments.execution, root, selection)?;
    let plan = Arc::new(plan);
    let (outcome, exit) = perform(&plan, &store, &options, &arguments.execution)?;
    if arguments.execution.json {
        print_json(&outcome_json(&plan, &store, &outcome))?;
    }
    Ok(exit)
}

/// Runs a plan, shows it, and says how it ended.
pub(super) fn perform(
    plan: &Arc<Plan>,
    store: &Store,
    options: &RunOptions,
    arguments: &ExecutionArgs,
) -> anyhow::Result<(RunOutcome, Exit)> {
    let cancel = CancelToken::default();
    signals::listen(&cancel).context("could not listen for signals")?;
    let traces = match &arguments.otlp {
        Some(url) => Some(Traces::start(url, &plan.name)?),
        None => None,
    };
    let mut observers = Observers {
        display: Display::new(plan, arguments.quiet),
        traces,
        board: Board::new(&local_folder(store, &options.root).join(BOARD), plan),
    };
    let result = execute(plan, store, options, &cancel, &mut observers);
    // Traces of a run that broke down are the most wanted ones.
    if let Some(traces) = observers.traces {
        traces.finish();
    }
    observers.board.finish();
    let outcome = result?;
    let exit = match outcome.status {
        RunStatus::Done => Exit::Done,
        RunStatus::Failed => Exit::Failed,
        RunStatus::Interrupted => Exit::Interrupted,
    };
    if is_json() {
        closing::json_lines(plan, &outcome, exit);
        return Ok((outcome, exit));
    }
    if !arguments.quiet {
        eprintln!("\n{}", closing::table(&outcome));
    }
    closing::report_failures(&outcome);
    eprintln!("{}", closing::line(plan, &outcome));
    if exit == Exit::Done && !arguments.quiet {
        crate::report::closing(plan, store, &options.root, &outcome)?;
    }
    if exit == Exit::Interrupted {
        eprintln!("{}:\n  {}", closing::INTERRUPTED, resume::command());
    }
    Ok((outcome, exit))
}
