//! Choosing data, as a user does it: a split without leaks, bands of difficulty, more samples where they are needed, and
//! examples without passages of the test set.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Place, Project};
use crate::tables::{sums, table, texts, write};

on_every_store!(
    prompts_are_split_banded_and_freed_of_test_questions,
    added_prompts_leave_the_others_in_their_port,
);

/// Four answers to each sum, of which as many are right as the sum is modulo 5.
const PIPELINE: &str = r"
version: 1
name: curate
seed: 3
stages:
  all: { source: { path: data.parquet, columns: { id: id, category: kind } } }
  exam: { source: { path: exam.parquet, columns: { id: id, category: kind } } }
  answers:
    inputs: { prompts: all }
    sql:
      query: >
        select prompt_id, arrow_cast(n, 'UInt32') as sample, make_array(arrow_cast(n + 1, 'UInt32')) as token_ids,
               concat('<think>try ', n, '</think><answer>', case when cast(answer as int) % 5 > n then answer else 'x' end, '</answer>') as text,
               'stop' as finish_reason, 'none' as model
        from prompts cross join (values (0), (1), (2), (3)) as numbers(n) order by prompt_id, n
  verdicts: { inputs: { rollouts: answers, prompts: all }, verify: { math: {} } }
  prompts: { inputs: { rows: all }, split: { shares: { train: 0.75, validation: 0.25 } } }
  rollouts: { inputs: { rows: answers }, split: { shares: { train: 0.75, validation: 0.25 } } }
  again: { inputs: { v: verdicts }, sql: { query: select * from v order by prompt_id desc } }
  difficulty:
    inputs: { verdicts: [verdicts, again], prompts: all }
    filter-by-pass-rate:
      bands: { easy: { from: 0.75, below: 1 }, hard: { above: 0, to: 0.5 } }
      posterior: { alpha: 1, beta: 1, credible: 0.9, more-if-wider-than: 0.47 }
  self:
    inputs: { prompts: difficulty.hard, rollouts: answers, verdicts: verdicts, evaluation: [exam] }
    distill: { keep: { first: 1 }, require-format: true, decontaminate: { words: 5 } }
  examples: { inputs: { examples: [self] }, mix: { shuffle: false, ratio: { self: 1 }, total: 10 } }
";

fn project(place: Place, rows: u32) -> Project {
    let project = Project::at(place);
    write(&project.path("data.parquet"), &sums(0..rows));
    let exam = table(vec![
        ("id", texts(["exam-1", "exam-2"])),
        (
            "problem",
            texts([
                "Now tell me, what is 11 + 1?",
                "Which day comes after Sunday?",
            ]),
        ),
        ("answer", texts(["12", "Monday"])),
        ("kind", texts(["sum", "day"])),
    ]);
    write(&project.path("exam.parquet"), &exam);
    project.write("curate.yaml", PIPELINE);
    project
}

/// The prompts on an output of a stage.
fn ids(project: &Project, table: &str, stage: &str, port: &str) -> BTreeSet<String> {
    let query = format!(
        "select distinct prompt_id from {table} where stage = '{stage}' and port = '{port}'"
    );
    let rows = project.call(&["sql", &query, "--json"]).expect(0).json();
    let ids = rows.as_array().unwrap().iter();
    ids.map(|row| row["prompt_id"].as_str().unwrap().to_owned())
        .collect()
}

