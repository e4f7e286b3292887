//! The commands, from a first run to an exported file.

use std::fs;

use serde_json::Value;

use crate::support::{Outcome, Place, Project};

on_every_store!(
    a_model_answers_and_all_commands_show_it,
    plan_says_what_is_cached_and_what_changed,
    tables_and_models_are_exported,
    a_failing_stage_is_named_and_the_others_are_kept,
);

const PIPELINE: &str = "
version: 1
name: small
seed: 5
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 6' }
  base: { init-model: { config: $repo/examples/models/tiny-vl-config } }
  answers:
    inputs: { prompts: few, model: base }
    rollout: { samples: 2, temperature: 1.0, max-new-tokens: 8 }
  verdicts: { inputs: { rollouts: answers, prompts: few }, verify: { math: {} } }
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("pipelines/small.yaml", PIPELINE);
    project
}

fn a_model_answers_and_all_commands_show_it(place: Place) {
    let project = project(place);
    let outcome = project.run("pipelines/small.yaml");
    assert_eq!(
        outcome.ran(),
        ["answers", "base", "few", "prompts", "verdicts"]
    );
    assert_eq!(outcome.0["status"], "done");
    assert!(!project.objects("v1/stages/").is_empty());
    assert_eq!(
        project.path(".metis").exists(),
        place == Place::Local,
        "the store is in the project, beside `pipelines`, unless it is elsewhere"
    );

    let runs = project.call(&["runs", "--json"]).expect(0).json();
    assert_eq!(
        (&runs[0]["pipeline"], &runs[0]["status"], &runs[0]["ran"]),
        (&"small".into(), &"done".into(), &5.into())
    );
    assert_eq!(runs[0]["run"], outcome.0["run"]);

    let shown = project
        .call(&["show", "answers", "--json", "--rows", "3"])
        .expect(0)
        .json();
    let rollouts = &shown["outputs"]["rollouts"];
    assert_eq!(
        (&rollouts["table"], &rollouts["rows"]),
        (&"rollouts".into(), &12.into())
    );
    assert_eq!(rollouts["first_rows"].as_array().unwrap().len(), 3);
    assert!(
        rollouts["columns"]
            .as_array()
            .unwrap()
            .iter()
            .any(|column| column["name"] == "token_ids")
    );
    assert!(
        shown["manifest"]["made_by"]["backend"]
            .as_str()
            .unwrap()
            .contains("libtorch"),
        "{shown}"
    );
    let digest = rollouts["digest"].as_str().unwrap();
    let by_digest = project
        .call(&["show", &digest[..12], "--json"])
        .expect(0)
        .json();
    assert_eq!(by_digest["manifest"], shown["manifest"]);

    let text = project
        .call(&["show", "answers", "--rows", "1"])
        .expect(0)
        .stdout;
    assert!(
        text.contains("rollouts") && text.contains("logprobs: LargeList"),
        "{text}"
    );
    let text = project.call(&["show"]).expect(0).stdout;
    assert!(
        text.contains("small") && text.contains("verdicts"),
        "{text}"
    );
}

fn plan_says_what_is_cached_and_what_changed(place: Place) {
    let project = project(place);
    let states = |arguments: &[&str]| -> Vec<(String, String)> {
        let plan = project.call(arguments).expect(0).json();
        let stages = plan["stages"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        stages
            .map(|stage| (text(&stage["state"]), text(&stage["reason"])))
            .collect()
    };
    let plan = ["plan", "pipelines/small.yaml", "--json"];
    let before = states(&plan);
    assert_eq!(
        before[0],
        ("to-run".to_owned(), "no earlier result".to_owned())
    );
    assert!(
        before
            .iter()
            .any(|(_, reason)| reason == "waits for `prompts`"),
        "{before:?}"
    );
    project.run("pipelines/small.yaml");
    assert!(states(&plan).iter().all(|(state, _)| state == "cached"));
    project.write(
        "pipelines/small.yaml",
        &PIPELINE.replace("max-new-tokens: 8", "max-new-tokens: 9"),
    );
    let changed = states(&plan);
    let reasons: Vec<&str> = changed
        .iter()
        .filter(|(state, _)| state == "to-run")
        .map(|(_, reason)| reason.as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "`max-new-tokens` has changed since the last result",
            "waits for `answers`"
        ]
    );
    let text = project.call(&["plan", "pipelines/small.yaml"]).expect(0);
    assert!(
        text.stdout.contains("to run: `max-new-tokens` has changed"),
        "{}",
        text.stdout
    );
    assert!(
        text.stderr.contains("3 of 5 stages are cached"),
        "{}",
        text.stderr
    );
}

