//! A result: what it was made from, what it holds, and the rows that could not be computed.

use arrow::record_batch::RecordBatch;
use engine_core::{Artifact, Dataset};
use engine_store::{Manifest, Store};
use schemas::TableName;
use serde_json::{Value, json};

use super::super::print_json;
use super::super::run::artifact_json;
use crate::args::ShowArgs;
use crate::select::StageOf;
use crate::text::{brief, count, duration, lines, table};

/// Characters of a value in a table of rows.
const VALUE_WIDTH: usize = 60;
/// Characters of an error of a row.
const ERROR_WIDTH: usize = 160;
/// Rows of a quarantine that are shown without being asked for.
const QUARANTINED: usize = 10;

pub(super) fn show(
    store: &Store,
    found: Option<StageOf<'_>>,
    manifest: Option<&Manifest>,
    arguments: &ShowArgs,
) -> anyhow::Result<()> {
    if arguments.json {
        return print_json(&stage_json(store, found, manifest, arguments.rows)?);
    }
    if let Some(StageOf { run, record, .. }) = found {
        println!(
            "stage {} ({}): {} in run {}",
            record.stage,
            record.kind,
            record.status.as_str(),
            run.started.run
        );
        if let Some(parts) = &record.parts {
            println!(
                "parts:    {} ({} reused, {} computed)",
                count(parts.total),
                count(parts.reused),
                count(parts.computed)
            );
        }
        if let Some(pinned) = &record.pinned {
            println!("pinned:   the result of run {pinned} was taken without a look at the key");
        }
        if let Some(error) = &record.error {
            println!("error:    {error}");
        }
    }
    let Some(manifest) = manifest else {
        println!("nothing is committed");
        return Ok(());
    };
    print_manifest(manifest);
    let port = found.and_then(|found| found.port);
    for (name, artifact) in &manifest.outputs {
        if port.is_none_or(|port| port == name) {
            print_output(store, name, artifact, arguments.rows)?;
        }
    }
    Ok(())
}

fn print_manifest(manifest: &Manifest) {
    println!("operator: {} (version {})", manifest.kind, manifest.version);
    println!("key:      {}", manifest.key);
    if manifest.generation > 0 {
        println!("result:   generation {} of this key", manifest.generation);
    }
    if let Some(key) = &manifest.replayed_from {
        println!(
            "replay:   rows that had not failed are those of {}",
            key.short()
        );
    }
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
}

fn print_output(store: &Store, port: &str, artifact: &Artifact, rows: usize) -> anyhow::Result<()> {
    let dataset = match artifact {
        Artifact::Model(model) => {
            println!("output    {port}: model {}", model.digest);
            for file in &model.files {
                println!("            {} ({} bytes)", file.name, count(file.bytes));
            }
            return Ok(());
        }
        Artifact::Dataset(dataset) => dataset,
    };
    println!(
        "output    {port}: {} {}, {} rows in {} parts",
        dataset.table,
        dataset.digest,
        count(dataset.rows),
        dataset.parts.len()
    );
    if dataset.table == TableName::Quarantine {
        return print_quarantine(store, dataset, rows.max(QUARANTINED));
    }
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
    Ok(())
}

/// Rows that could not be computed, with their errors.
fn print_quarantine(store: &Store, dataset: &Dataset, rows: usize) -> anyhow::Result<()> {
    for row in engine_query::rows_to_json(&first_rows(store, dataset, rows)?)? {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = row.get("row").and_then(Value::as_i64).unwrap_or_default();
        println!(
            "            row {number} ({}): {}",
            brief(text("row_key"), VALUE_WIDTH),
            brief(text("error"), ERROR_WIDTH)
        );
    }
    let left = dataset.rows.saturating_sub(rows as u64);
    if left > 0 {
        println!("            and {} more", count(left));
    }
    Ok(())
}

fn stage_json(
    store: &Store,
    found: Option<StageOf<'_>>,
    manifest: Option<&Manifest>,
    rows: usize,
) -> anyhow::Result<Value> {
    let mut shown = json!({
        "run": found.map(|found| &found.run.started.run),
        "record": found.map(|found| found.record),
        "manifest": manifest,
    });
    let port = found.and_then(|found| found.port);
    let mut outputs = serde_json::Map::new();
    for (name, artifact) in manifest.into_iter().flat_map(|manifest| &manifest.outputs) {
        if port.is_some_and(|port| port != name) {
            continue;
        }
        let mut output = artifact_json(artifact);
        if let Artifact::Dataset(dataset) = artifact {
            let schema = store.schema(dataset)?;
            output["columns"] = schema
                .fields()
                .iter()
                .map(|field| json!({"name": field.name(), "type": field.data_type().to_string(), "nullable": field.is_nullable()}))
                .collect();
            let rows = match dataset.table {
                TableName::Quarantine => rows.max(QUARANTINED),
                _ => rows,
            };
            if rows > 0 {
                output["first_rows"] = json!(engine_query::rows_to_json(&first_rows(
                    store, dataset, rows
                )?)?);
            }
        }
        outputs.insert(name.clone(), output);
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
