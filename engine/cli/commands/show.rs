//! `show`: a run, a stage of the latest run that has it, or an artifact by the first digits of its digest.

use arrow::record_batch::RecordBatch;
use engine_core::{Artifact, Dataset};
use engine_store::{Manifest, Run, Store};
use schemas::record::StageRecord;
use serde_json::{Value, json};

use super::print_json;
use super::run::artifact_json;
use super::runs::run_json;
use crate::args::ShowArgs;
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::text::{brief, count, duration, lines, table};

/// Digits that name an artifact without doubt.
const MIN_DIGITS: usize = 6;
/// Manifests that are searched for a digest.
const MANIFESTS: usize = 10_000;
/// Characters of a value in a table of rows.
const VALUE_WIDTH: usize = 60;

pub(crate) fn show(arguments: &ShowArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let runs = store.runs()?;
    let Some(what) = &arguments.what else {
        let latest = runs
            .last()
            .ok_or_else(|| wrong("this store has no runs yet"))?;
        return show_run(latest, arguments);
    };
    if let Some(run) = runs.iter().find(|run| run.started.run == *what) {
        return show_run(run, arguments);
    }
    if let Some((run, record)) = latest_stage(&runs, what) {
        return show_stage(&store, Some((run, record)), None, arguments);
    }
    if what.len() >= MIN_DIGITS && what.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        for manifest in store.recent_manifests(MANIFESTS)? {
            let is_output =
                |artifact: &Artifact| artifact.digest().as_str().starts_with(what.as_str());
            if manifest.key.as_str().starts_with(what.as_str())
                || manifest.outputs.values().any(is_output)
            {
                return show_stage(&store, None, Some(manifest), arguments);
            }
        }
    }
    let stages: Vec<&str> = runs
        .last()
        .map(|run| run.started.stages.iter().map(String::as_str).collect())
        .unwrap_or_default();
    Err(wrong(format!(
        "nothing is called `{what}`: no run, no stage and no digest; stages of the latest run are {}",
        stages.join(", ")
    )))
}

/// The record of a stage in the latest run that finished it, else in the latest run that has it.
pub(super) fn latest_stage<'a>(runs: &'a [Run], stage: &str) -> Option<(&'a Run, &'a StageRecord)> {
    let records = || {
        let runs = runs.iter().rev();
        runs.flat_map(|run| run.stages.iter().map(move |record| (run, record)))
            .filter(|(_, record)| record.stage == stage)
    };
    records()
        .find(|(_, record)| !record.outputs.is_empty())
        .or_else(|| records().next())
}

fn show_run(run: &Run, arguments: &ShowArgs) -> anyhow::Result<Exit> {
    if arguments.json {
        let mut shown = run_json(run);
        shown["stages"] = json!(run.stages);
        shown["text"] = json!(run.started.text);
        print_json(&shown)?;
        return Ok(Exit::Done);
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
        &["stage", "operator", "status", "rows", "time", "key"],
        &[3, 4],
    );
    for record in &run.stages {
        let key = record
            .key
            .as_deref()
            .map(|key| &key[..12.min(key.len())])
            .unwrap_or_default();
        let rows = record.rows.map(count).unwrap_or_default();
        let cells = [
            record.stage.as_str(),
            &record.kind,
            record.status.as_str(),
            &rows,
            &duration(record.seconds),
            key,
        ];
        table.add_row(cells);
    }
    println!("{}", lines(&table));
    for record in &run.stages {
        for warning in &record.warnings {
            println!("{}: warning: {warning}", record.stage);
        }
        if let Some(error) = &record.error {
            println!("{}: error: {error}", record.stage);
        }
    }
    Ok(Exit::Done)
}

fn show_stage(
    store: &Store,
    record: Option<(&Run, &StageRecord)>,
    manifest: Option<Manifest>,
    arguments: &ShowArgs,
) -> anyhow::Result<Exit> {
    let key = record.and_then(|(_, record)| record.key.as_deref());
    let manifest = match (manifest, key) {
        (Some(manifest), _) => Some(manifest),
        (None, Some(key)) => store.find_manifest(key)?,
        (None, None) => None,
    };
    if arguments.json {
        print_json(&stage_json(
            store,
            record,
            manifest.as_ref(),
            arguments.rows,
        )?)?;
        return Ok(Exit::Done);
    }
    if let Some((run, record)) = record {
        println!(
            "stage {} ({}): {} in run {}",
            record.stage,
            record.kind,
            record.status.as_str(),
            run.started.run
        );
        if let Some(error) = &record.error {
            println!("error:    {error}");
        }
    }
    let Some(manifest) = manifest else {
        println!("nothing is committed");
        return Ok(Exit::Done);
    };
    print_manifest(store, &manifest, arguments.rows)?;
    Ok(Exit::Done)
}

