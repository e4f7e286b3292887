//! What a user reads when a pipeline, a file, a store or a command line is broken: one clear message for each mistake.
//!
//! Cases are pipelines in `tests/fixtures/broken`, checked or run in a project made for the test; every message is in a
//! snapshot as a whole. `INSTA_UPDATE=always cargo test --test it -- diagnostics` writes them anew: read them as a user would.

mod broken;
mod commands;
mod compose;
mod files;
mod pipelines;
mod stores;

/// Compares what a user is told with the snapshot of that name. What differs from run to run or with every change of an
/// example is left out.
fn assert_told(name: &str, told: &str) {
    let filters = vec![
        (r"\b[0-9a-f]{64}\b", "[digest]"),
        (r"\b[0-9a-f]{12}\b", "[digest]"),
        (r"\b\d{8}T\d{9}Z-[0-9a-f]{6}\b", "[run]"),
        (r"\.\d+\.partial", ".[process].partial"),
        (r"127\.0\.0\.1:\d+", "[server]"),
    ];
    insta::with_settings!({ filters => filters, omit_expression => true }, {
        insta::assert_snapshot!(name.replace('-', "_"), told);
    });
}
