//! What is computed, what is reused, what fails and how: map stages in whole runs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use engine_store::Store;
use schemas::record::{PartCounts, StageStatus};

use crate::testing::{digest, lab, options, plan, rows, run, run_with, squares};
use crate::{CancelToken, RunOutcome, RunStatus, Selection, execute};

const STAGE: usize = 1;

fn memory() -> Store {
    Store::open("memory://").unwrap()
}

fn counts(outcome: &RunOutcome) -> PartCounts {
    outcome.stages[STAGE].record.parts.unwrap()
}

fn error(outcome: &RunOutcome) -> String {
    let failure = outcome.stages[STAGE].failure.as_ref();
    failure.expect("the stage failed").to_string()
}

fn replay() -> Selection {
    Selection {
        replay: Some(STAGE),
        ..Selection::default()
    }
}

fn force() -> Selection {
    Selection {
        force: BTreeSet::from([STAGE]),
        ..Selection::default()
    }
}

#[test]
fn rows_come_out_in_order_and_every_port_is_filled() {
    let (plan, store) = (squares("[[0, 500]]", "order", "", ""), memory());
    let outcome = run(&plan, &store);
    assert_eq!(outcome.status, RunStatus::Done);
    let squares = rows(&outcome, STAGE, "squares", &store);
    let values = squares.column(2).as_primitive::<Int64Type>().values();
    assert!(values.iter().copied().eq((0..500).map(|n| n * n)));
    assert_eq!(rows(&outcome, STAGE, "odd", &store).num_rows(), 250);
    let counts = counts(&outcome);
    assert!(counts.total > 10 && counts.computed == counts.total && counts.rows == 500);
    assert_eq!(
        outcome.stages[STAGE].record.spans.len() as u64,
        counts.total
    );
}

#[test]
fn a_run_that_failed_in_the_middle_goes_on_with_the_parts_that_are_missing() {
    let (plan, store, lab) = (
        squares("[[0, 500]]", "middle", "", ""),
        memory(),
        lab("middle"),
    );
    lab.broken.lock().unwrap().insert(300);
    let outcome = run(&plan, &store);
    assert_eq!(outcome.status, RunStatus::Failed);
    assert_eq!(error(&outcome), "the part is broken");
    let first = lab.take_computed();
    assert!(
        first.len() > 200,
        "parts before the broken one are finished"
    );
    lab.broken.lock().unwrap().clear();
    let outcome = run(&plan, &store);
    let mut all = lab.take_computed();
    let reused = counts(&outcome).reused;
    assert!(reused > 10);
    all.extend(first);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..500), "each row was computed once");
    let undisturbed = run(&plan, &memory());
    for port in ["squares", "odd"] {
        assert_eq!(
            digest(&outcome, STAGE, port),
            digest(&undisturbed, STAGE, port)
        );
    }
}

#[test]
fn a_row_that_is_added_recomputes_the_parts_around_it() {
    let (store, lab) = (memory(), lab("added"));
    run(&squares("[[0, 2000]]", "added", "", ""), &store);
    lab.take_computed();
    let plan = squares("[[0, 900], [5000, 5001], [900, 2000]]", "added", "", "");
    let outcome = run(&plan, &store);
    assert_eq!(rows(&outcome, STAGE, "squares", &store).num_rows(), 2001);
    let computed = lab.take_computed();
    assert!(
        computed.contains(&5000) && computed.len() < 150,
        "{computed:?}"
    );
}

#[test]
fn more_samples_reuse_the_whole_ranges_that_are_there() {
    let (store, lab) = (memory(), lab("samples"));
    run(
        &squares("[[0, 100]]", "samples", ", samples: 2", ""),
        &store,
    );
    lab.computed.lock().unwrap().clear();
    let eight = run(
        &squares("[[0, 100]]", "samples", ", samples: 8", ""),
        &store,
    );
    assert_eq!(rows(&eight, STAGE, "squares", &store).num_rows(), 800);
    let slices: BTreeSet<(u32, u32)> = lab
        .computed
        .lock()
        .unwrap()
        .drain(..)
        .map(|(_, slice)| (slice.start, slice.end))
        .collect();
    assert_eq!(slices, BTreeSet::from([(2, 4), (4, 8)]));
    let starts = lab.starts.load(Ordering::SeqCst);
    let four = run(
        &squares("[[0, 100]]", "samples", ", samples: 4", ""),
        &store,
    );
    assert_eq!(rows(&four, STAGE, "squares", &store).num_rows(), 400);
    assert_eq!(counts(&four).computed, 0);
    assert_eq!(
        lab.starts.load(Ordering::SeqCst),
        starts,
        "what is all there starts nothing"
    );
}

