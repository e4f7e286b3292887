//! Which stages run: what the user chose, what is there, what is the same work.

use std::collections::{BTreeMap, BTreeSet};

use engine_store::Store;
use schemas::record::StageStatus::{self, Cached, Done, NotSelected};

use crate::testing::{digest, lab, options, plan, run, run_with};
use crate::{CancelToken, Pin, Reason, RunOutcome, RunStatus, Selection, StageState, assess};

fn chain(lab: &str) -> std::sync::Arc<engine_plan::Plan> {
    plan(&format!(
        "  numbers: {{ numbers: {{ ranges: [[0, 50]] }} }}\n  more: {{ numbers: {{ ranges: [[50, 60]] }} }}\n  squares:\n    inputs: {{ rows: numbers }}\n    square: {{ lab: {lab} }}\n  others:\n    inputs: {{ rows: more }}\n    square: {{ lab: {lab} }}\n"
    ))
}

fn only(stages: &[usize]) -> Selection {
    Selection {
        only: Some(stages.iter().copied().collect()),
        ..Selection::default()
    }
}

fn statuses(outcome: &RunOutcome) -> BTreeMap<&str, StageStatus> {
    let stages = outcome.stages.iter();
    stages
        .map(|stage| (stage.record.stage.as_str(), stage.record.status))
        .collect()
}

#[test]
fn stages_that_were_not_chosen_do_not_run_and_may_be_cached() {
    let (plan, store) = (chain("only"), Store::open("memory://").unwrap());
    let numbers = plan.index_of("numbers").unwrap();
    let squares = plan.index_of("squares").unwrap();
    let outcome = run_with(&plan, &store, only(&[squares]));
    assert_eq!(outcome.status, RunStatus::Failed);
    let message = outcome.stages[squares].record.error.clone().unwrap();
    assert!(
        message.contains("stage `numbers`, which has no result"),
        "{message}"
    );
    let outcome = run_with(&plan, &store, only(&[numbers]));
    assert_eq!(outcome.status, RunStatus::Done);
    let expected = [
        ("numbers", Done),
        ("more", NotSelected),
        ("squares", NotSelected),
        ("others", NotSelected),
    ];
    assert_eq!(statuses(&outcome), expected.into());
    let outcome = run_with(&plan, &store, only(&[squares]));
    let expected = [
        ("numbers", Cached),
        ("more", NotSelected),
        ("squares", Done),
        ("others", NotSelected),
    ];
    assert_eq!(statuses(&outcome), expected.into());
    let recorded = store.run(&outcome.run).unwrap();
    assert_eq!(recorded.stages.len(), 4, "each stage has its record");
}

#[test]
fn a_pinned_result_is_taken_whatever_the_key() {
    let store = Store::open("memory://").unwrap();
    let first = run(&chain("pins"), &store);
    let changed = plan(
        "  numbers: { numbers: { ranges: [[0, 70]] } }\n  squares:\n    inputs: { rows: numbers }\n    square: { lab: pins }\n",
    );
    let key = first.stages[0].record.key.as_deref().unwrap();
    let pin = Pin {
        run: first.run.clone(),
        manifest: store.find_manifest(key).unwrap().unwrap(),
    };
    let selection = Selection {
        pins: BTreeMap::from([(0, pin)]),
        ..Selection::default()
    };
    let outcome = run_with(&changed, &store, selection);
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(outcome.stages[0].record.pinned.as_ref(), Some(&first.run));
    assert_eq!(digest(&outcome, 0, "rows"), digest(&first, 0, "rows"));
    assert_eq!(outcome.stages[1].record.status, Cached);
}

#[test]
fn a_pinned_stage_does_not_wait_for_its_inputs() {
    let (plan, store) = (chain("pin-alone"), Store::open("memory://").unwrap());
    let squares = plan.index_of("squares").unwrap();
    let first = run(&plan, &store);
    let key = first.stages[squares].record.key.as_deref().unwrap();
    let pin = Pin {
        run: first.run.clone(),
        manifest: store.find_manifest(key).unwrap().unwrap(),
    };
    let other = plan_with_other_numbers();
    let selection = Selection {
        pins: BTreeMap::from([(squares, pin)]),
        ..only(&[])
    };
    let outcome = run_with(&other, &store, selection);
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(outcome.stages[squares].record.status, Cached);
    assert_eq!(outcome.stages[0].record.status, NotSelected);
}

fn plan_with_other_numbers() -> std::sync::Arc<engine_plan::Plan> {
    plan(
        "  numbers: { numbers: { ranges: [[7, 9]] } }\n  more: { numbers: { ranges: [[50, 60]] } }\n  squares:\n    inputs: { rows: numbers }\n    square: { lab: pin-alone }\n  others:\n    inputs: { rows: more }\n    square: { lab: pin-alone }\n",
    )
}

#[test]
fn the_same_work_under_two_names_is_done_once() {
    let plan = plan(
        "  numbers: { numbers: { ranges: [[0, 50]] } }\n  one:\n    inputs: { rows: numbers }\n    square: { lab: twins }\n  two:\n    inputs: { rows: numbers }\n    square: { lab: twins }\n",
    );
    let outcome = run(&plan, &Store::open("memory://").unwrap());
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(
        digest(&outcome, 1, "squares"),
        digest(&outcome, 2, "squares")
    );
    assert_eq!(lab("twins").take_computed().len(), 50);
}

#[test]
fn an_assessment_says_what_a_run_does() {
    let (plan, store) = (chain("assess"), Store::open("memory://").unwrap());
    let numbers = plan.index_of("numbers").unwrap();
    let squares = plan.index_of("squares").unwrap();
    let root = options(Selection::default()).root;
    let states = |selection: &Selection| -> Vec<StageState> {
        let assessed = assess(&plan, &store, &root, selection).unwrap();
        assessed.into_iter().map(|stage| stage.state).collect()
    };
    let before = states(&only(&[squares]));
    assert!(matches!(
        &before[numbers],
        StageState::NotSelected(Reason::NoEarlierResult)
    ));
    assert!(
        matches!(&before[squares], StageState::ToRun(Reason::InputNotMade { stage }) if stage == "numbers")
    );
    run(&plan, &store);
    let all_cached = states(&Selection::default());
    assert!(
        all_cached
            .iter()
            .all(|state| matches!(state, StageState::Cached(_)))
    );
    let forced = states(&Selection {
        force: BTreeSet::from([squares]),
        ..Selection::default()
    });
    assert!(matches!(
        &forced[squares],
        StageState::ToRun(Reason::Forced)
    ));
}

#[test]
fn a_run_that_is_stopped_before_it_starts_runs_nothing() {
    let (plan, store) = (chain("stopped"), Store::open("memory://").unwrap());
    let cancel = CancelToken::default();
    cancel.cancel();
    let options = options(Selection::default());
    let outcome = crate::execute(&plan, &store, &options, &cancel, &mut ()).unwrap();
    assert_eq!(outcome.status, RunStatus::Interrupted);
    assert!(lab("stopped").take_computed().is_empty());
}
