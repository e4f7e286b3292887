//! `run`: runs a pipeline and reports.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine_core::Artifact;
use engine_plan::Plan;
use engine_runtime::{
    CancelToken, RunOptions, RunOutcome, RunStatus, StageOutcome, WorkerOptions, execute,
};
use engine_store::Store;
use schemas::record::StageStatus;
use serde_json::json;

use super::check::load;
use super::print_json;
use crate::args::RunArgs;
use crate::exit::Exit;
use crate::progress::Display;
use crate::project::{open_store, project_folder};
use crate::text::{count, duration, lines, table};
use crate::{VERSION, signals};

pub(crate) fn run(arguments: &RunArgs) -> anyhow::Result<Exit> {
    let root = project_folder(&arguments.file);
    let Some(plan) = load(&arguments.file, &root)? else {
        return Ok(Exit::Wrong);
    };
    let store = open_store(&arguments.store, &root)?;
    let cancel = CancelToken::default();
    signals::listen(&cancel).context("could not listen for signals")?;
    let options = options(arguments, root)?;
    let plan = Arc::new(plan);
    let outcome = execute(&plan, &store, &options, &cancel, &mut Display::new(&plan))?;
    if arguments.json {
        print_json(&outcome_json(&plan, &store, &outcome))?;
    }
    eprintln!("\n{}", closing_table(&outcome));
    for stage in &outcome.stages {
        report_failure(stage);
    }
    eprintln!("{}", closing_line(&plan, &outcome));
    match outcome.status {
        RunStatus::Done => {
            crate::report::closing(&plan, &store, &outcome)?;
            Ok(Exit::Done)
        }
        RunStatus::Failed => Ok(Exit::Failed),
        RunStatus::Interrupted => {
            eprintln!(
                "interrupted; `{}` goes on where it stopped",
                resume_command(arguments)
            );
            Ok(Exit::Interrupted)
        }
    }
}

fn options(arguments: &RunArgs, root: PathBuf) -> anyhow::Result<RunOptions> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = arguments
        .threads
        .and_then(|threads| usize::try_from(threads).ok())
        .unwrap_or(cores);
    engine_runtime::limit_threads(threads);
    let program = std::env::current_exe().context("could not find the folder of this program")?;
    let mut worker = WorkerOptions::new(program.with_file_name("metis-flow-worker"));
    worker.silence = Duration::from_secs(u64::from(arguments.worker_silence));
    Ok(RunOptions {
        root,
        version: VERSION.to_owned(),
        engine_slots: threads.max(2),
        worker_slots: 1,
        threads,
        device: arguments.device.clone(),
        worker,
    })
}

fn closing_table(outcome: &RunOutcome) -> String {
    let mut table = table(&["stage", "operator", "rows", "time", ""], &[2, 3]);
    for StageOutcome {
        record,
        work_seconds,
        ..
    } in &outcome.stages
    {
        let rows = record.rows.map(count).unwrap_or_default();
        let (time, state) = match record.status {
            // What the work took when it was done.
            StageStatus::Cached => (work_seconds.map(duration).unwrap_or_default(), "cached"),
            StageStatus::Done => (duration(record.seconds), "ran"),
            StageStatus::Failed => (duration(record.seconds), "failed"),
            StageStatus::Skipped => (String::new(), "not started"),
            StageStatus::Interrupted => (String::new(), "interrupted"),
        };
        table.add_row([record.stage.as_str(), &record.kind, &rows, &time, state]);
    }
    lines(&table)
}

fn closing_line(plan: &Plan, outcome: &RunOutcome) -> String {
    let with = |status: StageStatus| {
        outcome
            .stages
            .iter()
            .filter(|stage| stage.record.status == status)
            .count()
    };
    format!(
        "{}: {} in {} ({} cached, {} ran); run {}",
        plan.name,
        outcome.status.as_str(),
        duration(outcome.seconds),
        with(StageStatus::Cached),
        with(StageStatus::Done),
        outcome.run,
    )
}

fn report_failure(stage: &StageOutcome) {
    let Some(failure) = &stage.failure else {
        return;
    };
    eprintln!(
        "\nerror: stage `{}` ({}) failed",
        stage.record.stage, stage.record.kind
    );
    for (depth, message) in failure.chain.iter().enumerate() {
        eprintln!("  {}{message}", if depth == 0 { "" } else { "caused by: " });
    }
    if !failure.log.is_empty() {
        eprintln!("  last lines of the worker:");
        for line in &failure.log {
            eprintln!("    {line}");
        }
    }
    eprintln!("help: the stages that finished are kept; the same command goes on from there\n");
}

fn resume_command(arguments: &RunArgs) -> String {
    let store = arguments
        .store
        .store
        .as_ref()
        .map(|store| format!(" --store {store}"))
        .unwrap_or_default();
    format!("metis-flow run {}{store}", shown(&arguments.file))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn outcome_json(plan: &Plan, store: &Store, outcome: &RunOutcome) -> serde_json::Value {
    let stages: Vec<_> = outcome
        .stages
        .iter()
        .map(|stage| {
            let outputs: serde_json::Map<_, _> = stage
                .outputs
                .iter()
                .map(|(port, artifact)| (port.clone(), artifact_json(artifact)))
                .collect();
            json!({
                "stage": stage.record.stage,
                "operator": stage.record.kind,
                "status": stage.record.status.as_str(),
                "key": stage.record.key,
                "seconds": stage.record.seconds,
                "work_seconds": stage.work_seconds,
                "rows": stage.record.rows,
                "outputs": outputs,
                "warnings": stage.record.warnings,
                "error": stage.record.error,
            })
        })
        .collect();
    json!({
        "run": outcome.run,
        "pipeline": plan.name,
        "store": store.url(),
        "status": outcome.status.as_str(),
        "seconds": outcome.seconds,
        "stages": stages,
    })
}

/// What people and scripts want to know of an artifact.
pub(super) fn artifact_json(artifact: &Artifact) -> serde_json::Value {
    match artifact {
        Artifact::Dataset(dataset) => json!({
            "digest": dataset.digest,
            "table": dataset.table,
            "rows": dataset.rows,
            "parts": dataset.parts.len(),
        }),
        Artifact::Model(model) => json!({
            "digest": model.digest,
            "files": model.files.iter().map(|file| &file.name).collect::<Vec<_>>(),
            "bytes": model.files.iter().map(|file| file.bytes).sum::<u64>(),
        }),
    }
}
