//! `plan`: what a run would do, why, and how long it would take.

mod history;

use engine_plan::{Plan, Stage};
use engine_runtime::{Assessment, Reason, StageState, assess};
use engine_store::Store;
use serde_json::{Value, json};

use super::check::{load, load_unchecked};
use super::print_json;
use super::run::selection;
use crate::args::PlanArgs;
use crate::exit::Exit;
use crate::project::{open_store, project_folder};
use crate::text::{count, duration, lines, table};
use history::{Forecast, History};

pub(crate) fn plan(arguments: &PlanArgs) -> anyhow::Result<Exit> {
    if arguments.resolved {
        return resolved(arguments);
    }
    let root = project_folder(&arguments.pipeline.file);
    let Some(plan) = load(&arguments.pipeline, &root)? else {
        return Ok(Exit::Wrong);
    };
    let store = open_store(&arguments.store, &root)?;
    let selection = selection(&plan, &store, &arguments.choice)?;
    let assessments = assess(&plan, &store, &root, &selection)?;
    let will_run = |found: &Assessment| matches!(found.state, StageState::ToRun(_));
    let expected = if assessments.iter().any(will_run) {
        History::read(&store)?.expect(&store, &plan.stages, &assessments)?
    } else {
        vec![Forecast::default(); assessments.len()]
    };
    if arguments.json {
        let stages: Vec<Value> = plan
            .stages
            .iter()
            .zip(&assessments)
            .zip(&expected)
            .map(|((stage, found), expected)| stage_json(stage, found, expected))
            .collect();
        print_json(&json!({
            "pipeline": plan.name,
            "store": store.url(),
            "stages": stages,
            "expected_seconds": total(&expected),
        }))?;
        return Ok(Exit::Done);
    }
    print(&plan, &assessments, &expected);
    closing(&store, &assessments, &expected);
    Ok(Exit::Done)
}

/// The plain DAG, which is a pipeline file itself.
fn resolved(arguments: &PlanArgs) -> anyhow::Result<Exit> {
    let Some(plan) = load_unchecked(&arguments.pipeline)? else {
        return Ok(Exit::Wrong);
    };
    if arguments.json {
        print_json(&json!({ "pipeline": plan.name, "resolved": plan.resolved }))?;
    } else {
        print!("{}", plan.resolved);
    }
    Ok(Exit::Done)
}

fn print(plan: &Plan, assessments: &[Assessment], expected: &[Forecast]) {
    let mut table = table(
        &["stage", "operator", "state", "rows", "took", "expected"],
        &[3, 4, 5],
    );
    for ((stage, found), forecast) in plan.stages.iter().zip(assessments).zip(expected) {
        let rows = stage
            .outputs
            .iter()
            .find_map(|(port, _)| found.state.outputs()?.get(port)?.rows());
        let (state, took, expected) = match &found.state {
            StageState::Cached(manifest) => (
                "cached".to_owned(),
                duration(manifest.seconds),
                String::new(),
            ),
            StageState::Pinned { run, manifest } => (
                format!("pinned to run {run}"),
                duration(manifest.seconds),
                String::new(),
            ),
            StageState::ToRun(reason) => (
                format!("to run: {}{}", explain(reason), already(forecast)),
                String::new(),
                forecast.seconds.map_or_else(
                    || "no history".to_owned(),
                    |seconds| format!("~{}", duration(seconds)),
                ),
            ),
            StageState::NotSelected(reason) => (
                format!("not selected: {}", explain(reason)),
                String::new(),
                String::new(),
            ),
        };
        let rows = rows.map(count).unwrap_or_default();
        table.add_row([
            stage.name.as_str(),
            stage.kind,
            &state,
            &rows,
            &took,
            &expected,
        ]);
    }
    println!("{}", lines(&table));
}

/// What an earlier run has left of a stage that it did not end.
fn already(forecast: &Forecast) -> String {
    match (forecast.parts, forecast.checkpoint) {
        (Some(parts), _) => format!(
            "; {} of {} parts are there",
            count(parts.reused + parts.computed),
            count(parts.total)
        ),
        (None, Some(step)) => format!("; goes on from step {}", count(step)),
        (None, None) => String::new(),
    }
}

