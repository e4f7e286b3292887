//! Programs of the user's own as stages: what runs again, and what a bad one does to a run.

use std::fs;
use std::time::Instant;

use serde_json::json;

use crate::support::{Place, Project, is_running, python, send_signal, wait_until};
use crate::tables::{sums, table, texts, write};

on_every_store!(a_python_reward_runs_again_when_it_changes_and_not_otherwise);

const REWARD: &str = r#"
version: 1
name: reward
seed: 1
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind } }
  answers:
    inputs: { p: prompts }
    sql:
      query: >-
        select prompt_id, arrow_cast(0, 'UInt32') as sample,
        case when category = 'product' then 'no idea' else solution end as text, answer, category from p
  rewards:
    inputs: { rows: answers }
    exec:
      command: [PYTHON, reward.py]
      files: [reward.py]
      columns: [text, answer]
      keep: [prompt_id, sample, category]
      rows: one-to-one
      errors: true
      output:
        table: scores
        columns: { reward: number, reward_accuracy: number, reward_format: number, reward_brevity: number }
      timeout-seconds: 60
      memory-mb: 1024
  mean:
    inputs: { r: rewards }
    sql: { query: "select category, avg(reward_accuracy) as accuracy, avg(reward) as reward from r group by 1 order by 1" }
"#;

fn a_python_reward_runs_again_when_it_changes_and_not_otherwise(place: Place) {
    let project = Project::at(place);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/reward/reward.py");
    let script = fs::read_to_string(script).unwrap();
    fs::write(project.path("reward.py"), &script).unwrap();
    let pipeline = REWARD.replace("PYTHON", python().to_str().unwrap());
    project.write("p.yaml", &pipeline);
    project.run("p.yaml");
    let shown = project
        .call(&["show", "mean", "--rows", "20", "--json"])
        .expect(0);
    assert!(shown.stdout.contains("product"), "{}", shown.stdout);
    let rows = project
        .call(&[
            "sql",
            "select count(*) as n, sum(reward_accuracy) as correct from scores",
            "--json",
        ])
        .expect(0)
        .json();
    assert_eq!(
        (&rows[0]["n"], &rows[0]["correct"]),
        (&json!(900), &json!(750.0))
    );

    // Limits and the place of the file change no row.
    fs::create_dir(project.path("rewards")).unwrap();
    fs::rename(project.path("reward.py"), project.path("rewards/mine.py")).unwrap();
    let moved = pipeline
        .replace("reward.py", "rewards/mine.py")
        .replace("timeout-seconds: 60", "timeout-seconds: 90");
    project.write("p.yaml", &moved);
    assert_eq!(project.run("p.yaml").ran(), [""; 0]);

    let kinder = script.replace("0.5 * form", "1.0 * form");
    assert_ne!(kinder, script);
    fs::write(project.path("rewards/mine.py"), kinder).unwrap();
    assert_eq!(project.run("p.yaml").ran(), ["mean", "rewards"]);
}

/// A stage with a program in the shell's language, over 64 prompts.
fn shell(script: &str) -> Project {
    let project = Project::new();
    write(&project.path("sums.parquet"), &sums(0..64));
    fs::write(project.path("program.sh"), script).unwrap();
    project.write(
        "p.yaml",
        "
version: 1
name: shell
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  echo:
    inputs: { rows: prompts }
    exec:
      command: [/bin/sh, program.sh]
      files: [program.sh]
      columns: [prompt_id, answer]
      rows: one-to-one
      output: { table: rows, columns: { prompt_id: text, answer: text? } }
      timeout-seconds: 100
      memory-mb: 500
      part-rows: 8
",
    );
    project
}

const RUN: [&str; 5] = ["run", "p.yaml", "--json", "--device", "cpu"];

#[test]
fn a_program_gets_only_the_parts_whose_columns_changed() {
    let project = shell("cat");
    let first = project.run("p.yaml");
    let parts = first.0["stages"][1]["parts"].clone();
    assert!(parts["computed"].as_u64().unwrap() >= 4, "{parts}");

    // Another category, which the program does not get.
    let rows = sums(0..64);
    let mut columns: Vec<(&str, arrow::array::ArrayRef)> = ["id", "problem", "answer"]
        .into_iter()
        .map(|name| {
            let column = rows.column_by_name(name).unwrap();
            (name, std::sync::Arc::clone(column))
        })
        .collect();
    columns.push(("kind", texts((0..64).map(|_| "any"))));
    write(&project.path("sums.parquet"), &table(columns));
    let second = project.run("p.yaml");
    assert_eq!(second.0["stages"][1]["parts"]["computed"], 0);
    assert_eq!(second.digests()["echo.rows"], first.digests()["echo.rows"]);

    // One more row.
    write(&project.path("sums.parquet"), &sums(0..65));
    let third = project.run("p.yaml").0["stages"][1].clone();
    assert_eq!(third["rows"], 65);
    assert!(third["parts"]["computed"].as_u64().unwrap() <= 2, "{third}");
}

#[test]
fn a_program_that_fails_is_named_with_its_last_words() {
    let project = shell("cat > /dev/null; echo 'the model server is down' >&2; exit 4");
    let failed = project.call(&["run", "p.yaml"]).expect(1);
    for words in [
        "echo",
        "/bin/sh program.sh",
        "exit code 4",
        "the model server is down",
    ] {
        assert!(
            failed.stderr.contains(words),
            "no `{words}`: {}",
            failed.stderr
        );
    }
    // Nothing of it was kept.
    fs::write(project.path("program.sh"), "cat").unwrap();
    assert_eq!(project.run("p.yaml").ran(), ["echo"]);
}

#[test]
fn a_program_that_is_killed_fails_the_stage_and_the_next_run_goes_on() {
    let project = shell("echo $$ > process; sleep 1000");
    let running = project.start(&RUN);
    let process = process(&project);
    send_signal(process, "KILL");
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("was killed (signal 9"), "{said}");
    fs::write(project.path("program.sh"), "cat").unwrap();
    assert_eq!(project.run("p.yaml").ran(), ["echo"]);
}

#[test]
fn an_interrupted_run_leaves_no_program_behind() {
    let project = shell("sleep 1000 & echo $! > process; wait");
    let running = project.start(&RUN);
    let process = process(&project);
    let start = Instant::now();
    running.signal("INT");
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(3), "{said}");
    wait_until("the program ends", || (!is_running(process)).then_some(()));
    assert!(
        start.elapsed().as_secs() < 60,
        "long before its own time is up"
    );
}

#[test]
fn a_file_of_the_program_that_is_not_listed_is_found_by_check() {
    let project = shell("cat");
    let text = fs::read_to_string(project.path("p.yaml")).unwrap();
    project.write("p.yaml", &text.replace("      files: [program.sh]\n", ""));
    let wrong = project.call(&["check", "p.yaml"]).expect(2);
    assert!(
        wrong
            .stderr
            .contains("`program.sh` is a file and is not listed in `files`"),
        "{}",
        wrong.stderr
    );
}

/// The number that a program wrote into the file `process`.
fn process(project: &Project) -> u32 {
    wait_until("the program runs", || {
        let text = fs::read_to_string(project.path("process")).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    })
}
