//! What a change of the pipeline, the data or the store makes run again, and what not.

use std::fs;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use crate::support::{Outcome, Place, Project};
use crate::tables::{sums, write, write_with};

on_every_store!(
    a_second_run_finds_everything_with_the_same_digests,
    comments_order_and_white_space_run_nothing_again,
    other_names_and_another_place_run_nothing_again,
    a_changed_query_runs_that_stage_and_stops_where_rows_are_equal,
    a_seed_runs_nothing_again_that_draws_nothing,
    a_moved_data_file_changes_nothing_and_a_changed_one_does,
    a_lost_or_cut_part_is_made_again_and_nothing_else,
    equal_work_under_two_names_is_done_once,
    other_row_groups_and_compression_run_nothing_again,
    another_address_of_the_store_runs_nothing_again,
    a_new_version_of_an_operator_runs_that_stage_alone,
    a_changed_row_runs_what_reads_it_and_stops_where_rows_are_equal,
);

const PIPELINE: &str = "
version: 1
name: cached
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
  longest:
    inputs: { few: few }
    sql: { query: 'select prompt_id, length(solution) as length from few order by length desc, prompt_id limit 3' }
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project
}

/// Runs the changed pipeline in the same store and says what ran again.
fn ran_after(project: &Project, change: impl Fn(&str) -> String) -> Vec<String> {
    project.run("p.yaml");
    project.write("p.yaml", &change(PIPELINE));
    project.run("p.yaml").ran()
}

fn a_second_run_finds_everything_with_the_same_digests(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    assert_eq!(first.ran(), ["few", "kinds", "longest", "prompts"]);
    let second = project.run("p.yaml");
    assert!(
        second.statuses().values().all(|status| status == "cached"),
        "{:?}",
        second.statuses()
    );
    assert_eq!(second.digests(), first.digests());
}

fn comments_order_and_white_space_run_nothing_again(place: Place) {
    let reordered = |text: &str| {
        let (head, stages) = text.split_once("stages:").unwrap();
        let (before, last) = stages.split_once("  longest:").unwrap();
        let stages = before
            .replace("source: { path: ", "source:   { path:   ")
            .replace(
                "columns: { id: id, solution: solution,",
                "columns: { solution: solution, id: id,",
            );
        format!("# A comment.\n{head}\nstages:\n  longest:{last}{stages}")
    };
    assert_eq!(ran_after(&project(place), reordered), [""; 0]);
}

fn other_names_and_another_place_run_nothing_again(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    project.write(
        "elsewhere/q.yaml",
        &PIPELINE
            .replace("name: cached", "name: other")
            .replace("few", "some"),
    );
    let store = project.store_url();
    let finished = project
        .call(&[
            "run",
            "elsewhere/q.yaml",
            "--json",
            "--threads",
            "1",
            "--store",
            &store,
        ])
        .expect(0);
    let outcome = Outcome(finished.json());
    // The names of tables inside a query are part of the query, so only the stages that write other SQL run.
    assert_eq!(outcome.ran(), ["kinds", "longest"]);
}

fn a_changed_query_runs_that_stage_and_stops_where_rows_are_equal(place: Place) {
    let project = project(place);
    assert_eq!(
        ran_after(&project, |text| text
            .replace("desc, prompt_id", "asc, prompt_id")),
        ["longest"]
    );
    // Other text that means the same.
    let same_query = |text: &str| {
        text.replace(
            "order by prompt_id limit 30",
            "ORDER  BY p.prompt_id ASC limit 30 offset 0",
        )
    };
    assert_eq!(ran_after(&project, same_query), [""; 0]);
    // Another query, the same rows: what follows stays cached.
    let same_rows = |text: &str| text.replace("prompt_id limit 30", "prompt_id, category limit 30");
    assert_eq!(ran_after(&project, same_rows), ["few"]);
    assert_eq!(
        ran_after(&project, |text| text.replace("limit 30", "limit 29")),
        ["few", "kinds", "longest"]
    );
}

fn a_seed_runs_nothing_again_that_draws_nothing(place: Place) {
    assert_eq!(
        ran_after(&project(place), |text| text.replace("seed: 1", "seed: 2")),
        [""; 0]
    );
}

