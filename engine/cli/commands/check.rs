//! `check`: everything that can be known to be wrong before a run.

use std::path::Path;

use engine_plan::Plan;
use schemas::Problem;
use schemas::yaml::Document;
use serde_json::json;

use super::print_json;
use crate::args::{CheckArgs, PipelineArgs};
use crate::exit::Exit;
use crate::project::{checked, planned, project_folder, read_pipeline};
use crate::render;

pub(crate) fn check(arguments: &CheckArgs) -> anyhow::Result<Exit> {
    let pipeline = &arguments.pipeline;
    let document = read(pipeline)?;
    match checked(&document, &project_folder(&pipeline.file)) {
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

/// The checked plan of a pipeline. Nothing when it has problems, which are then on the terminal.
pub(crate) fn load(pipeline: &PipelineArgs, root: &Path) -> anyhow::Result<Option<Plan>> {
    let document = read(pipeline)?;
    Ok(or_problems(&document, checked(&document, root)))
}

/// The plan of a pipeline, without a look at the files that it names. Nothing when the pipeline has problems, which
/// are then on the terminal.
pub(crate) fn load_unchecked(pipeline: &PipelineArgs) -> anyhow::Result<Option<Plan>> {
    let document = read(pipeline)?;
    Ok(or_problems(&document, planned(&document)))
}

/// The checked plan of a pipeline that a run kept.
pub(crate) fn load_kept(document: &Document, root: &Path) -> Option<Plan> {
    or_problems(document, checked(document, root))
}

fn read(pipeline: &PipelineArgs) -> anyhow::Result<Document> {
    let changes = &pipeline.changes;
    read_pipeline(&pipeline.file, &changes.overlays, &changes.sets)
}

fn or_problems(document: &Document, plan: Result<Plan, Vec<Problem>>) -> Option<Plan> {
    match plan {
        Ok(plan) => Some(plan),
        Err(problems) => {
            eprint!("{}", render::problems(document, &problems));
            None
        }
    }
}
