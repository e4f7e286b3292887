//! Rollouts: what a change of the number of samples, of the seed or of a threshold makes run again.

use serde_json::Value;

use crate::support::{Outcome, Place, Project};

on_every_store!(
    more_samples_reuse_those_that_there_are,
    a_threshold_and_a_seed_run_exactly_the_stages_that_use_them,
);

const PIPELINE: &str = "
version: 1
name: sampled
seed: 5
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 6' }
  base: { init-model: { config: $repo/examples/models/tiny-vl-config } }
  answers:
    inputs: { prompts: few, model: base }
    rollout: { samples: 8, temperature: 1.0, max-new-tokens: 8 }
  verdicts: { inputs: { rollouts: answers, prompts: few }, verify: { math: {} } }
  split: { inputs: { verdicts: verdicts, prompts: few }, filter-by-pass-rate: { min-samples: 2 } }
  rates:
    inputs: { rates: split.pass_rates }
    sql: { query: 'select prompt_id, correct from rates order by prompt_id' }
";

fn parts(outcome: &Outcome, stage: &str) -> Value {
    let stages = outcome.0["stages"].as_array().unwrap();
    let found = stages.iter().find(|found| found["stage"] == stage);
    found.unwrap()["parts"].clone()
}

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project
}

fn more_samples_reuse_those_that_there_are(place: Place) {
    let project = project(place);
    let first = project.run("p.yaml");
    let eight = parts(&first, "answers");
    // Samples 0, 1, 2 to 3, 4 to 7 of one piece of the input.
    assert_eq!(
        (&eight["total"], &eight["computed"]),
        (&4.into(), &4.into())
    );

    project.write("p.yaml", &PIPELINE.replace("samples: 8", "samples: 16"));
    let second = project.run("p.yaml");
    let sixteen = parts(&second, "answers");
    assert_eq!(
        (&sixteen["total"], &sixteen["reused"], &sixteen["computed"]),
        (&5.into(), &4.into(), &1.into())
    );
    let query = |run: &Outcome| {
        let run = run.0["run"].as_str().unwrap();
        let query = "select prompt_id, sample, token_ids from rollouts where sample < 8 order by prompt_id, sample";
        let finished = project.call(&["sql", query, "--run", run, "--json"]);
        finished.expect(0).json()
    };
    assert_eq!(query(&first), query(&second));

    // All sixteen at once are the same as eight and eight.
    let other = self::project(place);
    other.write("p.yaml", &PIPELINE.replace("samples: 8", "samples: 16"));
    assert_eq!(
        other.run("p.yaml").digests()["answers.rollouts"],
        second.digests()["answers.rollouts"]
    );
    // Fewer: nothing is sampled.
    project.write("p.yaml", &PIPELINE.replace("samples: 8", "samples: 4"));
    let four = parts(&project.run("p.yaml"), "answers");
    assert_eq!((&four["reused"], &four["computed"]), (&3.into(), &0.into()));
}

fn a_threshold_and_a_seed_run_exactly_the_stages_that_use_them(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    let ran = |from: &str, to: &str| {
        assert!(PIPELINE.contains(from));
        project.write("p.yaml", &PIPELINE.replace(from, to));
        project.run("p.yaml").ran()
    };
    // The rates are the same rows, so what reads them is cached.
    assert_eq!(ran("min-samples: 2", "min-samples: 3"), ["split"]);
    assert_eq!(ran("temperature: 1.0", "temperature: 1.5")[0], "answers");
    let drawn = ran("seed: 5", "seed: 6");
    assert!(drawn.contains(&"answers".to_owned()), "{drawn:?}");
    for stage in ["prompts", "few"] {
        assert!(!drawn.contains(&stage.to_owned()), "{drawn:?}");
    }
}