fn a_moved_data_file_changes_nothing_and_a_changed_one_does(place: Place) {
    let project = project(place);
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/test.parquet");
    fs::copy(data, project.path("moved.parquet")).unwrap();
    let with = |name: &str| PIPELINE.replace("$repo/examples/data/test.parquet", name);
    assert_eq!(ran_after(&project, |_| with("moved.parquet")), [""; 0]);
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/train.parquet");
    fs::copy(other, project.path("moved.parquet")).unwrap();
    assert_eq!(
        project.run("p.yaml").ran(),
        ["few", "kinds", "longest", "prompts"]
    );
}

fn a_lost_or_cut_part_is_made_again_and_nothing_else(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    let shown = project.call(&["show", "few", "--json"]).expect(0).json();
    let part = shown["manifest"]["outputs"]["rows"]["dataset"]["parts"][0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    let whole = project.object(&part).unwrap();
    let cut = whole.len() / 2;
    for (damage, words) in [
        (None, "is missing"),
        (Some(&whole[..cut]), "bytes instead of"),
    ] {
        match damage {
            None => project.remove_object(&part),
            Some(bytes) => project.write_object(&part, bytes),
        }
        let plan = project.call(&["plan", "p.yaml", "--json"]).expect(0).json();
        assert!(
            plan["stages"][1]["reason"]
                .as_str()
                .unwrap()
                .contains(words),
            "{plan}"
        );
        let second = project.run("p.yaml");
        assert_eq!(second.ran(), ["few"]);
        assert_eq!(second.digests(), first.digests());
        assert!(
            second.0["stages"][1]["warnings"]
                .to_string()
                .contains("cannot be used"),
            "{}",
            second.0
        );
        assert_eq!(project.object(&part).unwrap(), whole);
    }
}

fn equal_work_under_two_names_is_done_once(place: Place) {
    let project = Project::at(place);
    let twin = "  few-again:\n    inputs: { p: prompts }\n    sql: { query: 'select * from p order by prompt_id limit 30' }\n";
    project.write("p.yaml", &format!("{PIPELINE}{twin}"));
    let outcome = project.run("p.yaml");
    let statuses = outcome.statuses();
    let mut pair = [statuses["few"].as_str(), statuses["few-again"].as_str()];
    pair.sort_unstable();
    assert_eq!(pair, ["cached", "done"]);
    assert_eq!(
        outcome.digests()["few.rows"],
        outcome.digests()["few-again.rows"]
    );
}

fn read(path: &Path) -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap();
    let schema = std::sync::Arc::clone(builder.schema());
    let batches: Vec<_> = builder.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn other_row_groups_and_compression_run_nothing_again(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/test.parquet");
    let rows = read(Path::new(data));
    project.write(
        "p.yaml",
        &PIPELINE.replace("$repo/examples/data/test.parquet", "again.parquet"),
    );
    for (name, properties) in [
        (
            "small row groups",
            WriterProperties::builder().set_max_row_group_row_count(Some(100)),
        ),
        (
            "no compression",
            WriterProperties::builder().set_compression(Compression::UNCOMPRESSED),
        ),
        (
            "no dictionaries, zstd",
            WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_dictionary_enabled(false),
        ),
    ] {
        write_with(&project.path("again.parquet"), &rows, properties.build());
        assert_eq!(project.run("p.yaml").ran(), [""; 0], "{name}");
    }
    // Two files of a folder are their rows one after the other.
    fs::create_dir(project.path("halves")).unwrap();
    let half = rows.num_rows() / 2;
    for (name, part) in [
        ("0.parquet", rows.slice(0, half)),
        ("1.parquet", rows.slice(half, rows.num_rows() - half)),
    ] {
        write(&project.path("halves").join(name), &part);
    }
    project.write(
        "p.yaml",
        &PIPELINE.replace("$repo/examples/data/test.parquet", "halves"),
    );
    assert_eq!(project.run("p.yaml").ran(), [""; 0]);
}

fn another_address_of_the_store_runs_nothing_again(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    let address = match place {
        Place::Local => {
            fs::rename(project.path(".metis"), project.path("moved")).unwrap();
            format!("file://{}", project.path("moved").display())
        }
        Place::S3 => format!("{}/", project.store_url()),
    };
    let run = |flags: &[&str]| {
        let flags = [&["run", "p.yaml", "--json", "--device", "cpu"], flags].concat();
        Outcome(project.call(&flags).expect(0).json())
    };
    let again = run(&["--store", &address, "--threads", "1"]);
    assert_eq!(again.ran(), [""; 0]);
    assert_eq!(again.digests(), first.digests());
    // Neither the place nor the number of threads is in what is made.
    let other = project.path("other");
    let anew = run(&["--store", other.to_str().unwrap(), "--threads", "1"]);
    assert_eq!(anew.ran().len(), 4);
    assert_eq!(anew.digests(), first.digests());
}

/// Leaves the store as a program with an older version of an operator would have.
fn age(project: &Project, stage: &str) {
    let shown = project.call(&["show", stage, "--json"]).expect(0).json();
    let key = shown["manifest"]["key"].as_str().unwrap().to_owned();
    let other = key.chars().rev().collect::<String>();
    let mut manifest = project.json_object(&format!("v1/stages/{key}.json"));
    manifest["key"] = json!(other);
    manifest["material"]["version"] = json!(0);
    project.write_object(
        &format!("v1/stages/{other}.json"),
        manifest.to_string().as_bytes(),
    );
    project.remove_object(&format!("v1/stages/{key}.json"));
    for name in project.objects("v1/runs/") {
        let text = String::from_utf8(project.object(&name).unwrap()).unwrap();
        if text.contains(&key) {
            project.write_object(&name, text.replace(&key, &other).as_bytes());
        }
    }
}

fn a_new_version_of_an_operator_runs_that_stage_alone(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    age(&project, "few");
    let why = project
        .call(&["why", "few", "p.yaml", "--json"])
        .expect(0)
        .json();
    assert_eq!(why["state"], "to-run", "{why}");
    assert_eq!(why["earlier"]["differs"], "version", "{why}");
    let second = project.run("p.yaml");
    assert_eq!(second.ran(), ["few"]);
    assert_eq!(second.digests(), first.digests());
}

const ROWS: &str = "
version: 1
name: rows
seed: 1
stages:
  prompts:
    source: { path: data.parquet, columns: { id: id, category: kind } }
  echo:
    inputs: { rows: prompts }
    exec:
      command: [cat]
      columns: [prompt_id, answer]
      rows: one-to-one
      output: { table: rows, columns: { prompt_id: text, answer: text } }
      timeout-seconds: 60
      memory-mb: 512
      part-rows: 100
  kinds:
    inputs: { p: prompts }
    sql: { query: 'select category, count(*) as n from p group by category order by category' }
  long:
    inputs: { kinds: kinds }
    sql: { query: 'select category from kinds where n > 10' }
";

fn a_changed_row_runs_what_reads_it_and_stops_where_rows_are_equal(place: Place) {
    let project = Project::at(place);
    project.write("p.yaml", ROWS);
    let data = project.path("data.parquet");
    write(&data, &sums(0..4000));
    let first = project.run("p.yaml");
    let parts = |outcome: &Outcome| -> Value {
        let stages = outcome.0["stages"].as_array().unwrap();
        let stage = stages.iter().find(|stage| stage["stage"] == "echo");
        stage.unwrap()["parts"].clone()
    };
    let all = parts(&first)["total"].as_u64().unwrap();
    assert_eq!(parts(&first)["computed"], all, "{}", parts(&first));
    assert!(all >= 20, "{all} parts of 100 rows");

    // Row 1001 becomes another one of the same kind.
    let changed = (0..4000).map(|row| if row == 1001 { 9001 } else { row });
    write(&data, &sums(changed));
    let second = project.run("p.yaml");
    assert_eq!(second.ran(), ["echo", "kinds", "prompts"]);
    assert!(parts(&second)["reused"].as_u64().unwrap() >= all - 3);
    assert!(parts(&second)["computed"].as_u64().unwrap() <= 3);

    // A row in the middle, one at the end, and one less at the start.
    let more = (1..2000).chain([9002]).chain(2000..4001);
    write(&data, &sums(more));
    let third = project.run("p.yaml");
    let counts = parts(&third);
    assert_eq!(counts["rows"], 4001);
    assert!(counts["computed"].as_u64().unwrap() <= 9, "{counts}");
    assert!(counts["reused"].as_u64().unwrap() >= all - 9, "{counts}");

    // As it was: all parts are there, and nothing runs.
    write(&data, &sums(0..4000));
    let fourth = project.run("p.yaml");
    assert_eq!(fourth.ran(), [""; 0]);
    assert_eq!(fourth.digests(), first.digests());
}