fn tables_and_models_are_exported(place: Place) {
    let project = project(place);
    project.run("pipelines/small.yaml");
    for (file, lines) in [("few.jsonl", 6), ("few.csv", 7)] {
        project.call(&["export", "few", "--to", file]).expect(0);
        let text = fs::read_to_string(project.path(file)).unwrap();
        assert_eq!(text.lines().count(), lines, "{text}");
    }
    let first = fs::read_to_string(project.path("few.jsonl")).unwrap();
    let row: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(row["messages"][0]["role"], "user");
    project
        .call(&["export", "answers.rollouts", "--to", "answers.parquet"])
        .expect(0);
    assert_eq!(
        &fs::read(project.path("answers.parquet")).unwrap()[..4],
        b"PAR1"
    );
    project.call(&["export", "base", "--to", "model"]).expect(0);
    assert!(
        project.path("model/config.json").is_file()
            && project.path("model/model.safetensors").is_file()
    );
    let again = project.call(&["export", "base", "--to", "model"]).expect(2);
    assert!(again.stderr.contains("no empty folder"), "{}", again.stderr);
    let unknown = project
        .call(&["export", "fewer", "--to", "x.csv"])
        .expect(2);
    assert!(
        unknown.stderr.contains("`fewer`") && unknown.stderr.contains("few"),
        "{}",
        unknown.stderr
    );
}

fn a_failing_stage_is_named_and_the_others_are_kept(place: Place) {
    let project = Project::at(place);
    let broken = format!(
        "{PIPELINE}  numbers:\n    inputs: {{ p: few }}\n    sql: {{ query: 'select cast(prompt_id as int) as number from p' }}\n"
    );
    project.write("p.yaml", &broken);
    let failed = project
        .call(&["run", "p.yaml", "--json", "--device", "cpu"])
        .expect(1);
    assert!(
        failed.stderr.contains("stage `numbers` (sql) failed") && failed.stderr.contains("test-"),
        "{}",
        failed.stderr
    );
    let outcome = Outcome(failed.json());
    assert_eq!(outcome.0["status"], "failed");
    assert_eq!(outcome.statuses()["numbers"], "failed");
    assert_eq!(outcome.statuses()["few"], "done");
    let fixed = broken.replace("cast(prompt_id as int)", "length(prompt_id)");
    project.write("p.yaml", &fixed);
    let second = project.run("p.yaml");
    assert_eq!(second.statuses()["few"], "cached");
    assert_eq!(second.statuses()["numbers"], "done");
}

#[test]
fn a_wrong_command_line_or_store_ends_with_code_2() {
    let project = project(Place::Local);
    for (arguments, words) in [
        (&["run", "missing.yaml"][..], "missing.yaml"),
        (
            &["run", "pipelines/small.yaml", "--store", "ftp://host/x"],
            "`ftp`",
        ),
        (
            &["run", "pipelines/small.yaml", "--device", "gpu"],
            "cuda:N",
        ),
        (&["runs"], "no store"),
        (&["runs", "--store", "nowhere"], "nowhere"),
        (&["show", "x", "--store", "nowhere"], "nowhere"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let finished = project.call(arguments).expect(2);
        assert!(
            finished.stderr.contains(words),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(finished.stdout.is_empty());
    }
    assert!(!project.path("nowhere").exists());
}
