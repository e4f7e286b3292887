//! Holds the table of allowed edges between our crates and of who may name a heavy dependency.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crate -> crates of ours that it may use. Everything may be used by the root package.
const ARROWS: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("engine-core", &["schemas"]),
    ("engine-plan", &["schemas", "engine-core"]),
    ("engine-store", &["schemas", "engine-core"]),
    ("engine-query", &["schemas", "engine-core", "engine-store"]),
    (
        "engine-runtime",
        &["schemas", "engine-core", "engine-plan", "engine-store"],
    ),
    ("operators-verdict", &[]),
    (
        "operators-data",
        &[
            "schemas",
            "engine-core",
            "engine-query",
            "operators-model",
            "operators-verdict",
            "operators-verifier",
        ],
    ),
    ("operators-endpoint", &[]),
    (
        "operators-model",
        &[
            "schemas",
            "engine-core",
            "engine-query",
            "operators-endpoint",
            "operators-verdict",
            "operators-verifier",
        ],
    ),
    (
        "operators-verifier",
        &["engine-core", "operators-endpoint", "operators-verdict"],
    ),
    ("operators-torch", &["engine-core"]),
    ("xtask", &[]),
];

/// Heavy third-party crate -> crates of ours that may name it outside of tests.
const OWNERS: &[(&str, &[&str])] = &[
    ("tch", &["operators-torch"]),
    ("torch-sys", &[]),
    ("datafusion", &["engine-query", "operators-data"]),
    ("object_store", &["engine-store"]),
    ("parquet", &["engine-store", "operators-data"]),
    ("tokenizers", &["operators-model"]),
    ("petgraph", &["engine-plan"]),
    ("miette", &["metis-flow"]),
    ("clap", &["metis-flow"]),
];

#[test]
fn crates_use_only_what_the_table_allows() {
    let edges = edges();
    let ours: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let owners: BTreeMap<&str, &[&str]> = OWNERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, dependencies) in &edges {
        for dependency in dependencies {
            if ours.contains(dependency.as_str()) && name != "metis-flow" {
                let allowed = arrows
                    .get(name.as_str())
                    .unwrap_or_else(|| panic!("crate `{name}` is not in the table of arrows"));
                if !allowed.contains(&dependency.as_str()) {
                    wrong.push(format!("{name} -> {dependency}"));
                }
            }
            if owners
                .get(dependency.as_str())
                .is_some_and(|owners| !owners.contains(&name.as_str()))
            {
                wrong.push(format!("{name} names {dependency}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "edges outside of the table in tests/it/layers.rs: {wrong:#?}"
    );
}

/// Normal (not development or build) dependencies of every workspace member.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"]
        .as_array()
        .expect("packages are listed");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .expect("dependencies are listed");
            let normal = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].is_null());
            let names = normal
                .map(|dependency| dependency["name"].as_str().expect("a name").to_owned())
                .collect();
            (package["name"].as_str().expect("a name").to_owned(), names)
        })
        .collect()
}
