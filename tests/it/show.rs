//! Runs, stages and artifacts by their names.

use serde_json::json;

use crate::support::{Place, Project};
use crate::tables::{sums, write};

on_every_store!(
    a_run_has_several_names,
    a_stage_of_an_earlier_run_is_shown,
    the_plain_pipeline_of_a_run_can_be_run,
);

const PIPELINE: &str = "
version: 1
name: shown
seed: 1
params: { most: MOST }
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id } } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit ${params.most}' }
";

/// A project with a run of three rows and one of five.
fn project(place: Place) -> (Project, Vec<String>) {
    let project = Project::at(place);
    write(&project.path("sums.parquet"), &sums(0..8));
    let run = |most: &str| {
        project.write("p.yaml", &PIPELINE.replace("MOST", most));
        project.run("p.yaml").0["run"].as_str().unwrap().to_owned()
    };
    let runs = ["3", "5"].map(run);
    (project, runs.to_vec())
}

fn a_run_has_several_names(place: Place) {
    let (project, runs) = project(place);
    let digits = runs[0].rsplit('-').next().unwrap();
    for (name, run) in [
        ("latest", &runs[1]),
        ("latest~1", &runs[0]),
        (runs[0].as_str(), &runs[0]),
        (&runs[0][..runs[0].len() - 2], &runs[0]),
        (digits, &runs[0]),
    ] {
        let shown = project.call(&["show", name, "--json"]).expect(0).json();
        assert_eq!(shown["run"], json!(run), "{name}");
    }
    let unclear = project.call(&["show", &runs[0][..4]]).expect(2);
    assert!(
        unclear.stderr.contains("several runs"),
        "{}",
        unclear.stderr
    );
    let unknown = project.call(&["show", "nothing"]).expect(2);
    assert!(
        unknown.stderr.contains("`nothing`") && unknown.stderr.contains("prompts, few"),
        "{}",
        unknown.stderr
    );
}

fn a_stage_of_an_earlier_run_is_shown(place: Place) {
    let (project, runs) = project(place);
    let rows = |name: &str| {
        let shown = project.call(&["show", name, "--json"]).expect(0).json();
        shown["outputs"]["rows"]["rows"].clone()
    };
    assert_eq!(rows("few"), 5);
    assert_eq!(rows("few@latest~1"), 3);
    assert_eq!(rows(&format!("few.rows@{}", runs[0])), 3);
    let wrong = project.call(&["show", "fewer@latest"]).expect(2);
    assert!(
        wrong.stderr.contains("no stage `fewer`"),
        "{}",
        wrong.stderr
    );

    let why = project
        .call(&["why", "few@latest~1", "--json"])
        .expect(0)
        .json();
    assert_eq!(why["run"], json!(runs[0]));
    project
        .call(&["export", "few@latest~1", "--to", "few.jsonl"])
        .expect(0);
    let text = std::fs::read_to_string(project.path("few.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 3);
    let lineage = project
        .call(&["lineage", "few@latest~1", "--json"])
        .expect(0);
    assert_eq!(
        lineage.json()["inputs"][0]["from"]["stages"],
        json!(["prompts"])
    );
    let rows = project
        .call(&[
            "sql",
            "select count(*) as n from rows",
            "--run",
            "latest~1",
            "--json",
        ])
        .expect(0);
    assert_eq!(rows.json(), json!([{ "n": 3 }]));
}

fn the_plain_pipeline_of_a_run_can_be_run(place: Place) {
    let (project, _) = project(place);
    let text = project
        .call(&["show", "latest~1", "--pipeline"])
        .expect(0)
        .stdout;
    assert!(
        text.contains("limit 3") && !text.contains("params.most"),
        "{text}"
    );
    project.write("plain.yaml", &text);
    assert!(project.run("plain.yaml").ran().is_empty());
}
