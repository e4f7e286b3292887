//! Command lines that cannot be right, and commands whose output finds no room.

use std::process::Stdio;

use super::assert_told;
use super::broken::{Broken, only_the_error};

const PIPELINE: &str = "
version: 1
name: small
seed: 5
params:
  limit: 2
stages:
  prompts: { source: { path: data/prompts.parquet } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit ${params.limit}' }
  count:
    inputs: { few: few }
    sql: { query: 'select count(*) as n from few' }
";

fn small() -> Broken {
    let broken = Broken::new();
    broken.project.write("small.yaml", PIPELINE);
    broken
}

/// Whatever of these is found out when, nothing is computed.
#[test]
fn choices_and_changes_that_name_nothing() {
    let broken = small();
    for (name, arguments) in [
        ("set-without-value", &["--set", "few"][..]),
        ("set-unknown-stage", &["--set", "fewer.query=select 1"]),
        ("set-unknown-key", &["--set", "few.qery=select 1"]),
        ("set-wrong-type", &["--set", "prompts.limit=many"]),
        ("set-unknown-parameter", &["--set", "params.limits=3"]),
        ("set-envelope", &["--set", "few.inputs=prompts"]),
        ("overlay-not-there", &["--overlay", "nowhere.yaml"]),
        ("from-unknown", &["--from", "fewer"]),
        ("from-not-made", &["--from", "few"]),
        ("to-unknown", &["--to", "fewer"]),
        ("only-unknown", &["--only", "few,cuont"]),
        ("only-not-made", &["--only", "count"]),
        ("force-unknown", &["--force", "fewer"]),
        ("pin-without-run", &["--pin", "few"]),
        ("pin-unknown-stage", &["--pin", "fewer=latest"]),
        ("pin-unknown-run", &["--pin", "few=latest"]),
        ("threads-zero", &["--threads", "0"]),
        ("memory-no-size", &["--memory", "lots"]),
        ("device-unknown", &["--device", "gpu"]),
        ("otlp-no-url", &["--otlp", "collector"]),
        ("from-and-only", &["--from", "few", "--only", "count"]),
        ("flag-unknown", &["--treads", "2"]),
    ] {
        let told = broken.say(&[&["run", "small.yaml"], arguments].concat());
        let told = only_the_error(&told);
        assert!(!told.starts_with("exit code 0\n"), "{name}: {told}");
        assert_told(&format!("run-{name}"), &told);
        let stages = broken.project.objects("v1/stages/");
        assert!(stages.is_empty(), "{name}: {stages:?}");
    }
}

#[test]
fn things_that_are_not_in_the_store() {
    let broken = small();
    broken.project.run("small.yaml");
    for (name, arguments) in [
        ("show-unknown", &["show", "fewer"][..]),
        ("show-unknown-run", &["show", "few@latest~7"]),
        ("diff-unknown", &["diff", "latest", "latest~3"]),
        (
            "export-unknown-ending",
            &["export", "few", "--to", "few.xlsx"],
        ),
        (
            "export-into-nothing",
            &["export", "few", "--to", "no/such/few.csv"],
        ),
        (
            "export-a-table-twice",
            &["export", "few", "--to", "small.yaml"],
        ),
        ("replay-no-quarantine", &["replay", "few"]),
        ("replay-unknown", &["replay", "fewer"]),
        ("why-unknown", &["why", "fewer"]),
        ("lineage-unknown", &["lineage", "0123456789ab"]),
        ("sql-unknown-table", &["sql", "select * from prompt"]),
        ("sql-unknown-run", &["sql", "select 1", "--run", "latest~9"]),
        ("gc-no-age", &["gc", "--older-than", "yesterday"]),
        ("command-unknown", &["rum", "small.yaml"]),
    ] {
        let told = broken.say(arguments);
        assert!(told.starts_with("exit code 2\n"), "{name}: {told}");
        assert_told(name, &told);
    }
}

/// A reader of standard output that has no room is told, and the command does not end as if all were well.
#[test]
fn a_full_disk_behind_standard_output() {
    let broken = small();
    broken.project.run("small.yaml");
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    let output = broken
        .project
        .command(&["sql", "select prompt_id from prompts", "--json"])
        .stdout(full())
        .output()
        .unwrap();
    assert_told("output-to-a-full-disk", &broken.told(&output));
}

#[test]
fn a_full_disk_behind_an_export() {
    let broken = small();
    broken.project.run("small.yaml");
    for ending in ["csv", "jsonl", "parquet"] {
        let file = format!("full.{ending}");
        let told = broken.say_without_room(0, &["export", "few", "--to", &file]);
        assert_told(&format!("export-to-a-full-disk-{ending}"), &told);
        assert!(!broken.path(&file).exists());
    }
}
