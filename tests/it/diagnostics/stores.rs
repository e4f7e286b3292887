//! Stores that cannot be used, and stores in which something is damaged.

use std::fs;

use super::assert_told;
use super::broken::{Broken, only_the_error};
use crate::support::{Place, Project};

const PIPELINE: &str = "
version: 1
name: stored
seed: 5
stages:
  prompts: { source: { path: data/prompts.parquet } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 2' }
";

fn broken() -> Broken {
    let broken = Broken::new();
    broken.project.write("p.yaml", PIPELINE);
    broken
}

#[test]
fn addresses_that_are_none() {
    let broken = broken();
    for (name, address) in [
        ("scheme", "ftp://host/folder"),
        ("password", "s3://user:secret@bucket/prefix"),
        ("no-bucket", "s3:///prefix"),
        ("chaos", "chaos+file:///tmp/x?sed=3"),
        ("relative-file", "file://folder"),
        ("query", "s3://bucket/prefix?region=x"),
    ] {
        let told = broken.say(&["run", "p.yaml", "--store", address]);
        assert!(told.starts_with("exit code 2\n"), "{name}: {told}");
        assert!(!told.contains("secret"), "{told}");
        assert_told(&format!("store-address-{name}"), &told);
    }
}

#[test]
fn credentials_are_missing() {
    let broken = broken();
    for (name, address) in [
        ("s3", "s3://bucket/prefix"),
        ("gs", "gs://bucket/prefix"),
        ("az", "az://container/prefix"),
    ] {
        let output = broken
            .project
            .command(&["run", "p.yaml", "--store", address])
            // No machine of a cloud answers here, and none is waited for.
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
            .env("HOME", broken.path("home"))
            .output()
            .unwrap();
        let told = broken.told(&output);
        assert_told(&format!("store-credentials-{name}"), &told);
    }
}

#[test]
fn nobody_answers() {
    let broken = broken();
    let output = broken
        .project
        .command(&["run", "p.yaml", "--store", "s3://bucket/prefix"])
        .env("AWS_ENDPOINT", "http://127.0.0.1:9")
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "someone")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-of-theirs")
        .output()
        .unwrap();
    let told = broken.told(&output);
    assert!(!told.contains("a-secret-of-theirs"), "{told}");
    assert_told("store-nobody-answers", &told);
}

#[test]
fn a_bucket_that_is_not_there() {
    let project = Project::at(Place::S3);
    let broken = Broken { project };
    broken.project.write("p.yaml", "version: 1\nname: p\nseed: 1\nstages:\n  prompts: { source: { path: $repo/examples/data/test.parquet } }\n");
    let told = broken.say(&["run", "p.yaml", "--store", "s3://no-such-bucket/prefix"]);
    assert_told("store-no-such-bucket", &told);
}

#[test]
fn a_folder_that_cannot_be_a_store() {
    let broken = broken();
    fs::write(broken.path("a-file"), "words").unwrap();
    for (name, address) in [
        ("file", "a-file"),
        ("below-a-file", "a-file/store"),
        ("kernel", "/proc/metis-store"),
    ] {
        let told = broken.say(&["run", "p.yaml", "--store", address]);
        assert_told(&format!("store-folder-{name}"), &told);
    }
}

#[test]
fn a_disk_that_is_full_while_parts_are_written() {
    let broken = broken();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/train.parquet");
    fs::copy(data, broken.path("data/prompts.parquet")).unwrap();
    let told = only_the_error(&broken.say_without_room(32, &["run", "p.yaml"]));
    assert!(told.starts_with("exit code 1\n"), "{told}");
    assert_told("store-disk-full", &told);
    // Nothing half is taken for whole, and with room the run goes on.
    let outcome = broken.project.run("p.yaml");
    assert_eq!(outcome.ran(), ["few", "prompts"]);
}

#[test]
fn damaged_objects() {
    let broken = broken();
    let project = &broken.project;
    let first = project.run("p.yaml");
    let manifest = |stage: &str| {
        let shown = project.call(&["show", stage, "--json"]).expect(0).json();
        let key = shown["manifest"]["key"].as_str().unwrap().to_owned();
        format!("v1/stages/{key}.json")
    };
    let manifest = manifest("few");
    let whole = project.object(&manifest).unwrap();

    // Half a manifest, words, and one of another stage: each is as good as none, and the stage is made again.
    let other = String::from_utf8(whole.clone()).unwrap().replace('a', "b");
    let half = &whole[..whole.len() / 2];
    for (name, bytes) in [
        ("half", half),
        ("words", &b"words"[..]),
        ("other", other.as_bytes()),
    ] {
        project.write_object(&manifest, bytes);
        let said = broken.say(&["run", "p.yaml", "--quiet"]);
        assert!(said.starts_with("exit code 0\n"), "{said}");
        assert_told(
            &format!("store-damaged-manifest-{name}"),
            &said
                .lines()
                .filter(|line| !line.contains("done in"))
                .collect::<Vec<_>>()
                .join("\n"),
        );
        assert_eq!(project.run("p.yaml").digests(), first.digests());
    }

    // The record of a run is only a record.
    for name in project.objects("v1/runs/") {
        project.write_object(&name, b"{");
    }
    let listed = project.call(&["runs"]).expect(0);
    assert_told("store-damaged-records", &listed.stderr);
    assert!(project.run("p.yaml").ran().is_empty());
}
