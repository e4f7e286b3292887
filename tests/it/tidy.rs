//! What the tree promises about itself: every operator has its place, and every pipeline in it is right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemas::yaml::Document;

use crate::support::Project;

/// A source file that is longer has more than one subject.
const MOST_LINES: usize = 700;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder of the tree, sorted. Build outputs and hidden folders are none of ours.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn kinds() -> Vec<&'static str> {
    metis_flow::registry()
        .entries()
        .map(|entry| entry.kind)
        .collect()
}

/// Path of an operator's source below `operators/`: `data/src/mix.rs`, or `model/src/rl_train` for a folder.
fn source(kind: &str) -> Option<String> {
    let stem = kind.replace('-', "_");
    let places = ["data", "model", "verdict", "torch"]
        .into_iter()
        .flat_map(|name| {
            [
                format!("{name}/src/{stem}.rs"),
                format!("{name}/src/{stem}"),
            ]
        });
    let mut there = places.filter(|place| root().join("operators").join(place).exists());
    there.next()
}

#[test]
fn every_operator_is_in_the_file_that_its_name_says() {
    let lost: Vec<&str> = kinds()
        .into_iter()
        .filter(|kind| source(kind).is_none())
        .collect();
    assert!(
        lost.is_empty(),
        "no operators/*/src/<kind>.rs or folder for {lost:?}"
    );
}

#[test]
fn every_operator_is_in_the_table_with_its_file() {
    let table = std::fs::read_to_string(root().join("operators/README.md")).unwrap();
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split("` | `");
            Some((cells.next()?, cells.next()?.split('`').next()?))
        })
        .collect();
    let listed: Vec<&str> = rows.iter().map(|(kind, _)| *kind).collect();
    let (listed, registered): (BTreeSet<&str>, BTreeSet<&str>) =
        (listed.into_iter().collect(), kinds().into_iter().collect());
    assert_eq!(
        listed, registered,
        "the table in operators/README.md and the registered kinds differ"
    );
    for (kind, file) in rows {
        assert_eq!(
            Some(file.trim_end_matches('/')),
            source(kind).as_deref(),
            "file of `{kind}` in operators/README.md"
        );
    }
}

#[test]
fn every_operator_is_used_by_a_pipeline_of_the_tree() {
    let registry = metis_flow::registry();
    let used: BTreeSet<&str> = files(&root().join("pipelines"), "yaml")
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let document = Document::new(file.display().to_string(), text);
            let plan = engine_plan::plan(&document, &registry)
                .unwrap_or_else(|problems| panic!("{}: {problems:#?}", file.display()));
            plan.stages
                .into_iter()
                .map(|stage| stage.kind)
                .collect::<Vec<_>>()
        })
        .collect();
    let unused: Vec<&str> = kinds()
        .into_iter()
        .filter(|kind| !used.contains(kind))
        .collect();
    assert!(unused.is_empty(), "no file in pipelines/ uses {unused:?}");
}

#[test]
fn every_pipeline_passes_the_check() {
    let project = Project::new();
    for file in files(&root().join("pipelines"), "yaml") {
        project.call(&["check", file.to_str().unwrap()]).expect(0);
    }
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<String> = files(root(), "rs")
        .into_iter()
        .filter_map(|file| {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            (lines > MOST_LINES).then(|| format!("{}: {lines} lines", file.display()))
        })
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:#?}");
}
