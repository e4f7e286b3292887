//! Fine-tuning as a user does it: conversations, adapters, evaluation while it trains, the best model kept, curves to watch.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::Project;

const PIPELINE: &str = "
version: 1
name: fine-tune
seed: 5
stages:
  data: { source: { path: chats.jsonl, examples: true } }
  exam: { source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 12 } }
  base: { load-model: { path: $repo/examples/models/base } }
  tuned:
    inputs: { model: base, examples: data.examples, evaluation: exam }
    sft-train:
      epochs: 2
      sequences-per-step: 4
      turns: all
      max-tokens: 120
      learning-rate: 1.0e-3
      warmup-steps: 1
      schedule: linear
      lora: { rank: 4, alpha: 8 }
      averaging: 0.5
      evaluate: { every: 2, verify: { math: {} }, max-new-tokens: 16 }
      keep: best
  after: { inputs: { prompts: exam, model: tuned.model }, rollout: { samples: 1, temperature: 0.0, max-new-tokens: 16 } }
";

const RUN: [&str; 5] = ["run", "p.yaml", "--json", "--device", "cpu"];

fn project() -> Project {
    let project = Project::new();
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let mut lines = String::new();
    for first in 0..8 {
        let second = first + 1;
        let chat = json!({"conversations": [
            turn("human", &format!("What is {first} + {second}?")), turn("gpt", &(first + second).to_string()),
            turn("human", "And one more?"), turn("gpt", &(first + second + 1).to_string()),
        ]});
        lines.push_str(&format!("{chat}\n"));
    }
    let long =
        json!({"conversations": [turn("human", "Count."), turn("gpt", &"1 2 3 ".repeat(60))]});
    project.write("chats.jsonl", &format!("{lines}{long}\n"));
    project.write("p.yaml", PIPELINE);
    project
}

fn rows(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn adapters_are_trained_on_conversations_evaluated_and_kept_at_their_best() {
    let project = project();
    let run = project.call(&RUN).expect(0);
    assert!(run.stderr.contains("memory: weights"), "{}", run.stderr);
    // Every answer is learnt once in an epoch; the one that is too long is listed.
    let dropped = rows(
        &project,
        "select turn, reason from rows where stage = 'tuned' and port = 'dropped'",
    );
    assert_eq!(
        dropped,
        json!([{"turn": 1, "reason": "longer than `max-tokens: 120`"}])
    );
    let steps = rows(
        &project,
        "select count(*) as n from metrics where stage = 'tuned' and name = 'loss'",
    );
    assert_eq!(steps, json!([{"n": 4}]));
    let accuracy = rows(
        &project,
        "select step, value from metrics where stage = 'tuned' and name = 'eval_accuracy' order by step",
    );
    let best = accuracy
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["value"].as_f64().unwrap())
        .fold(0.0, f64::max);
    // The model that is kept answers as it did in its evaluation.
    let count = rows(
        &project,
        "select count(distinct prompt_id) as n from rollouts where stage = 'tuned'",
    );
    assert_eq!(count, json!([{"n": 12}]));
    let same = rows(
        &project,
        &format!(
            "select count(*) as n from rollouts t join rollouts a on a.prompt_id = t.prompt_id and a.text = t.text and a.stage = 'after'
             where t.stage = 'tuned' and t.step = (select min(step) from metrics where stage = 'tuned' and name = 'eval_accuracy' and value = {best:?})"
        ),
    );
    assert_eq!(same, json!([{"n": 12}]));
    for (port, file) in [
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "adapter_config.json"),
        ("model", "model.safetensors"),
        ("last", "model.safetensors"),
    ] {
        let what = format!("tuned.{port}");
        let to = format!("out-{port}");
        if !project.path(&to).exists() {
            project.call(&["export", &what, "--to", &to]).expect(0);
        }
        assert!(project.path(&to).join(file).exists(), "{what}: {file}");
    }
}

#[test]
fn curves_are_written_while_a_stage_trains_and_not_when_it_is_cached() {
    let project = project();
    project.call(&RUN).expect(0);
    let board = project.path(".metis/tensorboard/fine-tune/tuned");
    let written = files(&board);
    assert_eq!(written.len(), 1, "{written:?}");
    let name = written[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents."), "{name}");
    let bytes = fs::read(&written[0]).unwrap();
    for tag in ["brain.Event:2", "loss", "eval_accuracy", "tokens_per_s"] {
        let found = bytes
            .windows(tag.len())
            .any(|window| window == tag.as_bytes());
        assert!(found, "no `{tag}`");
    }
    project.call(&RUN).expect(0);
    assert_eq!(files(&board).len(), 1);
}