#[test]
fn a_part_depends_on_its_own_rows_of_the_side_table() {
    let (store, lab) = (memory(), lab("side"));
    let with_side = |side: &str| {
        plan(&format!(
            "  numbers: {{ numbers: {{ ranges: [[0, 1000]] }} }}\n  squares:\n    inputs: {{ rows: numbers, side: side }}\n    square: {{ lab: side }}\n  side: {{ numbers: {{ ranges: {side} }} }}\n"
        ))
    };
    let find = |outcome: &RunOutcome| {
        let stages = outcome.stages.iter();
        let stage = stages
            .clone()
            .position(|stage| stage.record.stage == "squares");
        outcome.stages[stage.unwrap()].record.parts.unwrap()
    };
    run(&with_side("[[0, 1000]]"), &store);
    lab.take_computed();
    let outcome = run(&with_side("[[500, 1000], [0, 500]]"), &store);
    assert_eq!(
        find(&outcome).computed,
        0,
        "the order of the side table is no matter"
    );
    let outcome = run(&with_side("[[0, 400], [401, 1000]]"), &store);
    assert_eq!(find(&outcome).computed, 1);
    assert!(lab.take_computed().contains(&400));
}

#[test]
fn a_stage_without_rows_gives_tables_without_rows() {
    let (plan, store) = (
        squares("[]", "none", "", "    quarantine: { rows: 0 }\n"),
        memory(),
    );
    let outcome = run(&plan, &store);
    assert_eq!(outcome.status, RunStatus::Done);
    for port in ["squares", "odd", "quarantine"] {
        assert_eq!(rows(&outcome, STAGE, port, &store).num_rows(), 0);
    }
    assert_eq!(lab("none").starts.load(Ordering::SeqCst), 0);
}

#[test]
fn rows_in_memory_stay_within_the_budget() {
    let (plan, store, lab) = (
        squares("[[0, 500]]", "budget", "", ""),
        memory(),
        lab("budget"),
    );
    let mut options = options(Selection::default());
    options.memory_budget = 1;
    let outcome = execute(&plan, &store, &options, &CancelToken::default(), &mut ()).unwrap();
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(
        lab.most_running.load(Ordering::SeqCst),
        1,
        "one part at a time"
    );
}

#[test]
fn failed_rows_within_the_budget_go_to_the_quarantine() {
    let (plan, store, lab) = (
        squares(
            "[[0, 500]]",
            "inside",
            "",
            "    quarantine: { share: 0.01 }\n",
        ),
        memory(),
        lab("inside"),
    );
    lab.failing.lock().unwrap().extend([7, 123, 400]);
    let outcome = run(&plan, &store);
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(rows(&outcome, STAGE, "squares", &store).num_rows(), 497);
    let quarantine = rows(&outcome, STAGE, "quarantine", &store);
    let numbers = quarantine.column(0).as_primitive::<Int64Type>().values();
    assert_eq!(numbers, &[7, 123, 400]);
    assert_eq!(
        quarantine.column(1).as_string::<i64>().value(1),
        "prompt_id=p123"
    );
    assert_eq!(
        quarantine.column(2).as_string::<i64>().value(2),
        "400 is unlucky"
    );
    assert_eq!(counts(&outcome).quarantined, 3);
}

#[test]
fn too_many_failed_rows_fail_the_stage_and_are_named() {
    let store = memory();
    lab("outside").failing.lock().unwrap().extend([7, 123, 400]);
    let outcome = run(&squares("[[0, 500]]", "outside", "", ""), &store);
    assert_eq!(outcome.status, RunStatus::Failed);
    assert_eq!(error(&outcome), "row 7 (prompt_id=p7): 7 is unlucky");
    let two = squares("[[0, 500]]", "outside", "", "    quarantine: { rows: 2 }\n");
    let outcome = run(&two, &store);
    assert_eq!(
        error(&outcome),
        "3 rows failed, more than the 2 that the quarantine takes: row 7 (prompt_id=p7): 7 is unlucky; row 123 (prompt_id=p123): 123 is unlucky; row 400 (prompt_id=p400): 400 is unlucky"
    );
}

#[test]
fn a_failed_row_is_tried_again_alone_and_only_when_the_stage_runs() {
    let (store, lab) = (memory(), lab("again"));
    let plan = squares("[[0, 500]]", "again", "", "    quarantine: { rows: 5 }\n");
    lab.failing.lock().unwrap().extend([7, 8, 400]);
    let before = run(&plan, &store);
    lab.take_computed();
    let cached = run(&plan, &store);
    assert_eq!(cached.stages[STAGE].record.status, StageStatus::Cached);
    // Two rows are cured, one is not.
    lab.failing.lock().unwrap().retain(|row| *row == 8);
    let replayed = run_with(&plan, &store, replay());
    assert_eq!(lab.take_computed(), [7, 8, 400]);
    assert_eq!(replayed.stages[STAGE].record.generation, 1);
    assert_eq!(rows(&replayed, STAGE, "squares", &store).num_rows(), 499);
    assert_eq!(rows(&replayed, STAGE, "quarantine", &store).num_rows(), 1);
    assert_ne!(
        digest(&before, STAGE, "squares"),
        digest(&replayed, STAGE, "squares")
    );
    // What was cured is committed; the rest is tried by itself.
    lab.failing.lock().unwrap().clear();
    let replayed = run_with(&plan, &store, replay());
    assert_eq!(lab.take_computed(), [8]);
    assert_eq!(replayed.stages[STAGE].record.generation, 2);
    let cached = run(&plan, &store);
    assert_eq!(cached.stages[STAGE].record.status, StageStatus::Cached);
    assert_eq!(cached.stages[STAGE].record.generation, 2);
    assert_eq!(rows(&cached, STAGE, "squares", &store).num_rows(), 500);
    assert_eq!(rows(&cached, STAGE, "quarantine", &store).num_rows(), 0);
}

