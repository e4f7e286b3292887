//! From the command line to the options of a run.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use engine_plan::Plan;
use engine_runtime::{MEMORY_BUDGET, Pin, RunOptions, Selection, WorkerOptions};
use engine_store::Store;
use schemas::problem::hint;

use crate::VERSION;
use crate::args::{ChoiceArgs, ExecutionArgs};
use crate::exit::wrong;
use crate::select::{Runs, record_of};

/// A limit that is never reached.
const NEVER: Duration = Duration::from_hours(24 * 365 * 10);

/// How to run, as the command line says.
pub(crate) fn options(
    arguments: &ExecutionArgs,
    root: PathBuf,
    selection: Selection,
) -> anyhow::Result<RunOptions> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = arguments
        .threads
        .and_then(|threads| usize::try_from(threads).ok())
        .unwrap_or(cores);
    engine_runtime::limit_threads(threads);
    let program = std::env::current_exe().context("could not find the folder of this program")?;
    let mut worker = WorkerOptions::new(program.with_file_name("metis-flow-worker"));
    worker.environment = worker_environment();
    worker.silence = Duration::from_secs(u64::from(arguments.worker_silence));
    worker.retries = arguments.worker_retries;
    worker.stall = match arguments.stall_minutes {
        0 => NEVER,
        minutes => Duration::from_secs(60 * u64::from(minutes)),
    };
    Ok(RunOptions {
        root,
        version: VERSION.to_owned(),
        engine_slots: threads.max(2),
        worker_slots: 1,
        threads,
        device: arguments.device.clone(),
        worker,
        memory_budget: arguments.memory.unwrap_or(MEMORY_BUDGET),
        checkpoint_every: Duration::from_secs(u64::from(arguments.checkpoint_seconds)),
        selection,
    })
}

/// Which stages run, as the command line says.
pub(crate) fn selection(
    plan: &Plan,
    store: &Store,
    choice: &ChoiceArgs,
) -> anyhow::Result<Selection> {
    let index = |name: &String| index_of(plan, name);
    let mut only: Option<BTreeSet<usize>> = None;
    if !choice.only.is_empty() {
        only = Some(choice.only.iter().map(index).collect::<Result<_, _>>()?);
    }
    if let Some(name) = &choice.to {
        only = Some(needed_by(plan, index(name)?));
    }
    if let Some(name) = &choice.from {
        let after = readers_of(plan, index(name)?);
        only = Some(match only {
            Some(before) => before.intersection(&after).copied().collect(),
            None => after,
        });
        if only.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(wrong(format!(
                "nothing would run: no stage lies between `{name}` (--from) and `{}` (--to)",
                choice.to.as_deref().unwrap_or_default()
            )));
        }
    }
    let force = choice.force.iter().map(index).collect::<Result<_, _>>()?;
    let mut selection = Selection {
        force,
        only,
        ..Selection::default()
    };
    if !choice.pin.is_empty() {
        let runs = Runs::open(store)?;
        for (name, word) in &choice.pin {
            selection.pins.insert(index(name)?, pin(&runs, name, word)?);
        }
    }
    Ok(selection)
}

fn pin(runs: &Runs<'_>, name: &str, word: &str) -> anyhow::Result<Pin> {
    let run = runs.run(word)?;
    let id = run.started.run.clone();
    let record = record_of(run, name)
        .ok_or_else(|| wrong(format!("run {id} has no record of a stage `{name}`")))?;
    let manifest = runs.result_of(record)?.ok_or_else(|| {
        wrong(format!(
            "stage `{name}` has no result in run {id}: it is {}",
            record.status.as_str()
        ))
    })?;
    Ok(Pin { run: id, manifest })
}

/// Place of a stage in the plan.
pub(crate) fn index_of(plan: &Plan, name: &str) -> anyhow::Result<usize> {
    plan.index_of(name).ok_or_else(|| {
        let names: Vec<&str> = plan
            .stages
            .iter()
            .map(|stage| stage.name.as_str())
            .collect();
        wrong(format!(
            "pipeline `{}` has no stage `{name}`: {}",
            plan.name,
            hint(name, &names, "stages")
        ))
    })
}

/// A stage and all that it reads from, directly or not.
fn needed_by(plan: &Plan, stage: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::from([stage]);
    // Every stage stands after those that it reads.
    for index in (0..=stage).rev() {
        if found.contains(&index) {
            let sources = plan.stages[index].inputs.values().flatten();
            found.extend(sources.map(|source| source.stage));
        }
    }
    found
}

/// A stage and all that read from it, directly or not.
fn readers_of(plan: &Plan, stage: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::from([stage]);
    for index in stage + 1..plan.stages.len() {
        let mut sources = plan.stages[index].inputs.values().flatten();
        if sources.any(|source| found.contains(&source.stage)) {
            found.insert(index);
        }
    }
    found
}

/// Variables that libtorch reads before a worker's first line, unless the user has set them. By default its allocator takes memory of a GPU
/// in blocks that never join; training then loses a seventh of it between them.
#[expect(
    clippy::disallowed_methods,
    reason = "the user's own settings of libtorch win; no result depends on them"
)]
fn worker_environment() -> Vec<(&'static str, &'static str)> {
    let settings = [("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")];
    let is_unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    settings.into_iter().filter(is_unset).collect()
}
