//! `runs`: lists the runs of a store.

use engine_store::Run;
use schemas::record::StageStatus;
use serde_json::json;

use super::print_json;
use crate::args::RunsArgs;
use crate::exit::Exit;
use crate::project::find_store;
use crate::text::{duration, lines, table};

pub(crate) fn runs(arguments: &RunsArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let runs = store.recent_runs(arguments.last.unwrap_or(usize::MAX))?;
    if arguments.json {
        print_json(&runs.iter().map(run_json).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let mut table = table(
        &[
            "run", "pipeline", "started", "status", "time", "stages", "cached", "ran",
        ],
        &[4, 5, 6, 7],
    );
    for run in &runs {
        let time = run
            .ended
            .as_ref()
            .map(|ended| duration(ended.seconds))
            .unwrap_or_default();
        table.add_row([
            run.started.run.as_str(),
            &run.started.pipeline,
            &run.started.started,
            run.status(),
            &time,
            &run.started.stages.len().to_string(),
            &with(run, StageStatus::Cached).to_string(),
            &with(run, StageStatus::Done).to_string(),
        ]);
    }
    println!("{}", lines(&table));
    Ok(Exit::Done)
}

/// A run without the text of its pipeline.
pub(super) fn run_json(run: &Run) -> serde_json::Value {
    json!({
        "run": run.started.run,
        "pipeline": run.started.pipeline,
        "started": run.started.started,
        "status": run.status(),
        "seconds": run.ended.as_ref().map(|ended| ended.seconds),
        "version": run.started.version,
        "stages": run.started.stages.len(),
        "cached": with(run, StageStatus::Cached),
        "ran": with(run, StageStatus::Done),
    })
}

fn with(run: &Run, status: StageStatus) -> usize {
    run.stages
        .iter()
        .filter(|stage| stage.status == status)
        .count()
}
