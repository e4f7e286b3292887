//! `diff`: compares two runs, or two results of stages, from the first stage that differs down to rows.

mod answers;
mod models;
mod print;
mod rows;
mod sides;
mod stages;
mod statistics;

use engine_core::Artifact;
use engine_store::Store;
use serde::Serialize;

use super::print_json;
use crate::args::DiffArgs;
use crate::exit::Exit;
use crate::project::find_store;
use crate::select::Runs;
use answers::AnswersDiff;
use models::ModelDiff;
use rows::TableDiff;
use sides::{Pair, Side, Sides};
use stages::StagesDiff;

/// All that differs.
#[derive(Debug, Serialize)]
struct Diff {
    a: String,
    b: String,
    /// Stage by stage, for two runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<StagesDiff>,
    /// The results that were compared row by row.
    results: Vec<ResultDiff>,
}

/// What differs between two results.
#[derive(Debug, Serialize)]
struct ResultDiff {
    a: String,
    b: String,
    answers: Option<AnswersDiff>,
    tables: Vec<TableDiff>,
    models: Vec<ModelDiff>,
}

pub(crate) fn diff(arguments: &DiffArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let runs = Runs::open(&store)?;
    let limit = arguments.rows;
    let diff = match sides::read(&runs, &arguments.a, &arguments.b)? {
        Sides::Runs(a, b) => {
            let stages = stages::compare(&store, a, b)?;
            let mut results = Vec::new();
            for name in stages.detailed() {
                if let Some(pair) = Pair::of_runs(&store, a, b, name)? {
                    // Every stage after the first is there for its verdicts.
                    let is_first = results.is_empty();
                    let found = result(&store, &pair, limit, is_first)?;
                    if is_first || found.answers.is_some() {
                        results.push(found);
                    }
                }
            }
            Diff {
                a: a.started.run.clone(),
                b: b.started.run.clone(),
                runs: Some(stages),
                results,
            }
        }
        Sides::Results(pair) => Diff {
            a: pair.a.title(),
            b: pair.b.title(),
            runs: None,
            results: vec![result(&store, &pair, limit, true)?],
        },
    };
    if arguments.json {
        print_json(&diff)?;
    } else {
        print::diff(&diff);
    }
    Ok(Exit::Done)
}

/// Compares two results: answers to the same prompts where there are any, other tables row by row, models tensor by tensor.
fn result(
    store: &Store,
    pair: &Pair<'_>,
    limit: usize,
    with_tables: bool,
) -> anyhow::Result<ResultDiff> {
    let mut found = ResultDiff {
        a: pair.a.title(),
        b: pair.b.title(),
        answers: answers::compare(store, pair, limit)?,
        tables: Vec::new(),
        models: Vec::new(),
    };
    if !with_tables {
        return Ok(found);
    }
    for (port, a, b) in pair.artifacts() {
        match (a, b) {
            (Artifact::Dataset(a), Artifact::Dataset(b)) => {
                // Answers say more than their columns.
                let is_answer = found.answers.is_some()
                    && matches!(
                        a.table,
                        schemas::TableName::Rollouts | schemas::TableName::Verdicts
                    );
                if !is_answer {
                    found.tables.push(rows::compare(store, port, a, b, limit)?);
                }
            }
            (Artifact::Model(a), Artifact::Model(b)) => {
                found
                    .models
                    .push(models::compare(store, port, a, b, limit)?);
            }
            _ => {}
        }
    }
    Ok(found)
}

impl Side<'_> {
    /// For people.
    fn title(&self) -> String {
        let port = self
            .port
            .as_ref()
            .map(|port| format!(".{port}"))
            .unwrap_or_default();
        match self.run {
            Some(run) => format!("{}{port}@{}", self.stage, run.started.run),
            None => format!("{}{port}", self.stage),
        }
    }
}
