//! `check`: everything that can be known to be wrong before a run.

use std::path::Path;

use engine_plan::Plan;
use schemas::Problem;
use schemas::yaml::Document;
use serde_json::json;

use super::print_json;
use crate::args::CheckArgs;
use crate::exit::{Exit, wrong};
use crate::project::project_folder;
use crate::render;

pub(crate) fn check(arguments: &CheckArgs) -> anyhow::Result<Exit> {
    let document = read(&arguments.file)?;
    match checked(&document, &project_folder(&arguments.file)) {
        Ok(plan) => {
            let stages = plan.stages.len();
            if arguments.json {
                print_json(&json!({ "ok": true, "stages": stages }))?;
            }
            eprintln!(
                "ok: {stages} {}",
                if stages == 1 { "stage" } else { "stages" }
            );
            Ok(Exit::Done)
        }
        Err(problems) => {
            if arguments.json {
                print_json(&render::problems_json(&document, &problems))?;
            } else {
                eprint!("{}", render::problems(&document, &problems));
            }
            Ok(Exit::Wrong)
        }
    }
}

/// The checked plan of a pipeline file. Nothing when it has problems, which are then on the terminal.
pub(crate) fn load(file: &Path, root: &Path) -> anyhow::Result<Option<Plan>> {
    let document = read(file)?;
    match checked(&document, root) {
        Ok(plan) => Ok(Some(plan)),
        Err(problems) => {
            eprint!("{}", render::problems(&document, &problems));
            Ok(None)
        }
    }
}

/// The plan of a pipeline file, without a look at the files that it names. Nothing when the pipeline has problems, which
/// are then on the terminal.
pub(crate) fn planned(file: &Path) -> anyhow::Result<Option<Plan>> {
    let document = read(file)?;
    match engine_plan::plan(&document, &crate::registry()) {
        Ok(plan) => Ok(Some(plan)),
        Err(problems) => {
            eprint!("{}", render::problems(&document, &problems));
            Ok(None)
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Document> {
    let name = file.display();
    let bytes = std::fs::read(file)
        .map_err(|error| wrong(format!("could not read the pipeline file {name}: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .split(|byte| *byte == b'\n')
            .count();
        wrong(format!(
            "the pipeline file {name} is no UTF-8 text: see line {line}"
        ))
    })?;
    Ok(Document::new(name.to_string(), text))
}

fn checked(document: &Document, root: &Path) -> Result<Plan, Vec<Problem>> {
    let plan = engine_plan::plan(document, &crate::registry())?;
    let problems = inspect(&plan, document, root);
    if problems.is_empty() {
        Ok(plan)
    } else {
        Err(problems)
    }
}

/// Lets every operator look at the files that its configuration names.
fn inspect(plan: &Plan, document: &Document, root: &Path) -> Vec<Problem> {
    let mut problems: Vec<Problem> = plan
        .stages
        .iter()
        .flat_map(|stage| {
            let faults = stage.config.inspect(root);
            faults
                .into_iter()
                .map(|fault| engine_plan::locate(document, &stage.name, stage.kind, fault))
        })
        .collect();
    problems.sort_by_key(|problem| problem.span);
    problems
}
