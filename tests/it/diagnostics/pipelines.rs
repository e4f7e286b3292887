//! Pipelines that cannot be right: `check` finds out, all mistakes in one go, with exit code 2.

use super::assert_told;
use super::broken::{Broken, repository};
use crate::support::Project;

/// A test for each pipeline, named like its file.
macro_rules! checked {
    ($($name:ident),* $(,)?) => {
        /// The files that tests here are about.
        const CHECKED: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                let told = Broken::new().check(&stringify!($name).replace('_', "-"));
                assert!(told.starts_with("exit code 2\n"), "{told}");
                assert_told(stringify!($name), &told);
            }
        )*
    };
}

checked![
    // The text.
    a_list,
    a_word,
    alias_bomb,
    duplicate_key,
    empty,
    merge_key,
    not_utf8,
    not_yaml,
    only_a_comment,
    tabs,
    two_documents,
    unclosed_quote,
    unknown_alias,
    wrong_indentation,
    // The envelope.
    empty_stage,
    inputs_are_a_word,
    inputs_are_null,
    missing_everything,
    missing_top_keys,
    no_operator,
    no_stages,
    not_closed_parameter,
    number_not_finite,
    number_too_large,
    old_yaml_words,
    several_problems,
    unknown_key,
    wrong_names,
    wrong_seeds,
    wrong_type,
    wrong_version,
    // The graph.
    cycle,
    inputs_of_a_source,
    missing_column,
    output_without_port,
    self_input,
    unknown_stage_or_port,
    wrong_artifact,
    wrong_column_type,
    // Values.
    augment_forms,
    augment_values,
    distill_tables,
    distill_values,
    exec_values,
    filter_bands,
    filter_fractions,
    filter_posterior,
    filter_values,
    mix_values,
    quarantine_values,
    rl_alarms,
    rl_filters,
    rl_judge,
    rl_knobs,
    rl_parts,
    rl_values,
    rollout_values,
    sampling_values,
    score_values,
    sft_evaluate,
    sft_length,
    sft_values,
    source_values,
    split_values,
    verify_judge,
    verify_rules,
    verify_several,
    // SQL.
    sql_no_query,
    sql_not_the_same_twice,
    sql_syntax,
    sql_unknown_names,
    // Files, as far as a look at them tells.
    corrupt_parquet,
    data_circle_of_links,
    data_folder_of_two_schemas,
    data_folder_without_parquet,
    data_image_not_there,
    data_no_bytes,
    data_path_through_a_file,
    data_text_file,
    data_two_layouts,
    data_wrong_columns,
    data_wrong_layout,
];

#[test]
fn a_file_that_is_not_there() {
    assert_told("a_file_that_is_not_there", &Broken::new().check("nowhere"));
}

#[test]
fn a_folder_in_the_place_of_a_file() {
    let told = Broken::new().say(&["check", "data"]);
    assert_told("a_folder_in_the_place_of_a_file", &told);
}

#[test]
fn a_right_pipeline_is_ok() {
    let project = Project::new();
    project.write(
        "right.yaml",
        "version: 1\nname: right\nseed: 1\nstages:\n  prompts: { source: { path: $repo/examples/data/test.parquet } }\n",
    );
    let right = project.call(&["check", "right.yaml"]).expect(0);
    assert_eq!(
        (right.stdout.as_str(), right.stderr.as_str()),
        ("", "ok: 1 stage\n")
    );
    let json = project.call(&["check", "right.yaml", "--json"]).expect(0);
    assert_eq!(json.json()["ok"], true);
    assert_eq!(json.json()["stages"], 1);
}

#[test]
fn problems_are_data_on_request() {
    let broken = Broken::new();
    let finished = broken
        .project
        .call(&["check", "unknown-key.yaml", "--json"])
        .expect(2);
    assert_eq!(finished.stderr, "");
    let json = finished.json();
    let first = &json["problems"][0];
    assert_eq!(
        (&first["code"], &first["file"]),
        (&"unknown-key".into(), &"unknown-key.yaml".into())
    );
    assert_eq!(
        (&first["place"]["line"], &first["place"]["column"]),
        (&11.into(), &7.into())
    );
}

/// A pipeline that nobody looks at is a message that nobody reads.
#[test]
fn every_broken_pipeline_has_its_test() {
    let tests = [CHECKED, super::files::RUN, super::files::ON_MODELS].concat();
    let mut forgotten = Vec::new();
    let mut count = 0;
    for entry in repository("tests/fixtures/broken").read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.trim_end_matches(".yaml").replace('-', "_");
        // Pipelines in several files are shown elsewhere.
        if stem.starts_with("compose") {
            continue;
        }
        count += 1;
        if !tests.contains(&stem.as_str()) {
            forgotten.push(name);
        }
    }
    assert!(forgotten.is_empty(), "{forgotten:?}");
    assert!(count >= 60, "{count}");
}
