//! What is removed from a store, and that nothing that is needed is.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Place, Project, is_running, wait_until};

on_every_store!(
    a_store_after_gc_has_all_that_a_rerun_needs,
    results_that_only_older_runs_used_go_when_runs_are_counted,
    a_run_at_work_keeps_everything_and_what_a_killed_one_left_goes,
);

const PIPELINE: &str = "
version: 1
name: collected
seed: 7
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 40' }
  base: { init-model: { config: $repo/examples/models/tiny-vl-config } }
  answers:
    inputs: { prompts: few, model: base }
    rollout: { samples: 4, temperature: 1.0, max-new-tokens: 48 }
";

const RUN: [&str; 4] = ["run", "p.yaml", "--device", "cpu"];
const NOW: [&str; 6] = ["gc", "--older-than", "0s", "--grace", "0s", "--json"];

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project
}

fn gc(project: &Project, more: &[&str]) -> Value {
    project.call(&[&NOW, more].concat()).expect(0).json()
}

fn kinds(garbage: &Value) -> BTreeSet<&str> {
    let objects = garbage["objects"].as_array().unwrap().iter();
    objects
        .map(|object| object["kind"].as_str().unwrap())
        .collect()
}

fn a_store_after_gc_has_all_that_a_rerun_needs(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    for object in [
        "parts/lost.parquet",
        "models/lost/config.json",
        "media/lost",
    ] {
        project.write_object(&format!("v1/{object}"), b"lost");
    }
    let young = project.call(&["gc", "--older-than", "0s", "--json"]);
    assert!(kinds(&young.expect(0).json()).is_empty());

    let would = gc(&project, &["--dry-run"]);
    assert_eq!(kinds(&would), ["media", "model", "part"].into());
    assert_eq!(would["objects"].as_array().unwrap().len(), 3, "{would}");
    assert_eq!(would["bytes"], 12);
    assert!(project.object("v1/media/lost").is_some());
    let did = gc(&project, &[]);
    assert_eq!(did["objects"], would["objects"]);
    assert!(project.object("v1/media/lost").is_none());
    let text = project.call(&NOW[..5]).expect(0);
    assert!(
        text.stderr.contains("0 objects, 0 B, removed"),
        "{}",
        text.stderr
    );

    let again = project.run("p.yaml");
    assert!(again.ran().is_empty(), "{:?}", again.statuses());
    assert_eq!(again.digests(), first.digests());
}

fn results_that_only_older_runs_used_go_when_runs_are_counted(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    project.write("p.yaml", &PIPELINE.replace("limit 40", "limit 30"));
    let second = project.run("p.yaml");
    assert_eq!(second.ran(), ["answers", "few"]);
    assert!(kinds(&gc(&project, &["--keep-runs", "2"])).is_empty());
    let removed = gc(&project, &["--keep-runs", "1"]);
    let stages = removed["objects"].as_array().unwrap().iter();
    let stages = stages.filter(|object| object["kind"] == "stage").count();
    assert_eq!(stages, 2, "{removed}");
    assert!(kinds(&removed).contains("part"));
    let again = project.run("p.yaml");
    assert!(again.ran().is_empty(), "{:?}", again.statuses());
    assert_eq!(again.digests(), second.digests());
}

fn a_run_at_work_keeps_everything_and_what_a_killed_one_left_goes(place: Place) {
    let mut project = project(place);
    let undisturbed = project.run("p.yaml").digests();
    project.clear_store();
    let mut running = project.start(&RUN);
    running.wait_for_start("answers");
    let worker = running.wait_for_worker(&[]);
    let held = project
        .call(&["gc", "--older-than", "0s", "--keep-runs", "0", "--json"])
        .expect(0);
    assert!(held.json()["held_by"].is_string(), "{}", held.stdout);
    assert!(held.stderr.contains("may be at work"), "{}", held.stderr);
    running.signal("KILL");
    drop(running);
    wait_until("the worker of a killed engine ends", || {
        (!is_running(worker)).then_some(())
    });
    // As a kill in the middle of writes leaves them.
    project.write_object("v1/parts/whole.parquet", b"no manifest names it");
    let mut expected = BTreeSet::from(["part"]);
    if place == Place::Local {
        // A bucket shows no object before its upload is complete.
        std::fs::write(project.path(".metis/v1/parts/half.parquet#1"), "half").unwrap();
        expected.insert("unfinished");
    }
    let removed = gc(&project, &[]);
    assert!(kinds(&removed).is_superset(&expected), "{removed}");
    assert!(project.object("v1/parts/whole.parquet").is_none());
    assert!(!project.path(".metis/v1/parts/half.parquet#1").exists());
    let second = project.run("p.yaml");
    assert_eq!(second.ran(), ["answers"]);
    assert_eq!(second.digests(), undisturbed);
}
