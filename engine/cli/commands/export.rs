//! `export`: a dataset as one file, a model as a folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use engine_core::{Artifact, Dataset, ModelFolder};
use engine_store::Store;
use serde_json::Value;

use super::show::latest_stage;
use crate::args::ExportArgs;
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::text::count;

pub(crate) fn export(arguments: &ExportArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    match find(&store, &arguments.what)? {
        Artifact::Dataset(dataset) => export_dataset(&store, &dataset, &arguments.to)?,
        Artifact::Model(model) => export_model(&store, &model, &arguments.to)?,
    }
    Ok(Exit::Done)
}

fn find(store: &Store, what: &str) -> anyhow::Result<Artifact> {
    let (stage, port) = what
        .split_once('.')
        .map_or((what, None), |(stage, port)| (stage, Some(port)));
    let runs = store.runs()?;
    let (_, record) = latest_stage(&runs, stage).ok_or_else(|| {
        let stages = runs
            .last()
            .map(|run| run.started.stages.join(", "))
            .unwrap_or_default();
        wrong(format!(
            "no run of this store has a stage `{stage}`; stages of the latest run are {stages}"
        ))
    })?;
    let manifest = match &record.key {
        Some(key) => store.find_manifest(key)?,
        None => None,
    };
    let manifest = manifest.ok_or_else(|| {
        wrong(format!(
            "stage `{stage}` has no result yet; run the pipeline first"
        ))
    })?;
    let ports: Vec<&str> = manifest.outputs.keys().map(String::as_str).collect();
    let artifact = match (port, ports.as_slice()) {
        (Some(port), _) => manifest.outputs.get(port),
        (None, [only]) => manifest.outputs.get(*only),
        (None, _) => None,
    };
    artifact.cloned().ok_or_else(|| {
        let ports = ports
            .iter()
            .map(|port| format!("`{stage}.{port}`"))
            .collect::<Vec<_>>()
            .join(", ");
        wrong(format!("say which output of stage `{stage}`: {ports}"))
    })
}

fn export_dataset(store: &Store, dataset: &Dataset, to: &Path) -> anyhow::Result<()> {
    match to.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => store.export_parquet(dataset, to)?,
        Some("jsonl") => write_rows(store, dataset, to, &mut |out, _, row| {
            serde_json::to_writer(&mut *out, &Value::Object(row))?;
            Ok(out.write_all(b"\n")?)
        })?,
        Some("csv") => write_rows(store, dataset, to, &mut |out, is_first, row| {
            if is_first {
                write_csv(out, row.keys().map(|name| Value::String(name.clone())))?;
            }
            write_csv(out, row.into_iter().map(|(_, value)| value))
        })?,
        _ => {
            return Err(wrong(format!(
                "`{}` does not end in .parquet, .jsonl or .csv, which a table needs",
                to.display()
            )));
        }
    }
    eprintln!(
        "{} rows of `{}` are in {}",
        count(dataset.rows),
        dataset.table,
        to.display()
    );
    Ok(())
}

type RowWriter<'a> = dyn FnMut(&mut BufWriter<File>, bool, serde_json::Map<String, Value>) -> anyhow::Result<()>
    + 'a;

fn write_rows(
    store: &Store,
    dataset: &Dataset,
    to: &Path,
    write: &mut RowWriter<'_>,
) -> anyhow::Result<()> {
    let failed = || format!("could not write {}", to.display());
    let mut out = BufWriter::new(File::create(to).with_context(failed)?);
    let mut is_first = true;
    for batch in store.read(dataset) {
        for row in engine_query::rows_to_json(&[batch?])? {
            write(&mut out, is_first, row).with_context(failed)?;
            is_first = false;
        }
    }
    out.flush().with_context(failed)
}

/// One line; nested values are JSON text, nulls are empty.
fn write_csv(out: &mut impl Write, values: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let cells: Vec<String> = values
        .map(|value| match value {
            Value::Null => String::new(),
            Value::String(text) => quoted(&text),
            other => quoted(&other.to_string()),
        })
        .collect();
    Ok(writeln!(out, "{}", cells.join(","))?)
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn export_model(store: &Store, model: &ModelFolder, to: &Path) -> anyhow::Result<()> {
    let is_taken = match std::fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => to.exists(),
    };
    if is_taken {
        return Err(wrong(format!(
            "`{}` exists and is no empty folder; a model goes to a folder of its own",
            to.display()
        )));
    }
    store.copy_model(model, to)?;
    eprintln!(
        "the model's {} files are in {}",
        model.files.len(),
        to.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_survive_commas_quotes_and_nested_values() {
        let mut out = Vec::new();
        let values = [
            Value::Null,
            "a,b".into(),
            "say \"x\"".into(),
            1.5.into(),
            serde_json::json!([1, 2]),
            "".into(),
        ];
        write_csv(&mut out, values.into_iter()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            ",\"a,b\",\"say \"\"x\"\"\",1.5,\"[1,2]\",\"\"\n"
        );
    }
}
