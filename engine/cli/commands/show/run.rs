//! A run: its stages, how they ended, and the pipeline that it kept.

use engine_store::Run;
use schemas::record::{StageRecord, StageStatus};
use serde_json::json;

use super::super::print_json;
use super::super::run::remarks;
use super::super::runs::run_json;
use crate::select::kept_document;
use crate::text::{count, duration, lines, table};

pub(super) fn show(run: &Run, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let mut shown = run_json(run);
        shown["stages"] = json!(run.stages);
        shown["text"] = json!(run.started.text);
        shown["resolved"] = json!(kept_document(&run.started).text);
        return print_json(&shown);
    }
    let time = run
        .ended
        .as_ref()
        .map(|ended| format!(" in {}", duration(ended.seconds)))
        .unwrap_or_default();
    println!(
        "run {} of `{}`: {}{time}, started {}",
        run.started.run,
        run.started.pipeline,
        run.status(),
        run.started.started
    );
    let mut table = table(
        &[
            "stage", "operator", "status", "rows", "parts", "time", "key",
        ],
        &[3, 4, 5],
    );
    for record in &run.stages {
        table.add_row(cells(record));
    }
    println!("{}", lines(&table));
    let missing = run.started.stages.len().saturating_sub(run.stages.len());
    if missing > 0 {
        println!("{missing} stages left no record");
    }
    for record in &run.stages {
        for warning in &record.warnings {
            println!("{}: warning: {warning}", record.stage);
        }
        for note in &record.notes {
            println!("{}: {note}", record.stage);
        }
        if let Some(error) = &record.error {
            println!("{}: error: {error}", record.stage);
        }
        let quarantined = record.parts.as_ref().map_or(0, |parts| parts.quarantined);
        if quarantined > 0 {
            println!(
                "{}: {} rows are in quarantine; `metis-flow show {}@{}` names them",
                record.stage,
                count(quarantined),
                record.stage,
                run.started.run
            );
        }
    }
    Ok(())
}

fn cells(record: &StageRecord) -> [String; 7] {
    let parts = record.parts.as_ref().map(|parts| {
        if parts.reused == 0 || record.status == StageStatus::Cached {
            count(parts.total)
        } else {
            format!("{} ({} reused)", count(parts.total), count(parts.reused))
        }
    });
    let key = record.key.as_deref().unwrap_or_default();
    let remark = match record.generation {
        0 => String::new(),
        generation => format!(", generation {generation}"),
    };
    let pinned = record.pinned.is_some() || record.retries > 0;
    [
        record.stage.clone(),
        record.kind.clone(),
        format!(
            "{}{remark}{}",
            record.status.as_str(),
            if pinned {
                remarks(record)
            } else {
                String::new()
            }
        ),
        record.rows.map(count).unwrap_or_default(),
        parts.unwrap_or_default(),
        duration(record.seconds),
        key[..12.min(key.len())].to_owned(),
    ]
}

/// The plain pipeline of a run, which can be run itself.
pub(super) fn pipeline(run: &Run) {
    print!("{}", kept_document(&run.started).text);
}
