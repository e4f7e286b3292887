//! `plan`: what a run would do, and why.

use engine_runtime::{Assessment, Reason, StageState, assess};
use serde_json::json;

use super::check::load;
use super::print_json;
use crate::args::PlanArgs;
use crate::exit::Exit;
use crate::project::{open_store, project_folder};
use crate::text::{count, duration, lines, table};

pub(crate) fn plan(arguments: &PlanArgs) -> anyhow::Result<Exit> {
    let root = project_folder(&arguments.file);
    let Some(plan) = load(&arguments.file, &root)? else {
        return Ok(Exit::Wrong);
    };
    let store = open_store(&arguments.store, &root)?;
    let assessments = assess(&plan, &store, &root)?;
    if arguments.json {
        let stages: Vec<_> = plan
            .stages
            .iter()
            .zip(&assessments)
            .map(|(stage, found)| stage_json(stage, found))
            .collect();
        print_json(&json!({ "pipeline": plan.name, "store": store.url(), "stages": stages }))?;
        return Ok(Exit::Done);
    }
    let mut table = table(&["stage", "operator", "state", "rows", "took"], &[3, 4]);
    for (stage, found) in plan.stages.iter().zip(&assessments) {
        let (state, rows, took) = match &found.state {
            StageState::Cached(manifest) => {
                let rows = stage
                    .outputs
                    .iter()
                    .find_map(|(port, _)| manifest.outputs.get(port)?.rows());
                (
                    "cached".to_owned(),
                    rows.map(count).unwrap_or_default(),
                    duration(manifest.seconds),
                )
            }
            StageState::ToRun(reason) => (
                format!("to run: {}", explain(reason)),
                String::new(),
                String::new(),
            ),
        };
        table.add_row([stage.name.as_str(), stage.kind, &state, &rows, &took]);
    }
    println!("{}", lines(&table));
    let cached = assessments
        .iter()
        .filter(|found| matches!(found.state, StageState::Cached(_)))
        .count();
    eprintln!(
        "{cached} of {} stages are cached in {}",
        assessments.len(),
        store.url()
    );
    Ok(Exit::Done)
}

fn stage_json(stage: &engine_plan::Stage, found: &Assessment) -> serde_json::Value {
    let reason = match &found.state {
        StageState::Cached(_) => None,
        StageState::ToRun(reason) => Some(explain(reason)),
    };
    let differs = match &found.state {
        StageState::ToRun(Reason::Differs { field }) => Some(field),
        _ => None,
    };
    json!({
        "stage": stage.name,
        "operator": stage.kind,
        "state": if reason.is_none() { "cached" } else { "to-run" },
        "key": found.key.as_ref().map(|key| key.digest.as_str()),
        "reason": reason,
        "differs": differs,
    })
}

/// A reason for people.
pub(super) fn explain(reason: &Reason) -> String {
    match reason {
        Reason::NoEarlierResult => "no earlier result".to_owned(),
        Reason::InputNotMade { stage } => format!("waits for `{stage}`"),
        Reason::Differs { field } => match field.split_once('.') {
            Some(("inputs", port)) => {
                let port = port.split('.').next().unwrap_or(port);
                format!("input `{port}` has changed since the last result")
            }
            Some(("config", key)) => format!("`{key}` has changed since the last result"),
            _ if field == "version" => "the operator has a new version".to_owned(),
            _ => format!("`{field}` has changed since the last result"),
        },
        Reason::Broken { reason } => format!("the earlier result cannot be used: {reason}"),
        Reason::Unreadable { reason } => reason.clone(),
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