#[test]
fn a_replay_after_a_change_takes_over_what_had_not_failed() {
    let (store, lab) = (memory(), lab("changed"));
    let quarantine = "    quarantine: { rows: 5 }\n";
    lab.failing.lock().unwrap().extend([7, 400]);
    run(&squares("[[0, 500]]", "changed", "", quarantine), &store);
    lab.take_computed();
    lab.failing.lock().unwrap().clear();
    let changed = squares("[[0, 500]]", "changed", ", spelling: new", quarantine);
    let outcome = run_with(&changed, &store, replay());
    assert_eq!(lab.take_computed(), [7, 400]);
    assert_eq!(rows(&outcome, STAGE, "squares", &store).num_rows(), 500);
}

#[test]
fn a_result_with_more_in_quarantine_than_is_allowed_now_is_no_result() {
    let (store, lab) = (memory(), lab("stricter"));
    lab.failing.lock().unwrap().extend([7, 400]);
    let with = |more: &str| squares("[[0, 500]]", "stricter", "", more);
    assert_eq!(
        run(&with("    quarantine: { rows: 2 }\n"), &store).status,
        RunStatus::Done
    );
    assert_eq!(
        run(&with("    quarantine: { rows: 1 }\n"), &store).status,
        RunStatus::Failed
    );
    assert_eq!(run(&with(""), &store).status, RunStatus::Failed);
    lab.failing.lock().unwrap().clear();
    lab.take_computed();
    let outcome = run(&with(""), &store);
    assert_eq!(outcome.status, RunStatus::Done);
    assert_eq!(lab.take_computed(), [7, 400]);
}

#[test]
fn a_forced_stage_runs_in_full_and_only_another_result_is_kept_beside_the_old() {
    let (plan, store, lab) = (
        squares("[[0, 100]]", "forced", "", ""),
        memory(),
        lab("forced"),
    );
    let first = run(&plan, &store);
    lab.take_computed();
    let same = run_with(&plan, &store, force());
    assert_eq!(lab.take_computed().len(), 100);
    assert_eq!(same.stages[STAGE].record.status, StageStatus::Done);
    assert_eq!(same.stages[STAGE].record.generation, 0);
    *lab.offset.lock().unwrap() = 1;
    let other = run_with(&plan, &store, force());
    assert_eq!(other.stages[STAGE].record.generation, 1);
    assert_ne!(
        digest(&first, STAGE, "squares"),
        digest(&other, STAGE, "squares")
    );
    let cached = run(&plan, &store);
    assert_eq!(
        digest(&cached, STAGE, "squares"),
        digest(&other, STAGE, "squares")
    );
}

#[test]
fn what_was_finished_before_a_stop_is_kept() {
    let (plan, store, lab) = (
        squares("[[0, 3000]]", "stop", "", ""),
        memory(),
        lab("stop"),
    );
    let cancel = CancelToken::default();
    *lab.cancel_at.lock().unwrap() = Some((1000, cancel.clone()));
    let outcome = execute(
        &plan,
        &store,
        &options(Selection::default()),
        &cancel,
        &mut (),
    )
    .unwrap();
    assert_eq!(outcome.status, RunStatus::Interrupted);
    assert_eq!(
        outcome.stages[STAGE].record.status,
        StageStatus::Interrupted
    );
    *lab.cancel_at.lock().unwrap() = None;
    let first = lab.take_computed();
    assert!(first.contains(&1000) && first.len() < 2500);
    let outcome = run(&plan, &store);
    assert_eq!(outcome.status, RunStatus::Done);
    let mut all = lab.take_computed();
    all.extend(first);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..3000), "each row was computed once");
}

#[test]
fn an_operator_that_panics_fails_its_stage_with_what_it_said() {
    let (plan, lab) = (squares("[[0, 100]]", "panic", "", ""), lab("panic"));
    lab.panicking.lock().unwrap().insert(50);
    let outcome = run(&plan, &memory());
    assert_eq!(
        error(&outcome),
        "internal error: the operator panicked: 50 makes it panic"
    );
}
