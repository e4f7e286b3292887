use std::collections::BTreeMap;

use engine_core::Digest;
use schemas::Problem;
use schemas::yaml::Document;
use serde_json::json;

use crate::testing::registry;
use crate::{Plan, StageKey, first_difference, json_schema, plan, stage_key};

const GOOD: &str = "\
version: 1
name: good
seed: 7
params:
  data: data/train.parquet
  samples: 4
stages:
  prompts: { read: { path: \"${params.data}\" } }
  base: { load: { path: models/base } }
  probe:
    inputs: { prompts: prompts, model: base }
    sample: { samples: \"${params.samples}\", temperature: 1.0 }
  heaps: { inputs: { prompts: prompts }, split: {} }
  all: { inputs: { prompts: [heaps.bad, heaps] }, join: {} }
";

fn planned(text: &str) -> Plan {
    plan(&Document::new("test.yaml", text), &registry())
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// `line:column code: message (help)`, for each problem.
fn broken(text: &str) -> Vec<String> {
    let problems =
        plan(&Document::new("test.yaml", text), &registry()).expect_err("the pipeline is wrong");
    problems
        .iter()
        .map(|problem| describe(text, problem))
        .collect()
}

fn describe(text: &str, problem: &Problem) -> String {
    let before = &text[..problem.span.start];
    let line = before.matches('\n').count() + 1;
    let column = problem.span.start - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    let help = problem
        .help
        .as_deref()
        .map(|help| format!(" ({help})"))
        .unwrap_or_default();
    format!(
        "{line}:{column} {}: {}{help}",
        problem.code, problem.message
    )
}

fn with_stages(stages: &str) -> String {
    format!("version: 1\nname: test\nseed: 7\nstages:\n{stages}")
}

/// Key of a stage as if every external and input had content that depends on its name alone.
fn key(plan: &Plan, stage: &str) -> StageKey {
    key_with(plan, stage, "content")
}

fn key_with(plan: &Plan, stage: &str, content: &str) -> StageKey {
    let stage = &plan.stages[plan.index_of(stage).expect("the stage is in the plan")];
    let externals = stage
        .externals
        .iter()
        .map(|external| (external.pointer.clone(), Digest::of(content.as_bytes())))
        .collect();
    let inputs = stage.inputs.iter().map(|(port, sources)| {
        let digests = sources
            .iter()
            .map(|source| Digest::of(format!("{content} {}", source.port).as_bytes()))
            .collect();
        (port.clone(), digests)
    });
    stage_key(stage, &externals, &inputs.collect::<BTreeMap<_, _>>())
}

#[test]
fn a_good_pipeline_has_a_plan() {
    let plan = planned(GOOD);
    assert_eq!((plan.name.as_str(), plan.seed), ("good", 7));
    let names: Vec<&str> = plan
        .stages
        .iter()
        .map(|stage| stage.name.as_str())
        .collect();
    assert_eq!(names, ["prompts", "base", "probe", "heaps", "all"]);
    let probe = &plan.stages[2];
    assert_eq!(
        probe.canonical,
        json!({ "mode": "plain", "samples": 4, "temperature": 1.0 })
    );
    assert_eq!(
        (probe.kind, probe.uses_seed, probe.seed),
        ("sample", true, 7)
    );
    assert_eq!(
        (
            probe.inputs["model"][0].stage,
            probe.inputs["model"][0].port.as_str()
        ),
        (1, "model")
    );
    let all = &plan.stages[4];
    let ports: Vec<&str> = all.inputs["prompts"]
        .iter()
        .map(|source| source.port.as_str())
        .collect();
    assert_eq!(ports, ["bad", "good"]);
    assert_eq!(
        plan.stages[0].externals[0].path.to_str(),
        Some("data/train.parquet")
    );
    assert_eq!(
        &GOOD[probe.span.start..probe.span.start + probe.span.len],
        "probe"
    );
}

#[test]
fn producers_come_first_and_the_file_decides_among_the_rest() {
    let text = with_stages(
        "  c: { inputs: { prompts: b }, split: {} }\n  b: { inputs: { prompts: [z, a] }, join: {} }\n  z: { read: { path: z } }\n  a: { read: { path: a } }\n",
    );
    let names: Vec<String> = planned(&text)
        .stages
        .into_iter()
        .map(|stage| stage.name)
        .collect();
    assert_eq!(names, ["z", "a", "b", "c"]);
}

#[test]
fn an_unknown_key_is_found_at_its_place() {
    let text = with_stages("  prompts:\n    read:\n      path: x\n      limt: 5\n");
    assert_eq!(
        broken(&text),
        [
            "8:7 unknown-key: `read` has no key `limt` (did you mean `limit`? keys here: `path`, `limit`)"
        ]
    );
}

#[test]
fn many_mistakes_are_reported_in_one_go() {
    let text = with_stages(
        "  prompts: { raed: { path: x } }
  base: { load: { path: m, pth: n } }
  probe:
    inputs: { prompts: prompts, modell: base }
    sample: { samples: many, temperature: hot }
  lone: { inputs: { prompts: nobody }, split: {} }
  bare: { inputs: { prompts: lone } }
  both: { read: { path: x }, load: { path: y } }
  extra: { read: { path: x }, input: { a: b } }
  seeded: { seed: 3, load: { path: x } }
",
    );
    let expected = [
        "5:14 unknown-operator: there is no operator `raed` (did you mean `read`? operators here: `join`, `keep`, `load`, `read`, `sample`, `split`)",
        "6:28 unknown-key: `load` has no key `pth` (did you mean `path`? keys here: `path`)",
        "9:24 wrong-type: `samples` must be a whole number of at least 0, not `many`",
        "9:43 wrong-type: `temperature` must be a number, not `hot`",
        "10:30 unknown-stage: there is no stage `nobody` (stages here: `prompts`, `base`, `probe`, `bare`, `both`, `extra`, `seeded`)",
        "11:3 missing-operator: stage `bare` has no operator (the operators are `join`, `keep`, `load`, `read`, `sample`, `split`)",
        "12:30 several-operators: stage `both` has 2 operators, and takes one (give each operator a stage of its own)",
        "13:31 unknown-key: stage `extra` has no key `input` (did you mean `inputs`? keys here: `inputs`, `seed`, `quarantine`, `when`, `foreach`)",
        "14:19 unused-seed: `load` draws nothing at random, so its seed has no effect (remove it)",
    ];
    assert_eq!(broken(&text), expected);
}

#[test]
fn ports_and_types_are_checked() {
    let text = with_stages(
        "  prompts: { read: { path: x } }
  base: { load: { path: m } }
  a: { inputs: { prompts: prompts.rows, model: base }, sample: { samples: 1, temperature: 1 } }
  b: { inputs: { prompts: prompts, models: base }, sample: { samples: 1, temperature: 1 } }
  c: { inputs: { prompts: base, model: prompts }, sample: { samples: 1, temperature: 1 } }
  d: { inputs: { prompts: [prompts], model: base }, sample: { samples: 1, temperature: 1 } }
  e: { inputs: { prompts: [] }, join: {} }
  f: { inputs: { prompts: prompts }, load: { path: m } }
  g: { inputs: { prompts: prompts }, sample: { samples: 1, temperature: 1 } }
",
    );
    let expected = [
        "7:27 unknown-port: stage `prompts` has no output `rows` (outputs here: `prompts`)",
        "8:36 unknown-port: `sample` has no input `models` (did you mean `model`? inputs here: `prompts`, `model`)",
        "9:27 wrong-artifact: the input `prompts` of stage `c` takes a table, not a model",
        "9:40 wrong-artifact: the input `model` of stage `c` takes a model, not a table of prompts",
        "10:28 wrong-type: the input `prompts` of `sample` takes one stage, not a list (join tables with a `mix` or `sql` stage first)",
        "11:18 missing-input: stage `e` lacks the input `prompts` (write `inputs: { prompts: <stage> }`)",
        "12:18 unknown-port: `load` has no input `prompts` (remove `inputs`: this operator reads no stage)",
        "13:38 missing-input: stage `g` lacks the input `model` (write `inputs: { model: <stage> }`)",
    ];
    assert_eq!(broken(&text), expected);
}

#[test]
fn a_missing_column_names_the_stage_that_should_give_it() {
    let text = with_stages(
        "  prompts: { read: { path: x } }
  ids: { inputs: { table: prompts }, keep: { columns: [prompt_id] } }
  base: { load: { path: m } }
  probe: { inputs: { prompts: ids, model: base }, sample: { samples: 1, temperature: 1 } }
",
    );
    let problems = plan(&Document::new("test.yaml", text.as_str()), &registry())
        .expect_err("a column is missing");
    let [problem] = problems.as_slice() else {
        panic!("{problems:#?}")
    };
    assert_eq!(
        describe(&text, problem),
        "8:31 missing-column: the input `prompts` of stage `probe` needs the column `messages` (list of struct of `role`, `content`)"
    );
    let other = &problem.others[0];
    assert_eq!(
        (
            &text[other.span.start..other.span.start + other.span.len],
            other.message.as_str()
        ),
        ("ids", "`rows` gives `prompt_id`")
    );
}

#[test]
fn a_circle_names_its_stages_in_order() {
    let text = with_stages(
        "  a: { inputs: { prompts: [c.good, x] }, join: {} }
  b: { inputs: { prompts: a }, split: {} }
  c: { inputs: { prompts: b.bad }, split: {} }
  x: { read: { path: x } }
  self: { inputs: { prompts: self }, split: {} }
  after: { inputs: { prompts: c, other: x }, split: {} }
",
    );
    let help = "(a pipeline runs once from start to end: let one of them read something else)";
    let expected = [
        format!("6:27 cycle: stages read each other in a circle: `a` -> `b` -> `c` -> `a` {help}"),
        format!("9:30 cycle: stages read each other in a circle: `self` -> `self` {help}"),
    ];
    assert_eq!(broken(&text), expected);
}

#[test]
fn faults_of_values_point_at_their_key_even_when_inputs_are_wrong() {
    let text = with_stages(
        "  base: { load: { path: m } }
  probe:
    inputs: { prompts: nobody, model: base }
    sample: { samples: 1, temperature: -1.0, mode: { best: { of: 0 } } }
",
    );
    let expected = [
        "7:24 unknown-stage: there is no stage `nobody` (stages here: `base`)",
        "8:40 wrong-value: stage `probe`: the temperature must be at least 0",
        "8:66 wrong-value: stage `probe`: `of` must be at least 1",
    ];
    assert_eq!(broken(&text), expected);
}

#[test]
fn an_unknown_parameter_is_reported_once() {
    let text = with_stages(
        "  base: { load: { path: \"${params.base}\" } }
  prompts: { read: { path: x, limit: \"${params.limit}\" } }
  heaps: { inputs: { prompts: \"${params.from}\" }, split: {} }
",
    );
    let expected = [
        "5:25 unknown-parameter: there is no parameter `base` (declare it: `params: { base: ... }` before `stages`)",
        "6:38 unknown-parameter: there is no parameter `limit` (declare it: `params: { limit: ... }` before `stages`)",
        "7:31 unknown-parameter: there is no parameter `from` (declare it: `params: { from: ... }` before `stages`)",
    ];
    assert_eq!(broken(&text), expected);
}

#[test]
fn syntax_problems_end_the_check() {
    assert!(broken("version: 1\nstages: [\n")[0].contains("syntax"));
    assert!(broken("")[0].contains("syntax"));
}

#[test]
fn keys_ignore_what_cannot_change_the_output() {
    let same = "\
# A comment.
seed: 7
name: other
version: 1
stages:
  pictures: {   read: { path: elsewhere/file.parquet, limit: null }   }
  start: { load: { path: models/base } }
  walk:
    sample: { temperature: 1, samples: 4 } # another comment
    inputs:
      model: start
      prompts: pictures
";
    let (one, other) = (planned(GOOD), planned(same));
    assert_eq!(key(&one, "prompts"), key(&other, "pictures"));
    assert_eq!(key(&one, "probe"), key(&other, "walk"));
    let reseeded = GOOD.replace("seed: 7", "seed: 8");
    assert_eq!(
        key(&one, "heaps"),
        key(&planned(&reseeded), "heaps"),
        "a stage without randomness does not depend on the seed"
    );
}

#[test]
fn the_order_of_the_file_changes_no_key() {
    let lines: Vec<&str> = GOOD.lines().collect();
    let start = lines
        .iter()
        .position(|line| *line == "stages:")
        .expect("there are stages")
        + 1;
    // Stages as blocks of lines, then every rotation of them.
    let mut blocks: Vec<String> = Vec::new();
    for line in &lines[start..] {
        match blocks.last_mut() {
            Some(block) if line.starts_with("    ") => *block += &format!("{line}\n"),
            _ => blocks.push(format!("{line}\n")),
        }
    }
    let one = planned(GOOD);
    for turn in 1..blocks.len() {
        blocks.rotate_left(1);
        let other = planned(&format!(
            "{}\n{}",
            lines[..start].join("\n"),
            blocks.concat()
        ));
        for stage in &one.stages {
            assert_eq!(
                key(&one, &stage.name),
                key(&other, &stage.name),
                "turn {turn}"
            );
            let at = other
                .index_of(&stage.name)
                .expect("the stage is in the plan");
            let sources = other.stages[at].inputs.values().flatten();
            assert!(
                sources.into_iter().all(|source| source.stage < at),
                "producers come first"
            );
        }
    }
}

#[test]
fn keys_change_with_what_can_change_the_output() {
    let one = planned(GOOD);
    let differs = |text: &str, stage: &str| {
        let other = key(&planned(text), stage);
        let base = key(&one, stage);
        assert_ne!(base.digest, other.digest, "{stage}");
        first_difference(&base.material, &other.material).expect("they differ")
    };
    assert_eq!(
        differs(&GOOD.replace("samples: 4", "samples: 5"), "probe"),
        "config.samples"
    );
    assert_eq!(
        differs(&GOOD.replace("seed: 7", "seed: 8"), "probe"),
        "seed"
    );
    assert_eq!(
        differs(
            &GOOD.replace("[heaps.bad, heaps]", "[heaps, heaps.bad]"),
            "all"
        ),
        "inputs.prompts.0"
    );
    assert_eq!(
        differs(
            &GOOD.replace(
                "temperature: 1.0 }",
                "temperature: 1.0, mode: { best: { of: 2 } } }"
            ),
            "probe"
        ),
        "config.mode"
    );

    let changed = key_with(&one, "prompts", "new content");
    assert_eq!(
        first_difference(&key(&one, "prompts").material, &changed.material).as_deref(),
        Some("config.path")
    );
    let same = key(&one, "prompts").material;
    assert_eq!(first_difference(&same, &same), None);
}

#[test]
fn the_json_schema_is_strict_and_knows_every_operator() {
    let schema = json_schema(&registry());
    let stage = &schema["properties"]["stages"]["additionalProperties"];
    assert_eq!(stage["additionalProperties"], json!(false));
    assert_eq!(
        stage["properties"]["sample"]["description"],
        json!("samples completions")
    );
    let sample = &schema["$defs"]["Sample"];
    assert_eq!(sample["additionalProperties"], json!(false));
    assert_eq!(
        sample["properties"]["samples"]["description"],
        json!("Completions for each prompt.")
    );
    assert_eq!(
        sample["properties"]["samples"]["anyOf"][0]["type"],
        json!("integer")
    );
    assert_eq!(
        stage["oneOf"].as_array().map(Vec::len),
        Some(7),
        "six operators, or a group"
    );
}

#[test]
fn content_is_in_the_key_even_where_the_path_is_not_in_the_configuration() {
    let mut plan = planned(GOOD);
    plan.stages[0].key_config = json!({});
    let (one, other) = (
        key(&plan, "prompts"),
        key_with(&plan, "prompts", "new content"),
    );
    assert_eq!(
        first_difference(&one.material, &other.material).as_deref(),
        Some("externals./path")
    );
}
