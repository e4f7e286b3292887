//! A small pipeline with every kind of stage, for tests that disturb it: some seconds when nothing does.

use std::collections::BTreeMap;

use crate::support::{Outcome, Place, Project};

const PIPELINE: &str = r#"
version: 1
name: every-kind
seed: 11
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: "select * from p where category <> 'order' order by prompt_id limit 24" }
  base: { load-model: { path: $repo/examples/models/base } }
  expert-model: { load-model: { path: $repo/examples/models/expert } }
  fresh: { init-model: { config: $repo/examples/models/tiny-vl-config } }
  small: { inputs: { model: fresh }, cast-model: { precision: bfloat16 } }
  rl:
    inputs: { prompts: few, model: base }
    rl-train:
      algorithm: { grpo: { clip-low: 0.2, clip-high: 0.28 } }
      steps: 5
      prompts-per-step: 6
      samples: 4
      temperature: 1.0
      max-new-tokens: 16
      verify: { math: {} }
      score: { accuracy: 1.0, format: 0.5 }
      learning-rate: 4.0e-4
      warmup-steps: 1
      schedule: cosine
      adamw: { beta2: 0.95 }
      freeze: ["visual."]
  probe:
    inputs: { prompts: few, model: rl.model }
    rollout: { samples: 6, temperature: 1.0, max-new-tokens: 16 }
  echo:
    inputs: { rows: probe }
    exec:
      command: [cat]
      columns: [prompt_id, text]
      rows: one-to-one
      output: { table: rows, columns: { prompt_id: text, text: text } }
      timeout-seconds: 60
      memory-mb: 512
  verdicts: { inputs: { rollouts: probe, prompts: few }, verify: { math: {} } }
  scores: { inputs: { verdicts: verdicts }, score: { accuracy: 1.0, format: 0.5 } }
  split: { inputs: { verdicts: verdicts, prompts: few }, filter-by-pass-rate: {} }
  self:
    inputs: { prompts: split.partial, rollouts: probe, verdicts: verdicts, scores: scores }
    distill: { keep: { best: 2 }, require-format: true }
  expert:
    inputs: { prompts: split.failed, model: expert-model }
    augment:
      expert: { model: { attempts: 2, keep: 2, temperature: 1.0, max-new-tokens: 16 } }
      verify: { math: {} }
      require-format: true
  examples: { inputs: { examples: [self, expert] }, mix: { shuffle: true } }
  sft:
    inputs: { model: rl.model, examples: examples }
    sft-train:
      steps: 5
      sequences-per-step: 6
      max-tokens: 64
      learning-rate: 5.0e-4
      warmup-steps: 1
      weight-decay: 0.0
      adamw: { beta2: 0.95 }
      freeze: ["visual."]
  accuracy: { inputs: { verdicts: verdicts, prompts: few }, evaluate: {} }
"#;

/// How it is run; more flags may follow.
pub(crate) const RUN: [&str; 5] = ["run", "p.yaml", "--json", "--device", "cpu"];

pub(crate) fn project(place: Place) -> Project {
    let project = Project::at(place);
    write(&project);
    project
}

pub(crate) fn write(project: &Project) {
    project.write("p.yaml", PIPELINE);
}

/// What an undisturbed run gives, and the store that it leaves.
pub(crate) fn undisturbed(place: Place) -> (BTreeMap<String, String>, Project) {
    let project = project(place);
    let outcome = Outcome(project.call(&RUN).expect(0).json());
    (outcome.digests(), project)
}

#[test]
fn it_has_every_kind_of_stage() {
    let registry = metis_flow::registry();
    let kinds: Vec<&str> = registry.entries().map(|entry| entry.kind).collect();
    let missing: Vec<&str> = kinds
        .into_iter()
        .filter(|kind| !PIPELINE.contains(&format!("{kind}:")))
        .collect();
    assert!(missing.is_empty(), "no stage is a {missing:?}");
}
