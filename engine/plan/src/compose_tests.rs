//! Included files, overlays, settings and typed parameters.

use crate::testing::{Files, one, problems_of, stages_of};

const MAIN: &str = "\
version: 1
name: main
seed: 7
include: [data.yaml]
params: { samples: 4 }
stages:
  base: { load: { path: models/base } }
  probe:
    inputs: { prompts: prompts, model: base }
    sample: { samples: \"${params.samples}\", temperature: 1.0, mode: { best: { of: 2 } } }
";
const DATA: &str = "\
params: { data: { type: text, default: train.parquet } }
stages: { prompts: { read: { path: \"data/${params.data}\", limit: 5 } } }
";

fn with<'a>(overlays: &'a [&'a str], sets: &'a [&'a str]) -> Files<'a> {
    Files {
        files: &[("main.yaml", MAIN), ("data.yaml", DATA)],
        overlays,
        sets,
    }
}

#[test]
fn files_overlays_and_settings_are_one_pipeline() {
    let overlay = "\
params: { samples: 8 }
stages:
  prompts: { read: { limit: null } }
  probe: { seed: 3, sample: { mode: plain } }
  more: { inputs: { prompts: prompts, model: base }, sample: { samples: 1, temperature: 0 } }
";
    let sets = [
        "params.data=other.parquet",
        "probe.temperature=0.5",
        "more.sample.mode.best.of=3",
        "more.inputs.prompts=prompts.prompts",
        "seed=9",
    ];
    let plan = with(&[overlay], &sets).plan();
    assert_eq!(
        plan.resolved,
        "\
version: 1
name: main
seed: 9
stages:
  prompts:
    read: { path: data/other.parquet }
  base:
    load: { path: models/base }
  probe:
    inputs: { model: base, prompts: prompts }
    seed: 3
    sample: { samples: 8, temperature: 0.5, mode: plain }
  more:
    inputs: { model: base, prompts: prompts }
    sample: { samples: 1, temperature: 0, mode: { best: { of: 3 } } }
"
    );
}

#[test]
fn included_files_are_checked_like_the_file() {
    let files = [
        (
            "main.yaml",
            "version: 1\nname: x\nseed: 1\ninclude: [a.yaml, b.yaml, none.yaml]\nstages:\n  p: { read: { path: q } }\n",
        ),
        (
            "a.yaml",
            "include: [b.yaml]\nseed: 5\nstages:\n  p: { read: { path: x } }\n",
        ),
        (
            "b.yaml",
            "version: 2\ninclude: [a.yaml]\nparams: { unused: 1 }\nstages: { q: { raed: { path: x } } }\n",
        ),
    ];
    let files = Files {
        files: &files,
        overlays: &[],
        sets: &[],
    };
    let expected = [
        "main.yaml:4:27 missing-file: there is no file none.yaml (paths of included files start at the folder of main.yaml)",
        "main.yaml:6:3 duplicate-key: the stage `p` is given twice [a.yaml:4:3 first] (rename one of them; an overlay can change what a file says)",
        "a.yaml:2:1 unknown-key: an included file has no key `seed` (its keys are `version`, `params`, `stages`, `include`)",
        "b.yaml:1:10 wrong-value: `version` must be 1, not `2`",
        "b.yaml:2:11 include-cycle: files include each other in a circle: a.yaml -> b.yaml -> a.yaml (move what they share into a file of its own)",
        "b.yaml:3:11 unused-parameter: no stage uses the parameter `unused` (write `${params.unused}` where it is meant, or remove it)",
        "b.yaml:4:16 unknown-operator: there is no operator `raed` (did you mean `read`? operators here: `join`, `keep`, `load`, `read`, `sample`, `split`)",
    ];
    let found = files.broken();
    let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    assert_eq!(
        found
            .iter()
            .map(|line| line.replace("keys here:", "its keys are"))
            .collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn overlays_are_checked_at_their_place() {
    let overlay = "\
include: [x.yaml]
params: { samples: many, smaples: 3 }
stages:
  prob: { seed: 3 }
  probe: { sample: { samplse: 3, mode: { plain: {} } }, quarantine: null }
";
    let expected = [
        "overlay-1.yaml:1:1 unknown-key: an overlay includes no files (give several overlays, or include the file in the pipeline)",
        "overlay-1.yaml:2:20 wrong-type: the parameter `samples` is `4`, and `many` is of another type [main.yaml:5:11 declared here] (a text that looks like a number needs quotes)",
        "overlay-1.yaml:2:26 unused-parameter: no stage uses the parameter `smaples` (write `${params.smaples}` where it is meant, or remove it)",
        "overlay-1.yaml:4:3 unknown-stage: there is no stage `prob` (did you mean `probe`? stages here: `prompts`, `base`, `probe`)",
        "overlay-1.yaml:5:22 unknown-key: `sample` has no key `samplse` (did you mean `samples`? keys here: `samples`, `temperature`, `mode`)",
        "overlay-1.yaml:5:42 wrong-type: `mode` takes exactly one choice, and here are 2",
        "overlay-1.yaml:5:57 nothing-to-remove: there is no key `quarantine` to remove (keys here: `inputs`, `sample`)",
    ];
    assert_eq!(with(&[overlay], &[]).broken(), expected);
}

#[test]
fn settings_are_checked_like_the_file() {
    for (set, expected) in [
        (
            "probe.temprature=1",
            "--set probe.temprature=1:1:7 unknown-key: `sample` has no key `temprature` (did you mean `temperature`? keys here: `samples`, `temperature`, `mode`)",
        ),
        (
            "probe.temperature=hot",
            "--set probe.temperature=hot:1:19 wrong-type: `temperature` must be a number, not `hot`",
        ),
        (
            "porbe.temperature=1",
            "--set porbe.temperature=1:1:1 unknown-stage: there is no stage `porbe` (did you mean `probe`? stages here: `prompts`, `base`, `probe`)",
        ),
        (
            "sead=1",
            "--set sead=1:1:1 unknown-stage: there is no stage `sead` (did you mean `seed`? stages here: `prompts`, `base`, `probe`, `version`, `name`, `seed`, `include`, `params`, `stages`)",
        ),
        (
            "params.sample=1",
            "--set params.sample=1:1:8 unknown-parameter: there is no parameter `sample` (did you mean `samples`? parameters here: `data`, `samples`)",
        ),
        (
            "params.samples=few",
            "--set params.samples=few:1:16 wrong-type: the parameter `samples` is `4`, and `few` is of another type [main.yaml:5:11 declared here] (a text that looks like a number needs quotes)",
        ),
        (
            "probe=1",
            "--set probe=1:1:1 wrong-setting: `probe` is a stage: say which of its keys (write `--set stage.key=value`, `--set params.name=value` or `--set seed=value`)",
        ),
        (
            "probe.samples",
            "--set probe.samples:1:1 wrong-setting: a setting has the form `stage.key=value` (write `--set stage.key=value`, `--set params.name=value` or `--set seed=value`)",
        ),
        (
            "probe.samples=",
            "--set probe.samples=:1:1 wrong-setting: the value is missing (write `--set stage.key=value`, `--set params.name=value` or `--set seed=value`)",
        ),
        (
            "probe.quarantine.rows=-1",
            "--set probe.quarantine.rows=-1:1:23 wrong-type: `rows` must be a whole number of at least 0, not `-1`",
        ),
    ] {
        assert_eq!(with(&[], &[set]).broken(), [expected], "{set}");
    }
    let broken = with(&[], &["probe.samples=[1"]).broken();
    assert!(
        broken[0].contains("syntax: this is not valid YAML"),
        "{broken:?}"
    );
}

#[test]
fn declared_parameters_are_checked() {
    let text = "\
params:
  missing: { type: text }
  small: { type: integer, default: 0, min: 1, about: how many }
  mode: { type: text, default: fast, choices: [plain, best] }
  wrong: { type: number, default: x }
  odd: { type: float, default: 1 }
  list: { type: list, default: [1, 9], max: 8 }
  more: { type: boolean, default: true, least: 1 }
  bare: null
  chained: \"${params.small}/x\"
stages:
  a: { read: { path: \"${params.missing}${params.mode}${params.bare}${params.chained}\", limit: \"${params.small}\" } }
  b: { read: { path: \"${params.list} x ${params.more}\", limit: \"${params.wrong}\" } }
  c: { read: { path: \"${params.odd}\" } }
";
    let expected = [
        "p.yaml:5:3 missing-parameter: the parameter `missing` has no value (give one with `--set params.missing=...`, in an overlay, or as `default`)",
        "p.yaml:6:36 wrong-value: the parameter `small` must be at least 1, not `0` [p.yaml:6:39 the limit]",
        "p.yaml:7:32 unknown-choice: the parameter `mode` has no choice `fast` [p.yaml:7:38 the choices] (choices here: `plain`, `best`)",
        "p.yaml:8:35 wrong-type: the parameter `wrong` must be a number, not `x`",
        "p.yaml:9:16 unknown-choice: there is no type `float` (types here: `integer`, `number`, `text`, `boolean`, `list`)",
        "p.yaml:10:36 wrong-value: the parameter `list` must be at most 8, not `9` [p.yaml:10:40 the limit]",
        "p.yaml:11:41 unknown-key: a parameter has no key `least` (keys here: `type`, `default`, `min`, `max`, `choices`, `about`)",
        "p.yaml:12:3 wrong-type: `bare` must be a text, a number, `true`, `false` or a list, not nothing (write `{ type: text }` for a parameter that has no value until one is given)",
        "p.yaml:13:12 wrong-value: the parameter `chained` refers to `${params.small}/x`, and parameters are values (write the value, or put the reference where the parameter is used)",
    ];
    assert_eq!(problems_of(text), expected);

    let text =
        one("params: { n: { type: text } }\nstages: { a: { read: { path: \"${params.n}\" } } }\n");
    let files: [(&str, &str); 1] = [("p.yaml", &text)];
    let files = Files {
        files: &files,
        overlays: &[],
        sets: &["params.n=17"],
    };
    assert_eq!(files.stages(), "  a:\n    read: { path: \"17\" }\n");
}

#[test]
fn conditions_remove_stages_and_what_reads_them() {
    let text = "\
params: { expert: false, mode: full }
stages:
  a: { read: { path: x } }
  b: { when: \"${params.expert}\", read: { path: y } }
  c: { when: \"${params.mode} != full\", read: { path: z } }
  d: { when: \"${params.mode} == 'full'\", read: { path: w } }
  all: { inputs: { prompts: [a, b, c, d] }, join: {} }
";
    assert!(stages_of(text).ends_with("  all:\n    inputs: { prompts: [a, d] }\n    join: {}\n"));

    let broken = text.replace("[a, b, c, d]", "[b, c]").replace(
        "d: { when",
        "b2: { inputs: { prompts: b }, split: {} }\n  d: { when: 5, x: y }\n  e: { when",
    );
    let expected = [
        "p.yaml:9:28 removed-input: the stage that the input `prompts` of stage `b2` reads was removed by `when` [p.yaml:7:8 this condition does not hold] (give this stage the same `when`, or let it read something else)",
        "p.yaml:10:14 wrong-type: `when` must be `true` or `false`, not `5` (write `${params.name}`, `${params.name} == value` or `${params.name} != value`)",
        "p.yaml:10:17 unknown-operator: there is no operator `x` (the operators are `join`, `keep`, `load`, `read`, `sample`, `split`)",
        "p.yaml:12:30 removed-input: everything that the input `prompts` of stage `all` reads was removed by `when` [p.yaml:7:8 this condition does not hold] (give this stage the same `when`, or let it read something else)",
    ];
    let found = problems_of(&broken);
    assert_eq!(found[0], expected[0]);
    assert_eq!(found[1], expected[1]);
    assert_eq!(found.last().map(String::as_str), Some(expected[3]));
}

#[test]
fn a_budget_gives_an_output_for_rows_that_fail() {
    let text = "\
stages:
  base: { load: { path: m } }
  prompts: { quarantine: { share: 0.5 }, read: { path: x } }
  bad: { inputs: { in: prompts.quarantine }, keep: { columns: [row] } }
  none: { inputs: { in: base.quarantine }, keep: { columns: [row] } }
";
    let expected = [
        "p.yaml:8:25 unknown-port: stage `base` has no output `quarantine` [p.yaml:5:3 `load` gives `model`] (outputs here: `model`)",
    ];
    assert_eq!(problems_of(text), expected);
    let right = text.replace(
        "  none: { inputs: { in: base.quarantine }, keep: { columns: [row] } }\n",
        "",
    );
    assert!(stages_of(&right).contains("    quarantine: { share: 0.5 }\n    read: { path: x }\n"));
}
