//! `foreach` and `repeat`.

use schemas::yaml::Document;

use crate::plan;
use crate::testing::{Files, one, problems_of, registry, stages_of};

const ROUNDS: &str = "\
params: { rounds: 2 }
stages:
  base: { load: { path: m } }
  prompts: { read: { path: x } }
  rounds:
    repeat: \"${params.rounds}\"
    carry: { data: { first: prompts, next: pick.good } }
    stages:
      pick: { inputs: { prompts: \"${carry.data}\" }, split: {} }
      probe:
        inputs: { prompts: pick.bad, model: base }
        sample: { samples: \"${round}\", temperature: 1 }
  after: { inputs: { prompts: [rounds.data, rounds-1-pick, prompts] }, join: {} }
";

#[test]
fn rounds_follow_each_other() {
    let expected = "  base:
    load: { path: m }
  prompts:
    read: { path: x }
  rounds-1-pick:
    inputs: { prompts: prompts }
    split: {}
  rounds-1-probe:
    inputs: { model: base, prompts: rounds-1-pick.bad }
    sample: { samples: 1, temperature: 1 }
  rounds-2-pick:
    inputs: { prompts: rounds-1-pick }
    split: {}
  rounds-2-probe:
    inputs: { model: base, prompts: rounds-2-pick.bad }
    seed: 1994221977
    sample: { samples: 2, temperature: 1 }
  after:
    inputs: { prompts: [rounds-2-pick, rounds-1-pick, prompts] }
    join: {}
";
    assert_eq!(stages_of(ROUNDS), expected);
}

#[test]
fn mistakes_in_rounds_are_told_once() {
    let broken = ROUNDS
        .replace("first: prompts", "first: prompt")
        .replace("next: pick.good", "next: pik.good")
        .replace("prompts: pick.bad", "prompts: prob.bad")
        .replace(
            "temperature: 1 }",
            "temperatur: 1, mode: \"${carry.data}\" }",
        )
        .replace(
            "[rounds.data, rounds-1-pick, prompts]",
            "[rounds.dta, rounds, \"${round}\"]",
        );
    let expected = [
        "p.yaml:10:29 unknown-stage: there is no stage `prompt` (did you mean `prompts`? stages here: `base`, `prompts`, `rounds-1-pick`, `rounds-1-probe`, `rounds-2-pick`, `rounds-2-probe`, `after`, `rounds`)",
        "p.yaml:10:43 unknown-stage: there is no stage `pik` (did you mean `pick`? stages here: `pick`, `probe`, `base`, `prompts`, `rounds-1-pick`, `rounds-1-probe`, `rounds-2-pick`, `rounds-2-probe`, `after`, `rounds`)",
        "p.yaml:14:28 unknown-stage: there is no stage `prob` (did you mean `probe`? stages here: `pick`, `probe`, `base`, `prompts`, `rounds-1-pick`, `rounds-1-probe`, `rounds-2-pick`, `rounds-2-probe`, `after`, `rounds`)",
        "p.yaml:15:40 unknown-key: `sample` has no key `temperatur` (did you mean `temperature`? keys here: `samples`, `temperature`, `mode`)",
        "p.yaml:15:61 unknown-parameter: `${carry.data}` is a stage, which only an input can read (let it be the whole value of an input of a stage in a `repeat`)",
        "p.yaml:16:32 unknown-stage: the group `rounds` carries nothing as `dta` (did you mean `rounds.data`? names here: `rounds.data`, `rounds-2-pick`, `rounds-2-probe`)",
        "p.yaml:16:44 unknown-stage: `rounds` is a group of stages (did you mean `rounds.data`? names here: `rounds.data`, `rounds-2-pick`, `rounds-2-probe`)",
        "p.yaml:16:52 unknown-parameter: `${round}` is no reference to a parameter (write `${params.name}`, or `$${` for the characters themselves)",
    ];
    assert_eq!(problems_of(&broken), expected);
}

#[test]
fn the_shape_of_loops_is_checked() {
    let text = "\
params: { none: 0 }
stages:
  x: { read: { path: x } }
  a: { repeat: 2, read: { path: x } }
  b: { repeat: \"${params.none}\", stages: { c: { read: { path: x } } } }
  d: { carry: { m: { first: x, next: c } }, stages: { c: { read: { path: x } } } }
  e: { repeat: 2, carry: { m: x, n: { first: x, last: x } }, stages: { c: { read: { path: x } } }, read: {} }
  f: { foreach: { n: [1, 2] }, read: { path: x } }
  \"g-${n}\": { foreach: { n: [] }, read: { path: x } }
  \"h-${n}\": { foreach: { n: [a/b, a.b] }, read: { path: x } }
  \"i-${m}\": { foreach: { n: [1] }, read: { path: x } }
  \"j-${round}\": { foreach: { round: [1] }, read: { path: x } }
  k: { inputs: { prompts: none-* }, join: {} }
";
    let expected = [
        "p.yaml:7:8 missing-key: `repeat` is for a group of stages (write `stages:` beside it and the stages of one round under it)",
        "p.yaml:8:16 wrong-type: `repeat` must be a number of rounds, at least 1, not `0`",
        "p.yaml:9:8 missing-key: `carry` is for a loop (write `repeat:` and the number of rounds beside it)",
        "p.yaml:10:31 wrong-type: `m` must be `{ first: ..., next: ... }`, not `x` (`first` names what the first round gets, `next` what each round gives to the one after it)",
        "p.yaml:10:34 wrong-type: `n` must be `{ first: ..., next: ... }`, not a mapping (`first` names what the first round gets, `next` what each round gives to the one after it)",
        "p.yaml:10:49 unknown-key: `n` has no key `last` (keys here: `first`, `next`)",
        "p.yaml:10:100 unknown-key: a group of stages has no key `read` (keys here: `stages`, `foreach`, `repeat`, `carry`, `when`)",
        "p.yaml:11:3 wrong-value: the name `f` must contain `${n}` (write `f-${n}`)",
        "p.yaml:12:26 wrong-value: `n` is an empty list, which makes no stage (remove the stage, or give it a `when`)",
        "p.yaml:13:3 duplicate-key: two stages are called `h-a-b` (names are made from those of the loops, rounds and values: rename one)",
        "p.yaml:14:3 wrong-value: the name `i-${m}` must contain `${n}` (write `i-${m}-${n}`)",
        "p.yaml:14:3 unknown-parameter: `${m}` is neither a parameter nor a variable (did you mean `n`? variables here: `n`)",
        "p.yaml:15:30 wrong-value: `round` is no name for a variable",
        "p.yaml:16:27 unknown-stage: no stage of a loop has a name like `none-*` (stages here: `d-c`, `e-1-c`, `e-2-c`, `f`, `h-a-b`)",
    ];
    assert_eq!(problems_of(text), expected);
}

#[test]
fn a_stage_for_each_value() {
    let text = "\
params: { sizes: [8, 0.5] }
stages:
  base: { load: { path: m } }
  prompts: { read: { path: x } }
  probe-${size}-${mode}:
    foreach: { size: \"${params.sizes}\", mode: [plain] }
    when: ${size} != 3
    inputs: { prompts: prompts, model: base }
    sample: { samples: 1, temperature: \"${size}\", mode: \"${mode}\" }
  \"${name}\":
    foreach: { name: [a, b] }
    stages:
      read: { read: { path: \"${name}.parquet\", limit: 1 } }
      split: { inputs: { prompts: read }, split: {} }
      both: { inputs: { prompts: [split, prompts] }, join: {} }
  all: { inputs: { prompts: \"*-both\" }, join: {} }
  bad: { inputs: { prompts: [\"*-split.bad\", prompts, a-read] }, join: {} }
";
    let expected = "  base:
    load: { path: m }
  prompts:
    read: { path: x }
  probe-8-plain:
    inputs: { model: base, prompts: prompts }
    sample: { samples: 1, temperature: 8, mode: plain }
  probe-0-5-plain:
    inputs: { model: base, prompts: prompts }
    sample: { samples: 1, temperature: 0.5, mode: plain }
  a-read:
    read: { path: a.parquet, limit: 1 }
  a-split:
    inputs: { prompts: a-read }
    split: {}
  a-both:
    inputs: { prompts: [a-split, prompts] }
    join: {}
  b-read:
    read: { path: b.parquet, limit: 1 }
  b-split:
    inputs: { prompts: b-read }
    split: {}
  b-both:
    inputs: { prompts: [b-split, prompts] }
    join: {}
  all:
    inputs: { prompts: [a-both, b-both] }
    join: {}
  bad:
    inputs: { prompts: [a-split.bad, b-split.bad, prompts, a-read] }
    join: {}
";
    assert_eq!(stages_of(text), expected);
}

#[test]
fn loops_nest() {
    let text = "\
stages:
  start: { read: { path: x } }
  outer:
    repeat: 2
    carry: { data: { first: start, next: inner.data } }
    stages:
      inner:
        repeat: 2
        carry: { data: { first: \"${carry.data}\", next: cut } }
        stages:
          cut: { inputs: { prompts: \"${carry.data}\" }, split: {} }
  end: { inputs: { prompts: outer.data }, split: {} }
";
    let stages = stages_of(text);
    for (stage, reads) in [
        ("outer-1-inner-1-cut", "start"),
        ("outer-1-inner-2-cut", "outer-1-inner-1-cut"),
        ("outer-2-inner-1-cut", "outer-1-inner-2-cut"),
        ("outer-2-inner-2-cut", "outer-2-inner-1-cut"),
        ("end", "outer-2-inner-2-cut"),
    ] {
        let text = format!("  {stage}:\n    inputs: {{ prompts: {reads} }}\n");
        assert!(stages.contains(&text), "{text}\n{stages}");
    }
}

#[test]
fn a_resolved_pipeline_plans_to_the_same_stages() {
    let plan_of = |text: &str| {
        plan(&Document::new("p.yaml", text), &registry())
            .unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
    };
    let first = plan_of(&one(ROUNDS));
    let again = plan_of(&first.resolved);
    assert_eq!(first.stages.len(), again.stages.len());
    for (one, other) in first.stages.iter().zip(&again.stages) {
        assert_eq!(
            (&one.name, &one.key_config, &one.inputs, one.seed),
            (&other.name, &other.key_config, &other.inputs, other.seed)
        );
    }
    assert_eq!(again.resolved, first.resolved);
    let seeds: Vec<u64> = first
        .stages
        .iter()
        .filter(|stage| stage.kind == "sample")
        .map(|stage| stage.seed)
        .collect();
    assert_eq!(seeds[0], 7, "the first round is as if there were no loop");
    assert_ne!(seeds[1], 7, "rounds draw differently");
}

#[test]
fn overlays_and_settings_reach_into_groups() {
    let text = one(ROUNDS);
    let files: [(&str, &str); 1] = [("p.yaml", &text)];
    let overlay = "stages: { rounds: { stages: { probe: { seed: 5 } } } }\n";
    let sets = ["rounds.probe.temperature=0.5", "rounds.repeat=1"];
    let files = Files {
        files: &files,
        overlays: &[overlay],
        sets: &[
            sets[0],
            sets[1],
            "rounds.stages.probe.sample.samples=3",
            "after.inputs.prompts=[rounds.data]",
        ],
    };
    let probe = "    seed: 5\n    sample: { samples: 3, temperature: 0.5 }\n";
    assert!(files.stages().contains(probe), "{}", files.stages());
    assert!(!files.stages().contains("rounds-2"));

    let files = Files {
        overlays: &["stages: { rounds: { stages: { prob: { seed: 5 } } } }\n"],
        sets: &["rounds.prob.samples=1"],
        ..files
    };
    let expected = [
        "overlay-1.yaml:1:31 unknown-stage: there is no stage `prob` (did you mean `probe`? stages here: `pick`, `probe`)",
        "--set rounds.prob.samples=1:1:8 unknown-stage: there is no stage `prob` (did you mean `probe`? stages here: `pick`, `probe`)",
    ];
    assert_eq!(files.broken(), expected);
}