fn closing(store: &Store, assessments: &[Assessment], expected: &[Forecast]) {
    let has_result = |found: &&Assessment| found.state.outputs().is_some();
    let cached = assessments.iter().filter(has_result).count();
    eprintln!(
        "{cached} of {} stages are cached in {}",
        assessments.len(),
        store.url()
    );
    let will_run = |found: &&Assessment| matches!(found.state, StageState::ToRun(_));
    let to_run = assessments.iter().filter(will_run).count();
    let known = expected
        .iter()
        .filter(|forecast| forecast.seconds.is_some())
        .count();
    if known > 0 {
        let without = match to_run.saturating_sub(known) {
            0 => String::new(),
            number => format!(", without the {number} that have no history"),
        };
        eprintln!(
            "about {} of work in {known} stages{without}",
            duration(total(expected))
        );
    }
}

fn total(expected: &[Forecast]) -> f64 {
    expected
        .iter()
        .filter_map(|forecast| forecast.seconds)
        .sum()
}

fn stage_json(stage: &Stage, found: &Assessment, forecast: &Forecast) -> Value {
    let (state, reason) = match &found.state {
        StageState::Cached(_) => ("cached", None),
        StageState::Pinned { .. } => ("pinned", None),
        StageState::ToRun(reason) => ("to-run", Some(reason)),
        StageState::NotSelected(reason) => ("not-selected", Some(reason)),
    };
    let differs = match reason {
        Some(Reason::Differs { field }) => Some(field),
        _ => None,
    };
    let took = match &found.state {
        StageState::Cached(manifest) | StageState::Pinned { manifest, .. } => {
            Some(manifest.seconds)
        }
        StageState::ToRun(_) | StageState::NotSelected(_) => None,
    };
    let pinned = match &found.state {
        StageState::Pinned { run, .. } => Some(run),
        _ => None,
    };
    json!({
        "stage": stage.name,
        "operator": stage.kind,
        "state": state,
        "key": found.key.as_ref().map(|key| key.digest.as_str()),
        "reason": reason.map(explain),
        "differs": differs,
        "pinned": pinned,
        "parts": forecast.parts,
        "checkpoint": forecast.checkpoint,
        "took_seconds": took,
        "expected_seconds": forecast.seconds,
        "expected_from": forecast.results,
    })
}

/// A reason for people.
pub(crate) fn explain(reason: &Reason) -> String {
    match reason {
        Reason::NoEarlierResult => "no earlier result".to_owned(),
        Reason::InputNotMade { stage } => format!("waits for `{stage}`"),
        Reason::Differs { field } => match field.split_once('.') {
            Some(("inputs", port)) => {
                let port = port.split('.').next().unwrap_or(port);
                format!("input `{port}` has changed since the last result")
            }
            // What the key of a query covers in place of its text.
            Some(("config", "plan")) => "the query has changed since the last result".to_owned(),
            Some(("config", key)) => format!("`{key}` has changed since the last result"),
            _ if field == "version" => "the operator has a new version".to_owned(),
            _ => format!("`{field}` has changed since the last result"),
        },
        Reason::Broken { reason } => format!("the earlier result cannot be used: {reason}"),
        Reason::Unreadable { reason } => reason.clone(),
        Reason::Forced => "forced".to_owned(),
        Reason::Replay { rows } => format!("{} rows in quarantine are tried again", count(*rows)),
        Reason::Quarantine { reason } => {
            format!("the earlier result does not fit the quarantine: {reason}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_what_the_user_wrote() {
        let differs = |field: &str| {
            explain(&Reason::Differs {
                field: field.to_owned(),
            })
        };
        assert_eq!(
            differs("config.learning-rate"),
            "`learning-rate` has changed since the last result"
        );
        assert_eq!(
            differs("inputs.examples.1"),
            "input `examples` has changed since the last result"
        );
        assert_eq!(differs("seed"), "`seed` has changed since the last result");
    }
}
