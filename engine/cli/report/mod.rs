//! The closing report: what a run showed, made from its tables alone, whatever the operators that wrote them.
//!
//! It is written once for equal tables: a run in which everything was cached prints the report that is there.

mod findings;
mod markdown;
mod plot;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine_core::{Artifact, Dataset, Digest};
use engine_plan::Plan;
use engine_runtime::RunOutcome;
use engine_store::Store;
use schemas::TableName;

use crate::project::local_folder;
use findings::Findings;

/// Raised whenever equal tables would give another report.
const VERSION: u32 = 1;
/// The tables that are reported.
const REPORTED: [TableName; 4] = [
    TableName::Evaluations,
    TableName::PassRates,
    TableName::Examples,
    TableName::Metrics,
];
/// The tables as printed in the terminal.
const SUMMARY: &str = "summary.txt";
/// The report for people.
const REPORT: &str = "report.md";

/// A table of the run and where it came from.
struct Reported<'a> {
    stage: &'a str,
    port: &'a str,
    dataset: &'a Dataset,
}

/// Prints what the run showed and writes it, with plots, beside the store's data, or into the project's folder when the
/// store is a network away.
pub(crate) fn closing(
    plan: &Plan,
    store: &Store,
    project: &Path,
    outcome: &RunOutcome,
) -> anyhow::Result<()> {
    let tables = reported(outcome);
    if tables.is_empty() {
        return Ok(());
    }
    let folder = local_folder(store, project).join("reports").join(format!(
        "{}-{}",
        plan.name,
        digest(plan, &tables)
    ));
    if !folder.join(REPORT).exists() {
        let findings = Findings::read(plan, store, &tables)?;
        write(&folder, &findings)
            .with_context(|| format!("could not write the report to {}", folder.display()))?;
    }
    let summary = fs::read_to_string(folder.join(SUMMARY))
        .with_context(|| format!("could not read {}", folder.join(SUMMARY).display()))?;
    eprintln!("\n{}", summary.trim_end());
    eprintln!("\nreport: {}", folder.join(REPORT).display());
    Ok(())
}

fn reported(outcome: &RunOutcome) -> Vec<Reported<'_>> {
    let mut tables = Vec::new();
    for stage in &outcome.stages {
        for (port, artifact) in &stage.outputs {
            if let Artifact::Dataset(dataset) = artifact
                && REPORTED.contains(&dataset.table)
            {
                tables.push(Reported {
                    stage: &stage.record.stage,
                    port,
                    dataset,
                });
            }
        }
    }
    tables
}

/// The first digits of a digest over all that the report shows.
fn digest(plan: &Plan, tables: &[Reported<'_>]) -> String {
    let mut text = format!("report {VERSION}\n{}\n", plan.name);
    for table in tables {
        text.push_str(&format!(
            "{} {} {} {}\n",
            table.stage, table.port, table.dataset.table, table.dataset.digest
        ));
    }
    Digest::of(text.as_bytes()).short().to_owned()
}

/// Writes the report to a folder of its own first, so that a broken-off one is never taken for whole.
fn write(folder: &Path, findings: &Findings) -> anyhow::Result<()> {
    let parent = folder
        .parent()
        .context("the folder of a report has a parent")?;
    let draft: PathBuf = parent.join(format!("draft-{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    let plots = plot::write_all(&draft, findings)?;
    fs::write(draft.join(SUMMARY), terminal::summary(findings))?;
    fs::write(draft.join(REPORT), markdown::report(findings, &plots))?;
    if let Err(error) = fs::rename(&draft, folder) {
        // Another run of the same pipeline may have been faster with the same report.
        let _ = fs::remove_dir_all(&draft);
        if !folder.join(REPORT).exists() {
            return Err(error.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