fn print_manifest(store: &Store, manifest: &Manifest, rows: usize) -> anyhow::Result<()> {
    println!("operator: {} (version {})", manifest.kind, manifest.version);
    println!("key:      {}", manifest.key);
    println!(
        "made:     {} in {}",
        manifest.created,
        duration(manifest.seconds)
    );
    let backend = manifest
        .made_by
        .backend
        .as_deref()
        .map(|backend| format!(", {backend}"))
        .unwrap_or_default();
    println!("made by:  metis-flow {}{backend}", manifest.made_by.version);
    for warning in &manifest.warnings {
        println!("warning:  {warning}");
    }
    println!("config:   {}", manifest.material["config"]);
    if let Some(inputs) = manifest.material["inputs"].as_object() {
        for (port, digests) in inputs {
            let digests: Vec<&str> = digests
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            println!("input     {port}: {}", digests.join(", "));
        }
    }
    for (port, artifact) in &manifest.outputs {
        match artifact {
            Artifact::Model(model) => {
                println!("output    {port}: model {}", model.digest);
                for file in &model.files {
                    println!("            {} ({} bytes)", file.name, count(file.bytes));
                }
            }
            Artifact::Dataset(dataset) => {
                let parts = dataset.parts.len();
                println!(
                    "output    {port}: {} {}, {} rows in {parts} parts",
                    dataset.table,
                    dataset.digest,
                    count(dataset.rows)
                );
                for field in store.schema(dataset)?.fields() {
                    let null = if field.is_nullable() {
                        ", may be null"
                    } else {
                        ""
                    };
                    println!("            {}: {}{null}", field.name(), field.data_type());
                }
                if rows > 0 {
                    println!("{}", rows_table(store, dataset, rows)?);
                }
            }
        }
    }
    Ok(())
}

fn stage_json(
    store: &Store,
    record: Option<(&Run, &StageRecord)>,
    manifest: Option<&Manifest>,
    rows: usize,
) -> anyhow::Result<Value> {
    let mut shown = json!({
        "run": record.map(|(run, _)| &run.started.run),
        "record": record.map(|(_, record)| record),
        "manifest": manifest,
    });
    let mut outputs = serde_json::Map::new();
    for (port, artifact) in manifest.into_iter().flat_map(|manifest| &manifest.outputs) {
        let mut output = artifact_json(artifact);
        if let Artifact::Dataset(dataset) = artifact {
            let schema = store.schema(dataset)?;
            output["columns"] = schema
                .fields()
                .iter()
                .map(|field| json!({"name": field.name(), "type": field.data_type().to_string(), "nullable": field.is_nullable()}))
                .collect();
            if rows > 0 {
                output["first_rows"] = json!(engine_query::rows_to_json(&first_rows(
                    store, dataset, rows
                )?)?);
            }
        }
        outputs.insert(port.clone(), output);
    }
    shown["outputs"] = Value::Object(outputs);
    Ok(shown)
}

fn first_rows(store: &Store, dataset: &Dataset, rows: usize) -> anyhow::Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    let mut left = rows;
    for batch in store.read(dataset) {
        let batch = batch?;
        let take = left.min(batch.num_rows());
        batches.push(batch.slice(0, take));
        left -= take;
        if left == 0 {
            break;
        }
    }
    Ok(batches)
}

fn rows_table(store: &Store, dataset: &Dataset, rows: usize) -> anyhow::Result<String> {
    let schema = store.schema(dataset)?;
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let mut table = table(&names, &[]);
    for row in engine_query::rows_to_json(&first_rows(store, dataset, rows)?)? {
        let cells: Vec<String> = row
            .values()
            .map(|value| match value {
                Value::String(text) => brief(text, VALUE_WIDTH),
                other => brief(&other.to_string(), VALUE_WIDTH),
            })
            .collect();
        table.add_row(cells);
    }
    Ok(lines(&table))
}