fn sql(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

fn named(rows: impl Iterator<Item = u32>) -> BTreeSet<String> {
    rows.map(|row| format!("sum-{row:06}")).collect()
}

fn prompts_are_split_banded_and_freed_of_test_questions(place: Place) {
    let project = project(place, 100);
    project.run("curate.yaml");

    let (train, validation) = (
        ids(&project, "prompts", "prompts", "train"),
        ids(&project, "prompts", "prompts", "validation"),
    );
    assert_eq!(train.len() + validation.len(), 100);
    assert!((10..40).contains(&validation.len()), "{}", validation.len());
    // The rollouts of a prompt are on the same side as the prompt.
    assert_eq!(ids(&project, "rows", "rollouts", "train"), train);
    assert_eq!(ids(&project, "rows", "rollouts", "validation"), validation);

    // The answer is the row plus 1.
    let of_rest =
        |rests: &'static [u32]| named((0..100).filter(|row| rests.contains(&((row + 1) % 5))));
    let port = |port: &str| ids(&project, "prompts", "difficulty", port);
    assert_eq!(port("hard"), of_rest(&[1, 2]));
    assert_eq!(port("easy"), of_rest(&[3]));
    assert_eq!(port("others"), of_rest(&[0, 4]));
    assert_eq!(port("undecided").len(), 0);
    // Eight samples each: the interval is widest where half of them are right.
    assert_eq!(port("more"), of_rest(&[2]));
    let rates = sql(
        &project,
        "select prompt_id, samples, correct, posterior_mean from pass_rates order by prompt_id limit 1",
    );
    assert_eq!(
        rates,
        json!([{ "prompt_id": "sum-000000", "samples": 8, "correct": 2, "posterior_mean": 0.3 }])
    );

    let found = sql(
        &project,
        "select prompt_id, sample, found_in, evaluation_id, ngram from rows where stage = 'self' and port = 'contaminated'",
    );
    assert_eq!(
        found,
        json!([{
            "prompt_id": "sum-000011", "sample": null, "found_in": "question", "evaluation_id": "exam-1",
            "ngram": "what is 11 + 1",
        }])
    );
    let mut expected = of_rest(&[1, 2]);
    expected.remove("sum-000011");
    assert_eq!(ids(&project, "examples", "self", "examples"), expected);
    assert_eq!(ids(&project, "examples", "examples", "examples").len(), 10);
    let again = project.run("curate.yaml");
    assert!(again.ran().is_empty(), "{:?}", again.statuses());
}

fn added_prompts_leave_the_others_in_their_port(place: Place) {
    let (few, many) = (project(place, 60), project(place, 90));
    for project in [&few, &many] {
        let run = ["run", "curate.yaml", "--to", "prompts"];
        project.call(&run).expect(0);
    }
    for port in ["train", "validation"] {
        let before = ids(&few, "prompts", "prompts", port);
        assert!(
            before.is_subset(&ids(&many, "prompts", "prompts", port)),
            "{port}"
        );
    }
}

#[test]
fn two_runs_of_the_same_prompts_make_examples_together() {
    let project = project(Place::Local, 100);
    // Its samples have the numbers of the first run's, and other verdicts, which have a column more.
    let others = r"
  others:
    inputs: { prompts: all }
    sql:
      query: >
        select prompt_id, arrow_cast(n, 'UInt32') as sample, make_array(arrow_cast(n + 10, 'UInt32')) as token_ids,
               concat('<think>else ', n, '</think><answer>', case when n = 3 then answer else 'x' end, '</answer>') as text,
               'stop' as finish_reason, 'other' as model
        from prompts cross join (values (0), (3)) as numbers(n) order by prompt_id, n
  other-verdicts: { inputs: { rollouts: others, prompts: all }, verify: { any: { of: [{ math: {} }, { exact: {} }] } } }
  both:
    inputs: { prompts: difficulty.hard, rollouts: [answers, others], verdicts: [verdicts, other-verdicts] }
    distill: { keep: { first: 9 }, require-format: true }
";
    project.write("curate.yaml", &format!("{}{others}", PIPELINE.trim_end()));
    project.run("curate.yaml");
    let counts = sql(
        &project,
        "select model, count(*) as n, count(distinct prompt_id) as prompts from examples where stage = 'both' group by model order by model",
    );
    assert_eq!(
        counts,
        json!([
            { "model": "none", "n": 60, "prompts": 40 },
            { "model": "other", "n": 40, "prompts": 40 },
        ])
    );
    let three =
        "select text from examples where stage = 'both' and prompt_id = 'sum-000001' order by text";
    assert_eq!(sql(&project, three).as_array().unwrap().len(), 3);
}
