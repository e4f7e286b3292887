use std::collections::BTreeMap;

use serde::Deserialize;

use super::Document;
use crate::Problem;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Options {
    samples: u32,
    temperature: f64,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    weights: BTreeMap<String, f64>,
    #[serde(default)]
    freeze: Vec<String>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Exact,
    Math {
        tolerance: f64,
        #[serde(default)]
        strict: bool,
    },
    Nested(Inner),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Inner {
    max_new_tokens: u32,
    seed: std::num::NonZeroU32,
}

fn problems(text: &str) -> Vec<(String, String)> {
    let document = Document::new("test.yaml", text);
    let problems = document
        .parse_at::<Options>(&["here", "rollout"])
        .expect_err("the text is wrong");
    problems
        .iter()
        .map(|problem| (describe(problem), at(text, problem)))
        .collect()
}

fn describe(problem: &Problem) -> String {
    let help = problem
        .help
        .as_deref()
        .map(|help| format!(" ({help})"))
        .unwrap_or_default();
    format!("{}: {}{help}", problem.code, problem.message)
}

/// `line:column text` of the place of a problem.
fn at(text: &str, problem: &Problem) -> String {
    let (start, len) = (problem.span.start, problem.span.len);
    let before = &text[..start];
    let line = before.matches('\n').count() + 1;
    let column = start - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    format!("{line}:{column} {}", &text[start..start + len])
}

fn one(text: &str) -> (String, String) {
    let mut found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn expect(text: &str, message: &str, place: &str) {
    assert_eq!(one(text), (message.to_owned(), place.to_owned()));
}

#[test]
fn a_right_text_is_read() {
    let text = "other: [1, 2]\nhere:\n  rollout: { samples: 16, temperature: 1, name: no, weights: {a: 1.5e-3, b: 1e-6}, mode: { math: { tolerance: 0.5 } }, freeze: [visual.] }\n";
    let document = Document::new("test.yaml", text);
    let options: Options = document
        .parse_at(&["here", "rollout"])
        .expect("the text is right");
    let expected = Options {
        samples: 16,
        temperature: 1.0,
        name: Some("no".to_owned()),
        mode: Mode::Math {
            tolerance: 0.5,
            strict: false,
        },
        weights: BTreeMap::from([("a".to_owned(), 1.5e-3), ("b".to_owned(), 1e-6)]),
        freeze: vec!["visual.".to_owned()],
    };
    assert_eq!(options, expected);
    assert_eq!(
        document.parse_at::<String>(&["other", "1"]).as_deref(),
        Ok("2")
    );
}

#[test]
fn an_unknown_key_has_its_place_and_the_nearest_name() {
    expect(
        "here:\n  rollout:\n    samples: 4\n    temprature: 1.0\n    temperature: 1.0\n",
        "unknown-key: `rollout` has no key `temprature` (did you mean `temperature`? keys here: `samples`, `temperature`, `name`, `mode`, `weights`, `freeze`)",
        "4:5 temprature",
    );
}

#[test]
fn a_wrong_type_has_the_place_of_the_value() {
    expect(
        "here: { rollout: { samples: sixteen, temperature: 1 } }",
        "wrong-type: `samples` must be a whole number of at least 0, not `sixteen`",
        "1:29 sixteen",
    );
    expect(
        "here: { rollout: { samples: -1, temperature: 1 } }",
        "wrong-type: `samples` must be a whole number of at least 0, not `-1`",
        "1:29 -1",
    );
    expect(
        "here: { rollout: { samples: 1, temperature: \"1\" } }",
        "wrong-type: `temperature` must be a number, not `1`",
        "1:45 \"1\"",
    );
    expect(
        "here: { rollout: { samples: 1, temperature: 1, freeze: visual } }",
        "wrong-type: `freeze` must be a list, not `visual` (write `[visual]`)",
        "1:56 visual",
    );
    expect(
        "here:\n  rollout: 7\n",
        "wrong-type: `rollout` must be a mapping, not `7` (its keys are `samples`, `temperature`, `name`, `mode`, `weights`, `freeze`)",
        "2:12 7",
    );
}

#[test]
fn a_missing_key_points_at_the_mapping_that_lacks_it() {
    expect(
        "here:\n  rollout:\n    samples: 4\n",
        "missing-key: `rollout` lacks the key `temperature`",
        "2:3 rollout",
    );
}

#[test]
fn missing_keys_of_one_mapping_are_one_problem() {
    expect(
        "here:\n  rollout: {}\n",
        "missing-key: `rollout` lacks the keys `samples`, `temperature`",
        "2:3 rollout",
    );
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = "here:
  rollout:
    sample: 4
    temperature: hot
    mode:
      math: { tolerance: [], strict: maybe, loose: 1 }
    weights: { a: 1, b: x }
";
    let places: Vec<String> = problems(text)
        .into_iter()
        .map(|(message, place)| format!("{place} {}", message.split(':').next().expect("a code")))
        .collect();
    let expected = [
        "3:5 sample unknown-key",
        "4:18 hot wrong-type",
        "6:15 tolerance wrong-type",
        "6:45 loose unknown-key",
        "6:38 maybe wrong-type",
        "7:25 x wrong-type",
    ];
    let mut sorted = places.clone();
    sorted.sort();
    let mut wanted: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
    wanted.sort();
    assert_eq!(sorted, wanted);
}

#[test]
fn choices_are_one_word_or_one_key() {
    expect(
        "here: { rollout: { samples: 1, temperature: 1, mode: mth } }",
        "unknown-choice: `mode` has no choice `mth` (did you mean `math`? choices here: `exact`, `math`, `nested`)",
        "1:54 mth",
    );
    expect(
        "here: { rollout: { samples: 1, temperature: 1, mode: math } }",
        "wrong-type: the choice `math` of `mode` takes options (write `math: { ... }`)",
        "1:54 math",
    );
    expect(
        "here: { rollout: { samples: 1, temperature: 1, mode: { math: { tolerance: 1 }, exact: {} } } }",
        "wrong-type: `mode` takes exactly one choice, and here are 2",
        "1:80 exact",
    );
    expect(
        "here: { rollout: { samples: 1, temperature: 1, mode: { nested: { max-new-tokens: 5, seed: 0 } } } }",
        "wrong-value: expected a nonzero u32, found integer `0`",
        "1:91 0",
    );
}

#[test]
fn duplicate_keys_and_syntax_are_problems_of_the_document() {
    let text = "a: 1\nb: 2\na: 3\n";
    let document = Document::new("test.yaml", text);
    let [problem] = document.problems() else {
        panic!("{:?}", document.problems())
    };
    assert_eq!(
        (problem.code, at(text, problem).as_str()),
        ("duplicate-key", "3:1 a")
    );
    assert_eq!(problem.others[0].span.start, 0);

    let text = "a: [1, 2\nb: 3\n";
    let document = Document::new("test.yaml", text);
    let [problem] = document.problems() else {
        panic!("{:?}", document.problems())
    };
    assert_eq!(problem.code, "syntax");
    assert!(at(text, problem).starts_with("2:"), "{problem:?}");
    assert!(document.parse_at::<u32>(&["b"]).is_err());

    for text in [
        "",
        "# only a comment\n",
        "a: *missing\n",
        "a: 1\n---\nb: 2\n",
        "a: \"open\n",
        "\ta: 1\n",
    ] {
        let document = Document::new("test.yaml", text);
        assert!(
            document
                .problems()
                .iter()
                .all(|problem| problem.code == "syntax"),
            "{text:?}: {:?}",
            document.problems()
        );
    }
}

#[test]
fn places_are_the_value_or_the_key() {
    let text = "a:\n  b: word\n  c: {d: [1, \"two\"]}\n  e:\n";
    let document = Document::new("test.yaml", text);
    let slice = |path: &[&str]| {
        document
            .span_of(path)
            .map(|span| &text[span.start..span.start + span.len])
    };
    assert_eq!(slice(&["a", "b"]), Some("word"));
    assert_eq!(slice(&["a", "c"]), Some("c"));
    assert_eq!(slice(&["a", "c", "d", "1"]), Some("\"two\""));
    assert_eq!(slice(&["a", "e"]), Some("e"));
    assert_eq!(slice(&["a", "x"]), None);
    assert_eq!(
        document.nearest_span(&["a", "b", "x"]),
        document.span_of(&["a", "b"]).expect("it is there")
    );
}

#[test]
fn anchors_keep_the_place_of_the_definition() {
    let text = "base: &base { samples: many, temperature: 1 }\nhere:\n  rollout: *base\n";
    expect(
        text,
        "wrong-type: `samples` must be a whole number of at least 0, not `many`",
        "1:24 many",
    );
}
