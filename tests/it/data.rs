//! The data operators from file to report, as a user runs them: source, sql, verify, score, split, distill, mix, evaluate.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Outcome, Place, Project};
use crate::tables::{table, texts, write};

on_every_store!(
    from_a_file_to_examples_and_a_report,
    a_wrong_query_is_the_users_fault_and_names_the_tables,
);

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

fn project(place: Place) -> Project {
    let project = Project::at(place);
    let data = table(vec![
        ("id", texts(["a1", "a2", "b1", "c1"])),
        ("problem", texts(["1 + 1?", "2 + 2?", "Read 7.", "Read 8."])),
        ("answer", texts(["2", "4", "7", "8"])),
        ("kind", texts(["sum", "sum", "read", "read"])),
    ]);
    write(&project.path("data.parquet"), &data);
    project.write("data.yaml", PIPELINE);
    project
}

fn sql(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

fn from_a_file_to_examples_and_a_report(place: Place) {
    let project = project(place);
    let run = || project.call(&["run", "data.yaml", "--json"]).expect(0);
    let first = run();
    let report = &first.stderr;

    let rates = sql(
        &project,
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
        &project,
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
        &project,
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
    let rewards = sql(&project, "select sum(reward) as total from scores");
    assert_eq!(rewards, json!([{"total": 9.0}]));

    for expected in [
        "accuracy (95 % interval)",
        "100.0 % (51.0-100.0)",
        "never right: 1, sometimes: 1, always: 2",
    ] {
        assert!(report.contains(expected), "{expected}\n{report}");
    }
    let second = run();
    let path = report
        .lines()
        .find_map(|line| line.strip_prefix("report: "))
        .unwrap();
    let markdown = fs::read_to_string(path).unwrap();
    assert!(
        markdown.contains("| sum | 100.0 % (51.0-100.0) |"),
        "{markdown}"
    );
    assert!(
        second.stderr.contains(path),
        "the report is the same one\n{}",
        second.stderr
    );
    let (first, second) = (Outcome(first.json()), Outcome(second.json()));
    assert_eq!(first.digests(), second.digests());
    assert!(second.ran().is_empty(), "{:?}", second.statuses());
    let runs = sql(
        &project,
        "select r.status, count(*) as stages from runs r join stages s on r.run = s.run group by r.run, r.status order by r.run",
    );
    assert_eq!(
        runs,
        json!([{"status": "done", "stages": 8}, {"status": "done", "stages": 8}])
    );
}

fn a_wrong_query_is_the_users_fault_and_names_the_tables(place: Place) {
    let project = project(place);
    project.run("data.yaml");
    for (query, expected) in [
        ("select * from promts", "tables are prompts, "),
        (
            "select nothing from prompts",
            "columns are pipeline, run, stage, port, prompt_id, ",
        ),
        ("delete from prompts", "DML"),
    ] {
        let refused = project.call(&["sql", query]).expect(2);
        assert!(
            refused.stderr.contains(expected),
            "{query}: {}",
            refused.stderr
        );
    }
    let query = "select prompt_id, answer from prompts where stage = 'prompts' order by 1 limit 1";
    let printed = project.call(&["sql", query]).expect(0).stdout;
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["prompt_id", "answer", "a1", "2"]);
    project
        .call(&["sql", "select 1", "--run", "nothing"])
        .expect(2);
}
