//! Why a stage is cached or not.

use crate::support::{Place, Project};

on_every_store!(
    a_stage_is_explained_before_and_after_a_run,
    an_unknown_stage_is_answered_with_those_there_are,
);

const PIPELINE: &str = "
version: 1
name: asked
seed: 1
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 30' }
  kinds:
    inputs: { few: few }
    sql: { query: 'select category, count(*) as prompts from few group by category order by category' }
";

fn a_stage_is_explained_before_and_after_a_run(place: Place) {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    let ask = |arguments: &[&str]| {
        let arguments = [&["why"], arguments, &["--json"]].concat();
        project.call(&arguments).expect(0).json()
    };
    let nothing = ask(&["kinds", "p.yaml"]);
    assert_eq!(nothing["state"], "to-run");
    assert_eq!(nothing["reason"], "waits for `few`");

    let first = project.run("p.yaml");
    let cached = ask(&["few", "p.yaml"]);
    assert_eq!(cached["state"], "cached");
    assert_eq!(cached["made_by_run"], first.0["run"]);
    assert_eq!(cached["inputs"][0]["port"], "p");
    assert_eq!(cached["inputs"][0]["from"][0], "prompts.prompts");
    assert_eq!(
        cached["inputs"][0]["digest"],
        first.digests()["prompts.prompts"]
    );

    project.write("p.yaml", &PIPELINE.replace("limit 30", "limit 29"));
    let changed = ask(&["few", "p.yaml"]);
    assert_eq!(changed["state"], "to-run");
    assert_eq!(changed["earlier"]["key"], cached["key"]);
    assert_eq!(changed["earlier"]["made_by_run"], first.0["run"]);
    assert_eq!(changed["earlier"]["differs"], "config.plan");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    assert!(text(&changed["earlier"]["before"]).contains("fetch=30"));
    assert!(text(&changed["earlier"]["now"]).contains("fetch=29"));
    let waits = ask(&["kinds", "p.yaml"]);
    assert_eq!(waits["reason"], "waits for `few`");

    let second = project.run("p.yaml");
    let ran = ask(&["kinds"]);
    assert_eq!(ran["state"], "done");
    assert_eq!(ran["run"], second.0["run"]);
    assert_eq!(ran["made_by_run"], second.0["run"]);
    assert_eq!(ran["inputs"][0]["from"][0], "few.rows");
    assert_eq!(ran["earlier"]["differs"], "inputs.few.0");
    assert_eq!(ran["earlier"]["before"], first.digests()["few.rows"]);
    assert_eq!(ran["earlier"]["now"], second.digests()["few.rows"]);
    let cached = ask(&["prompts"]);
    assert_eq!(cached["state"], "cached");
    assert_eq!(cached["made_by_run"], first.0["run"]);

    let said = project.call(&["why", "kinds"]).expect(0).stdout;
    assert!(
        said.contains("differs   inputs.few.0") && said.contains("from few.rows"),
        "{said}"
    );
}

fn an_unknown_stage_is_answered_with_those_there_are(place: Place) {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project.run("p.yaml");
    for arguments in [&["why", "fewer"][..], &["why", "fewer", "p.yaml"]] {
        let finished = project.call(arguments).expect(2);
        assert!(
            finished.stderr.contains("`fewer`") && finished.stderr.contains("prompts, few, kinds"),
            "{}",
            finished.stderr
        );
    }
}
