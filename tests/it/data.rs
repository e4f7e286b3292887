//! The data operators from file to report, as a user runs them: source, sql, verify, score, split, distill, mix, evaluate.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

/// Two answers to each prompt, made by a query in place of a model. The first is right for every prompt but `c1`; the
/// second is right for sums alone.
const PIPELINE: &str = r"
version: 1
name: data
seed: 3
stages:
  prompts: { source: { path: data.parquet, columns: { id: id, category: kind } } }
  answers:
    inputs: { prompts: prompts }
    sql:
      query: >
        select prompt_id, arrow_cast(n, 'UInt32') as sample, make_array(arrow_cast(n + 1, 'UInt32'), arrow_cast(2, 'UInt32')) as token_ids,
               concat('<think>', n, '</think><answer>', case when prompt_id <> 'c1' and (n = 0 or category = 'sum') then answer else 'x' end,
                      '</answer>') as text,
               'stop' as finish_reason, 'none' as model
        from prompts cross join (values (0), (1)) as numbers(n) order by prompt_id, n
  verdicts: { inputs: { rollouts: answers, prompts: prompts }, verify: { math: {} } }
  scores: { inputs: { verdicts: verdicts }, score: { accuracy: 1.0, format: 0.5 } }
  split: { inputs: { verdicts: verdicts, prompts: prompts }, filter-by-pass-rate: {} }
  self: { inputs: { prompts: split.partial, rollouts: answers, verdicts: verdicts, scores: scores }, distill: { keep: { best: 1 }, require-format: true } }
  examples: { inputs: { examples: [self] }, mix: { shuffle: true, max: { self: 10 } } }
  accuracy: { inputs: { verdicts: verdicts, prompts: prompts }, evaluate: {} }
";

fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        ("id", vec!["a1", "a2", "b1", "c1"]),
        ("problem", vec!["1 + 1?", "2 + 2?", "Read 7.", "Read 8."]),
        ("answer", vec!["2", "4", "7", "8"]),
        ("kind", vec!["sum", "sum", "read", "read"]),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, _)| Field::new(*name, DataType::Utf8, true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays: Vec<ArrayRef> = columns
        .into_iter()
        .map(|(_, values)| Arc::new(StringArray::from(values)) as ArrayRef)
        .collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let mut writer = ArrowWriter::try_new(
        File::create(folder.path().join("data.parquet")).unwrap(),
        schema,
        None,
    )
    .unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    fs::write(folder.path().join("data.yaml"), PIPELINE).unwrap();
    folder
}

fn metis_flow(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_metis-flow"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn run(folder: &Path) -> (Value, String) {
    let output = metis_flow(folder, &["run", "data.yaml", "--json"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (serde_json::from_slice(&output.stdout).unwrap(), stderr)
}

fn sql(folder: &Path, query: &str) -> Value {
    let output = metis_flow(folder, &["sql", query, "--json"]);
    assert!(
        output.status.success(),
        "{query}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Digests of all outputs by stage and port.
fn digests(outcome: &Value) -> Vec<(String, String)> {
    let stages = outcome["stages"].as_array().unwrap().iter();
    stages
        .flat_map(|stage| {
            let outputs = stage["outputs"].as_object().unwrap().iter();
            outputs.map(move |(port, output)| {
                (
                    format!("{}.{port}", stage["stage"]),
                    output["digest"].to_string(),
                )
            })
        })
        .collect()
}

#[test]
fn from_a_file_to_examples_and_a_report() {
    let project = project();
    let folder = project.path();
    let (first, report) = run(folder);

    let rates = sql(
        folder,
        "select prompt_id, samples, correct, pass_rate, stage from pass_rates order by prompt_id",
    );
    assert_eq!(
        rates[0],
        json!({"prompt_id": "a1", "samples": 2, "correct": 2, "pass_rate": 1.0, "stage": "split"})
    );
    assert_eq!(
        rates[2],
        json!({"prompt_id": "b1", "samples": 2, "correct": 1, "pass_rate": 0.5, "stage": "split"})
    );
    assert_eq!(rates[3]["correct"], 0);
    let examples = sql(
        folder,
        "select prompt_id, text, token_ids, messages, origin from examples where stage = 'examples'",
    );
    assert_eq!(
        examples,
        json!([{
            "prompt_id": "b1",
            "text": "<think>0</think><answer>7</answer>",
            "token_ids": [1, 2],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Read 7.", "image": null}]}],
            "origin": "self",
        }])
    );
    let accuracy = sql(
        folder,
        "select category, correct, samples from evaluations order by category",
    );
    assert_eq!(
        accuracy,
        json!([
            {"category": "all", "correct": 5, "samples": 8},
            {"category": "read", "correct": 1, "samples": 4},
            {"category": "sum", "correct": 4, "samples": 4},
        ])
    );
    let rewards = sql(folder, "select sum(reward) as total from scores");
    assert_eq!(rewards, json!([{"total": 9.0}]));

    for expected in [
        "accuracy (95 % interval)",
        "100.0 % (51.0-100.0)",
        "never right: 1, sometimes: 1, always: 2",
        "report: ",
    ] {
        assert!(report.contains(expected), "{expected}\n{report}");
    }
    let path = report
        .lines()
        .find_map(|line| line.strip_prefix("report: "))
        .unwrap();
    let markdown = fs::read_to_string(path).unwrap();
    assert!(
        markdown.contains("| sum | 100.0 % (51.0-100.0) |"),
        "{markdown}"
    );

    let (second, again) = run(folder);
    assert_eq!(digests(&first), digests(&second));
    assert!(
        second["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["status"] == "cached"),
        "{second}"
    );
    assert!(again.contains(path), "the report is the same one\n{again}");
    let runs = sql(
        folder,
        "select r.status, count(*) as stages from runs r join stages s on r.run = s.run group by r.run, r.status order by r.run",
    );
    assert_eq!(
        runs,
        json!([{"status": "done", "stages": 8}, {"status": "done", "stages": 8}])
    );
}

#[test]
fn a_wrong_query_is_the_users_fault_and_names_the_tables() {
    let project = project();
    let folder = project.path();
    run(folder);
    for (query, expected) in [
        ("select * from promts", "tables are prompts, "),
        (
            "select nothing from prompts",
            "columns are pipeline, run, stage, port, prompt_id, ",
        ),
        ("delete from prompts", "DML"),
    ] {
        let output = metis_flow(folder, &["sql", query]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{query}: {stderr}");
    }
    let output = metis_flow(
        folder,
        &[
            "sql",
            "select prompt_id, answer from prompts where stage = 'prompts' order by 1 limit 1",
        ],
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["prompt_id", "answer", "a1", "2"]);
    assert_eq!(
        metis_flow(folder, &["sql", "select 1", "--run", "nothing"])
            .status
            .code(),
        Some(2)
    );
}
