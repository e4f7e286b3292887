//! One pipeline of several files, with a loop: what it says is worked in before anything runs.

use std::fs;

use crate::support::Project;

const MAIN: &str = "
version: 1
name: composed
seed: 5
include: [parts/data.yaml]
params: { rounds: 2 }
stages:
  rounds:
    repeat: \"${params.rounds}\"
    carry: { rows: { first: prompts, next: fewer } }
    stages:
      fewer:
        inputs: { p: \"${carry.rows}\" }
        sql:
          query: |
            select * from p
            where prompt_id <> '${round}' -- every round has its number
            order by prompt_id limit 8
  count:
    inputs: { p: rounds.rows }
    sql: { query: 'select count(*) as n from p' }
";

const DATA: &str = "
params: { data: { type: text, default: $repo/examples/data/test.parquet } }
stages:
  prompts:
    source: { path: \"${params.data}\", columns: { id: id, solution: solution, category: kind } }
";

fn project() -> Project {
    let project = Project::new();
    project.write("p.yaml", MAIN);
    project.write("parts/data.yaml", DATA);
    project
}

#[test]
fn the_resolved_pipeline_has_the_same_results() {
    let project = project();
    let first = project.run("p.yaml");
    assert_eq!(
        first.ran(),
        ["count", "prompts", "rounds-1-fewer", "rounds-2-fewer"]
    );
    let resolved = project.call(&["plan", "p.yaml", "--resolved"]).expect(0);
    fs::write(project.path("resolved.yaml"), &resolved.stdout).unwrap();
    let second = project.run("resolved.yaml");
    assert_eq!(second.ran(), [""; 0], "{}", resolved.stdout);
    assert_eq!(second.digests(), first.digests());
}

/// A round more has the same rows in the end, so that what follows is not done again.
#[test]
fn settings_and_overlays_change_what_they_name_and_nothing_else() {
    let project = project();
    project.run("p.yaml");
    project.write(
        "overlay.yaml",
        "stages: { count: { sql: { query: 'select COUNT(*)  as n FROM p -- the same' } } }\n",
    );
    for (arguments, ran) in [
        (&["--overlay", "overlay.yaml"][..], &[][..]),
        (&["--set", "params.rounds=3"], &["rounds-3-fewer"]),
        (&["--set", "seed=6"], &[]),
    ] {
        let call = [&["run", "p.yaml", "--json"], arguments].concat();
        let outcome = project.call(&call).expect(0).json();
        let stages = outcome["stages"].as_array().unwrap().clone();
        let mut done: Vec<String> = stages
            .iter()
            .filter(|stage| stage["status"] == "done")
            .map(|stage| stage["stage"].as_str().unwrap().to_owned())
            .collect();
        done.sort();
        assert_eq!(done, ran, "{arguments:?}");
    }
}
