//! What a run would do, and the flags that choose what it does.

use serde_json::{Value, json};

use crate::support::{Outcome, Place, Project};
use crate::tables::{sums, write};

on_every_store!(
    time_is_expected_from_earlier_results,
    stages_are_chosen_by_name,
    a_stage_is_forced_and_another_is_pinned,
    the_plain_pipeline_has_the_same_keys,
);

const PIPELINE: &str = "
version: 1
name: planned
seed: 1
params: { most: 4 }
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit ${params.most}' }
  kinds:
    inputs: { p: few }
    sql: { query: 'select category, count(*) as n from p group by category order by category' }
  all:
    inputs: { p: prompts }
    sql: { query: 'select count(*) as n from p' }
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    write(&project.path("sums.parquet"), &sums(0..8));
    project.write("p.yaml", PIPELINE);
    project
}

fn statuses(project: &Project, arguments: &[&str]) -> Vec<(String, String)> {
    let mut all = vec!["run", "p.yaml", "--json"];
    all.extend(arguments);
    let outcome = Outcome(project.call(&all).expect(0).json());
    outcome.statuses().into_iter().collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = pairs.iter();
    owned
        .map(|(name, status)| ((*name).to_owned(), (*status).to_owned()))
        .collect()
}

fn time_is_expected_from_earlier_results(place: Place) {
    let project = project(place);
    let plan = |arguments: &[&str]| -> Vec<Value> {
        let mut all = vec!["plan", "p.yaml", "--json"];
        all.extend(arguments);
        let plan = project.call(&all).expect(0).json();
        plan["stages"].as_array().unwrap().clone()
    };
    let before = plan(&[]);
    assert!(
        before
            .iter()
            .all(|stage| stage["expected_seconds"].is_null())
    );
    project.run("p.yaml");
    let after = plan(&[]);
    assert!(
        after
            .iter()
            .all(|stage| stage["state"] == "cached" && stage["took_seconds"].is_f64())
    );
    let changed = plan(&["--set", "params.most=2"]);
    assert_eq!(
        (
            &changed[1]["state"],
            changed[1]["differs"]
                .as_str()
                .unwrap()
                .starts_with("config.")
        ),
        (&json!("to-run"), true)
    );
    assert!(
        changed[1]["expected_seconds"].as_f64() > Some(0.0),
        "{changed:?}"
    );
    assert_eq!(changed[1]["expected_from"], 3);
    let text = project
        .call(&[
            "plan",
            "p.yaml",
            "--set",
            "kinds.query=select colour from p",
        ])
        .expect(2);
    assert!(
        text.stderr.contains("no column `colour`"),
        "{}",
        text.stderr
    );
}

fn stages_are_chosen_by_name(place: Place) {
    let project = project(place);
    let alone = project
        .call(&["run", "p.yaml", "--only", "kinds"])
        .expect(1);
    assert!(alone.stderr.contains("kinds"), "{}", alone.stderr);
    assert_eq!(
        statuses(&project, &["--to", "few"]),
        pairs(&[
            ("all", "not-selected"),
            ("few", "done"),
            ("kinds", "not-selected"),
            ("prompts", "done")
        ])
    );
    assert_eq!(
        statuses(&project, &["--only", "kinds,few"]),
        pairs(&[
            ("all", "not-selected"),
            ("few", "cached"),
            ("kinds", "done"),
            ("prompts", "cached")
        ])
    );
    assert_eq!(
        statuses(&project, &["--from", "prompts"]),
        pairs(&[
            ("all", "done"),
            ("few", "cached"),
            ("kinds", "cached"),
            ("prompts", "cached")
        ])
    );
    let wrong = project.call(&["run", "p.yaml", "--to", "fwe"]).expect(2);
    assert!(
        wrong.stderr.contains("did you mean `few`?"),
        "{}",
        wrong.stderr
    );
}

fn a_stage_is_forced_and_another_is_pinned(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    assert_eq!(
        statuses(&project, &["--force", "few"]),
        pairs(&[
            ("all", "cached"),
            ("few", "done"),
            ("kinds", "cached"),
            ("prompts", "cached")
        ])
    );
    let pinned = project
        .call(&[
            "run",
            "p.yaml",
            "--json",
            "--set",
            "params.most=1",
            "--pin",
            "few=latest~1",
        ])
        .expect(0);
    let outcome = Outcome(pinned.json());
    assert_eq!(outcome.statuses()["kinds"], "cached", "{}", pinned.stderr);
    assert!(pinned.stderr.contains("pinned to run"), "{}", pinned.stderr);
    let wrong = project.call(&["run", "p.yaml", "--pin", "few"]).expect(2);
    assert!(wrong.stderr.contains("STAGE=RUN"), "{}", wrong.stderr);
}

fn the_plain_pipeline_has_the_same_keys(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    let resolved = project
        .call(&["plan", "p.yaml", "--resolved"])
        .expect(0)
        .stdout;
    assert!(!resolved.contains("params.most"), "{resolved}");
    project.write("plain.yaml", &resolved);
    let second = project.run("plain.yaml");
    assert!(second.ran().is_empty());
    assert_eq!(first.digests(), second.digests());
}

#[test]
fn a_quiet_run_says_one_line_and_a_json_log_is_json() {
    let project = project(Place::Local);
    let quiet = project.call(&["run", "p.yaml", "-q"]).expect(0);
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
    let log = project.call(&["--log", "json", "run", "p.yaml"]).expect(0);
    let lines: Vec<Value> = log
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.last().unwrap()["fields"]["status"], "done");
    assert!(lines.iter().any(|line| line["fields"]["stage"] == "few"));
}
