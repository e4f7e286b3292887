//! Reinforcement learning with other algorithms than the usual one, on the example data: it trains, and what it trained on can be asked.

use serde_json::{Value, json};

use crate::support::Project;

const PIPELINE: &str = r#"
version: 1
name: algorithms
seed: 3
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 60 }
  base: { load-model: { path: $repo/examples/models/base } }
  dapo:
    inputs: { prompts: prompts, model: base }
    rl-train:
      algorithm: { dapo: {} }
      filter: { resample: { rounds: 3, prompts-per-round: 8, fallback: train } }
      steps: 3
      prompts-per-step: 4
      samples: 4
      temperature: 1.0
      max-new-tokens: 16
      mask-truncated: true
      verify: { math: {} }
      score: { accuracy: 1.0, format: 0.5, overlong: { weight: 0.5, max-tokens: 16, cache-tokens: 4 } }
      learning-rate: 1.0e-4
      warmup-steps: 0
      updates-per-rollout: 2
      freeze: ["visual."]
      alarms: [{ metric: entropy, below: 1.0e-9, for: 2, then: stop }]
  gspo:
    inputs: { prompts: prompts, model: base }
    rl-train:
      algorithm: { gspo: {} }
      filter: { buffer: { train-groups: 3, max-staleness: 2, stale: recompute } }
      steps: 3
      prompts-per-step: 4
      samples: 4
      temperature: 0.9
      max-new-tokens: 16
      verify: { math: {} }
      score: { accuracy: 1.0, sql: { short: { weight: 0.25, expression: "tokens < 12" } } }
      kl: { coefficient: 0.02 }
      learning-rate: 1.0e-4
      warmup-steps: 0
      updates-per-rollout: 2
      epochs: 2
      minibatches: prompts
      freeze: ["visual."]
"#;

fn ask(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

#[test]
fn two_algorithms_train_and_what_trained_a_step_can_be_asked() {
    let project = Project::new();
    project.write("p.yaml", PIPELINE);
    let run = ["run", "p.yaml", "--json", "--device", "cpu"];
    project.call(&run).expect(0);

    // What trained step 2: at most four groups with all their answers.
    let groups = ask(
        &project,
        "select prompt_id, count(*) as answers from rollouts \
         where stage = 'dapo' and step = 2 and fate in ('trained', 'truncated') \
         group by prompt_id, round order by prompt_id",
    );
    let groups = groups.as_array().unwrap();
    assert!(!groups.is_empty() && groups.len() <= 4, "{groups:?}");
    assert!(
        groups.iter().all(|group| group["answers"] == json!(4)),
        "{groups:?}"
    );

    // Each part of the reward is there, and the weighted sum is the reward.
    let wrong = ask(
        &project,
        "select count(*) as n from rollouts \
         where stage = 'dapo' and abs(reward - (reward_accuracy + 0.5 * reward_format + 0.5 * reward_overlong)) > 1e-9",
    );
    assert_eq!(wrong[0]["n"], json!(0));

    // The buffer says which policy sampled what was learnt from, and nothing is older than it may be.
    let ages = ask(
        &project,
        "select count(*) as n, max(step - sampled_step) as oldest from rollouts where stage = 'gspo' and fate = 'trained'",
    );
    assert_eq!(ages[0]["n"].as_i64().unwrap() % 12, 0, "{ages}");
    let metrics = ask(
        &project,
        "select step, value from metrics where stage = 'gspo' and name = 'kl' order by step",
    );
    assert!(
        metrics
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["value"].as_f64().unwrap() >= 0.0)
    );

    // The second run finds everything, with or without the alarm.
    project.write(
        "p.yaml",
        &PIPELINE.replace(
            "      alarms: [{ metric: entropy, below: 1.0e-9, for: 2, then: stop }]\n",
            "",
        ),
    );
    let outcome = project.run("p.yaml");
    assert!(outcome.ran().is_empty(), "{:?}", outcome.ran());
}
