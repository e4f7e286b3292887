//! `sql`: one query over what stages produced and over the records of runs.

use std::collections::HashMap;

use engine_core::Artifact;
use engine_query::{Catalog, QueryError, StoredDataset, StoredRun, rows_to_json};
use engine_store::{Manifest, Run, Store};
use serde_json::{Map, Value};

use super::print_json;
use crate::args::SqlArgs;
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::select::Runs;
use crate::text::{brief, lines, table};

/// Characters of a value in a printed table; `--json` has all of them.
const VALUE_WIDTH: usize = 80;
/// The word for all runs.
const ALL: &str = "all";

pub(crate) fn sql(arguments: &SqlArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let runs = store.runs()?;
    let chosen = choose(&store, &runs, arguments.run.as_deref())?;
    let catalog = Catalog {
        datasets: datasets(&store, chosen)?,
        runs: runs.iter().map(stored).collect(),
    };
    let (schema, batches) = catalog
        .query(&arguments.query)
        .map_err(|error| match error {
            QueryError::Query(message) => wrong(message),
            run @ QueryError::Run(_) => run.into(),
        })?;
    let rows = rows_to_json(&batches)?;
    if arguments.json {
        print_json(&rows)?;
        return Ok(Exit::Done);
    }
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let right: Vec<usize> = schema
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| field.data_type().is_numeric())
        .map(|(index, _)| index)
        .collect();
    let mut printed = table(&names, &right);
    for row in &rows {
        printed.add_row(cells(row));
    }
    println!("{}", lines(&printed));
    Ok(Exit::Done)
}

fn cells(row: &Map<String, Value>) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => brief(text, VALUE_WIDTH),
        Value::Number(number) => number
            .as_f64()
            .filter(|_| number.is_f64())
            .map_or_else(|| number.to_string(), readable),
        other => brief(&other.to_string(), VALUE_WIDTH),
    };
    row.values().map(text).collect()
}

/// A float with as many digits as help.
fn readable(number: f64) -> String {
    if number != 0.0 && (number.abs() < 1e-4 || number.abs() >= 1e15) {
        return format!("{number:.4e}");
    }
    let digits = format!("{number:.5}");
    digits
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

/// The runs whose datasets are queried. The records of all runs always are.
fn choose<'a>(store: &Store, runs: &'a [Run], run: Option<&str>) -> anyhow::Result<&'a [Run]> {
    let latest = runs
        .len()
        .checked_sub(1)
        .ok_or_else(|| wrong("this store has no runs yet"))?;
    match run {
        None => Ok(&runs[latest..]),
        Some(ALL) => Ok(runs),
        Some(word) => {
            let read = Runs::open(store)?;
            let name = &read.run(word)?.started.run;
            let index = runs.iter().position(|run| run.started.run == *name);
            let index =
                index.ok_or_else(|| wrong(format!("the records of run {name} are gone")))?;
            Ok(&runs[index..=index])
        }
    }
}

fn datasets(store: &Store, runs: &[Run]) -> anyhow::Result<Vec<StoredDataset>> {
    // Runs share cached stages, so each manifest is read once: that of the generation which counted for the run.
    let mut manifests: HashMap<(String, u32), Option<Manifest>> = HashMap::new();
    let mut datasets = Vec::new();
    for run in runs {
        for stage in &run.stages {
            let Some(key) = stage.key.as_ref().filter(|_| !stage.outputs.is_empty()) else {
                continue;
            };
            let result = (key.clone(), stage.generation);
            if !manifests.contains_key(&result) {
                let manifest = store.find_generation(key, stage.generation)?;
                manifests.insert(result.clone(), manifest);
            }
            let Some(Some(manifest)) = manifests.get(&result) else {
                continue;
            };
            for (port, artifact) in &manifest.outputs {
                let Artifact::Dataset(dataset) = artifact else {
                    continue;
                };
                datasets.push(StoredDataset {
                    pipeline: run.started.pipeline.clone(),
                    run: run.started.run.clone(),
                    stage: stage.stage.clone(),
                    port: port.clone(),
                    table: dataset.table,
                    urls: dataset
                        .parts
                        .iter()
                        .map(|part| store.object_url(&part.path))
                        .collect(),
                });
            }
        }
    }
    Ok(datasets)
}

fn stored(run: &Run) -> StoredRun {
    StoredRun {
        started: run.started.clone(),
        ended: run.ended.clone(),
        stages: run.stages.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_short() {
        let shown = [0.5, 1.0, -0.25, 1.0 / 3.0, 0.0, 1.234e-7, 1234.5].map(readable);
        assert_eq!(
            shown,
            ["0.5", "1", "-0.25", "0.33333", "0", "1.2340e-7", "1234.5"]
        );
    }
}
