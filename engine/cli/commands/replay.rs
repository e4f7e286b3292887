//! `replay`: tries the quarantined rows of a stage again, and no others.

use std::path::PathBuf;
use std::sync::Arc;

use engine_plan::Plan;
use engine_runtime::Selection;
use engine_store::Store;
use schemas::record::StageStatus;
use serde_json::json;

use super::check::{load, load_kept};
use super::print_json;
use super::run::{index_of, options, outcome_json, perform};
use crate::args::{PipelineArgs, ReplayArgs};
use crate::exit::{Exit, wrong};
use crate::project::{find_store, open_store, project_folder};
use crate::select::{Runs, kept_document};
use crate::text::count;

pub(crate) fn replay(arguments: &ReplayArgs) -> anyhow::Result<Exit> {
    let Some((plan, store, root)) = read(arguments)? else {
        return Ok(Exit::Wrong);
    };
    let index = index_of(&plan, &arguments.stage)?;
    let stage = &plan.stages[index];
    if stage.quarantine.is_none() {
        return Err(wrong(format!(
            "stage `{}` ({}) has no quarantine: a row that fails fails the stage, and `metis-flow run` tries it again; write `quarantine: {{ rows: N }}` beside the operator to go on without such rows",
            stage.name, stage.kind
        )));
    }
    let tried = quarantined(&store, &stage.name)?;
    if tried == 0 {
        println!("stage `{}` has no rows in quarantine", stage.name);
        return Ok(Exit::Done);
    }
    let selection = Selection {
        replay: Some(index),
        only: Some([index].into()),
        ..Selection::default()
    };
    let options = options(&arguments.execution, root, selection)?;
    let name = stage.name.clone();
    let plan = Arc::new(plan);
    let (outcome, exit) = perform(&plan, &store, &options, &arguments.execution)?;
    let record = &outcome.stages[index].record;
    let failing = match (record.status, &record.parts) {
        (StageStatus::Done | StageStatus::Cached, Some(parts)) => parts.quarantined,
        _ => tried,
    };
    let fixed = tried.saturating_sub(failing);
    if arguments.execution.json {
        let mut shown = outcome_json(&plan, &store, &outcome);
        shown["replay"] =
            json!({ "stage": name, "tried": tried, "fixed": fixed, "failing": failing });
        print_json(&shown)?;
    } else {
        println!(
            "stage `{name}`: {} rows tried again, {} fixed, {} still failing",
            count(tried),
            count(fixed),
            count(failing)
        );
        if fixed > 0 && exit == Exit::Done {
            eprintln!("`metis-flow run` takes the stages after it up to date");
        }
    }
    Ok(exit)
}

/// The pipeline of the file, or the one that the latest run with this stage kept. Nothing when it has problems, which are
/// then on the terminal.
fn read(arguments: &ReplayArgs) -> anyhow::Result<Option<(Plan, Store, PathBuf)>> {
    if let Some(file) = &arguments.file {
        let pipeline = PipelineArgs {
            file: file.clone(),
            changes: arguments.changes.clone(),
        };
        let root = project_folder(file);
        return Ok(match load(&pipeline, &root)? {
            Some(plan) => Some((plan, open_store(&arguments.store, &root)?, root)),
            None => None,
        });
    }
    if !arguments.changes.is_empty() {
        return Err(wrong(
            "--overlay and --set change a pipeline file: name it after the stage",
        ));
    }
    let store = find_store(&arguments.store)?;
    let document = {
        let runs = Runs::open(&store)?;
        let Some((run, _)) = runs.stage(&arguments.stage)? else {
            return Err(runs.nothing(&arguments.stage));
        };
        kept_document(&run.started)
    };
    // The store of a project lies in its folder.
    let project = match (&arguments.store.store, store.local_root()) {
        (None, Some(folder)) => folder.parent().map(PathBuf::from),
        _ => None,
    };
    let root = match project {
        Some(folder) => folder,
        None => std::env::current_dir()?,
    };
    Ok(load_kept(&document, &root).map(|plan| (plan, store, root)))
}

/// Rows in the quarantine of the latest result of a stage.
fn quarantined(store: &Store, stage: &str) -> anyhow::Result<u64> {
    let runs = Runs::open(store)?;
    let Some((_, record)) = runs.stage(stage)? else {
        return Err(wrong(format!(
            "no run of this store has a stage `{stage}`; run the pipeline first"
        )));
    };
    let manifest = runs.result_of(record)?;
    Ok(manifest.map_or(0, |manifest| manifest.quarantined))
}
