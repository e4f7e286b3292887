use arrow::array::{AsArray, LargeStringArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::testing::{
    TestIo, prompts, rollouts, rollouts_with_tokens, scores, text_values, verdicts,
};

pub(super) fn config(value: serde_json::Value) -> Distill {
    serde_json::from_value(value).unwrap()
}

fn cut(batch: &RecordBatch, rows: usize) -> Vec<RecordBatch> {
    (0..batch.num_rows())
        .step_by(rows)
        .map(|start| batch.slice(start, rows.min(batch.num_rows() - start)))
        .collect()
}

/// Prompt a: samples 0 to 4, of which 1 repeats 0, 3 is wrong; prompt b: one truncated, one badly formed.
fn io(parts: usize) -> TestIo {
    let rollouts = rollouts_with_tokens(&[
        ("a", 0, "long", &[1, 2, 3, 9], "stop"),
        ("a", 1, "long", &[1, 2, 3, 9], "stop"),
        ("a", 2, "short", &[4, 9], "stop"),
        ("a", 3, "wrong", &[5], "stop"),
        ("a", 4, "mid", &[6, 7, 9], "stop"),
        ("b", 0, "cut", &[1, 2], "length"),
        ("b", 1, "bare", &[8, 9], "stop"),
        ("c", 0, "not asked", &[8, 9], "stop"),
    ]);
    let verdicts = verdicts(&[
        ("a", 0, "correct", true),
        ("a", 1, "correct", true),
        ("a", 2, "correct", true),
        ("a", 3, "wrong", true),
        ("a", 4, "correct", true),
        ("b", 0, "correct", true),
        ("b", 1, "correct", false),
        ("c", 0, "correct", true),
    ]);
    let mut io = TestIo::new();
    io.input("rollouts", &cut(&rollouts, parts));
    io.input("verdicts", &cut(&verdicts, parts));
    io.input(
        "prompts",
        &[prompts(&[("b", None, None), ("a", None, None)])],
    );
    io.input(
        "scores",
        &[scores(&[
            ("a", 0, 0.5),
            ("a", 1, 0.5),
            ("a", 2, 0.75),
            ("a", 4, 1.5),
            ("b", 1, 1.0),
        ])],
    );
    io
}

fn keep(keep: Keep, require_format: bool) -> Distill {
    Distill {
        keep,
        require_format,
        near_duplicates: None,
        decontaminate: None,
        max: None,
    }
}

fn texts_of(rule: Keep, require_format: bool, parts: usize, seed: u64) -> Vec<String> {
    let mut io = io(parts);
    io.run(&keep(rule, require_format), seed).unwrap();
    let out = io.output("examples");
    assert_eq!(out.schema(), TableName::Examples.schema());
    text_values(&out, "text")
}

#[test]
fn each_rule_keeps_what_it_says() {
    for parts in [100, 3, 1] {
        let texts = |rule, format| texts_of(rule, format, parts, 0);
        assert_eq!(texts(Keep::First(2), true), ["long", "short"]);
        assert_eq!(texts(Keep::Shortest(2), true), ["short", "mid"]);
        assert_eq!(texts(Keep::Best(1), true), ["mid"]);
        assert_eq!(texts(Keep::First(10), true), ["long", "short", "mid"]);
        // In the order of the prompts.
        assert_eq!(texts(Keep::First(1), false), ["bare", "long"]);
    }
}

#[test]
fn random_choice_depends_on_the_seed_alone() {
    let drawn: Vec<Vec<String>> = (0..20)
        .map(|seed| texts_of(Keep::Random(1), true, 100, seed))
        .collect();
    assert!(
        drawn.iter().any(|texts| texts != &drawn[0]),
        "twenty seeds draw different rollouts"
    );
    assert_eq!(texts_of(Keep::Random(1), true, 2, 3), drawn[3]);
}

#[test]
fn what_is_named_twice_is_refused() {
    let steps = [
        ("a", 0, "right", &[1, 9][..], "stop"),
        ("a", 0, "wrong", &[2, 9], "stop"),
    ];
    let twice = [("a", 0, "correct", true), ("a", 0, "wrong", true)];
    for (port, batch) in [
        ("rollouts", rollouts_with_tokens(&steps)),
        ("verdicts", verdicts(&twice)),
        ("scores", scores(&[("a", 0, 1.0), ("a", 0, 0.5)])),
    ] {
        let mut io = io(100);
        io.input(port, &[batch]);
        let error = io.run(&keep(Keep::Best(2), true), 0).unwrap_err();
        let expected = format!("`{port}` has a sample of prompt `a` more than once");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let mut io = io(100);
    io.input(
        "prompts",
        &[prompts(&[("a", None, None), ("a", None, None)])],
    );
    let error = io.run(&keep(Keep::First(2), true), 0).unwrap_err();
    assert!(
        error.to_string().contains("prompt `a` more than once"),
        "{error}"
    );
}

#[test]
fn wrong_values_are_found_at_plan_time() {
    let connected = |port: &str, table: TableName| {
        PortTypes::from([(port.to_owned(), vec![PortType::table(table)])])
    };
    let plain = json!({ "keep": { "first": 1 }, "require-format": true });
    let with = |key: &str, value: serde_json::Value| {
        let mut all = plain.clone();
        all[key] = value;
        config(all)
    };
    let near = |threshold: f64, words: u32| json!({ "threshold": threshold, "words": words, "within": "prompt" });
    let none = PortTypes::new();
    for (config, inputs, code, path) in [
        (
            with("keep", json!({ "first": 0 })),
            &none,
            "wrong-value",
            vec!["keep"],
        ),
        (
            with("keep", json!({ "best": 1 })),
            &none,
            "missing-input",
            vec!["keep"],
        ),
        (
            with("near-duplicates", near(1.5, 5)),
            &none,
            "wrong-value",
            vec!["near-duplicates", "threshold"],
        ),
        (
            with("near-duplicates", near(0.8, 0)),
            &none,
            "wrong-value",
            vec!["near-duplicates", "words"],
        ),
        (
            with("decontaminate", json!({ "words": 8 })),
            &none,
            "missing-input",
            vec!["decontaminate"],
        ),
        (
            config(plain.clone()),
            &connected("evaluation", TableName::Prompts),
            "unused-input",
            vec![],
        ),
        (
            with("max", json!({ "total": 0 })),
            &none,
            "wrong-value",
            vec!["max", "total"],
        ),
    ] {
        let faults = config.output_types(inputs).unwrap_err();
        assert_eq!(
            (faults[0].code, &faults[0].path),
            (code, &path.iter().map(|key| (*key).to_owned()).collect())
        );
    }
    let best = with("keep", json!({ "best": 1 }));
    assert!(
        best.output_types(&connected("scores", TableName::Scores))
            .is_ok()
    );
}

#[test]
fn examples_say_where_they_come_from() {
    let mut io = io(100);
    io.run(&keep(Keep::First(1), true), 0).unwrap();
    let out = io.output("examples");
    assert_eq!(text_values(&out, "origin"), ["self"]);
    assert_eq!(text_values(&out, "model"), ["m"]);
    assert_eq!(text_values(&out, "prompt_id"), ["a"]);
}

#[test]
fn no_rows_give_no_examples() {
    let mut io = TestIo::new();
    io.input("rollouts", &[rollouts(&[])]);
    io.input("verdicts", &[verdicts(&[])]);
    io.input("prompts", &[prompts(&[])]);
    io.input("evaluation", &[prompts(&[])]);
    let config = config(json!({
        "keep": { "diverse": 2 }, "require-format": true, "decontaminate": { "words": 3 },
        "near-duplicates": { "threshold": 0.5, "words": 2, "within": "all" }, "max": { "total": 3 },
    }));
    io.run(&config, 0).unwrap();
    for port in ["examples", "contaminated"] {
        assert_eq!(io.output(port).num_rows(), 0);
    }
}

/// Correct rollouts with these texts, each with tokens of its own.
pub(super) fn io_of(rows: &[(&str, u32, &str)]) -> TestIo {
    let tokens: Vec<[u32; 1]> = (0..rows.len() as u32).map(|row| [row]).collect();
    let full: Vec<(&str, u32, &str, &[u32], &str)> = rows
        .iter()
        .zip(&tokens)
        .map(|(row, tokens)| (row.0, row.1, row.2, &tokens[..], "stop"))
        .collect();
    let judged: Vec<_> = rows
        .iter()
        .map(|row| (row.0, row.1, "correct", true))
        .collect();
    let mut ids: Vec<&str> = rows.iter().map(|row| row.0).collect();
    ids.dedup();
    let ids: Vec<_> = ids.into_iter().map(|id| (id, None, None)).collect();
    let mut io = TestIo::new();
    io.input("rollouts", &[rollouts_with_tokens(&full)]);
    io.input("verdicts", &[verdicts(&judged)]);
    io.input("prompts", &[prompts(&ids)]);
    io
}

const ONE: &str = "first add three and four then take away two so the answer is five";
const ONE_AGAIN: &str = "First add three and four, then take away two, so the answer is: five!";
const ONE_NEARLY: &str = "first add three and four then take away two so the answer is 5";
const OTHER: &str = "count on your fingers from one until you come to the end of the second hand";

fn samples(io: &TestIo) -> Vec<String> {
    let out = io.output("examples");
    let ids = text_values(&out, "prompt_id");
    let tokens = out.column_by_name("token_ids").unwrap().as_list::<i64>();
    ids.iter()
        .enumerate()
        .map(|(row, id)| {
            format!(
                "{id}{}",
                tokens.value(row).as_primitive::<UInt32Type>().value(0)
            )
        })
        .collect()
}

#[test]
fn near_duplicates_are_passed_over_and_the_next_is_taken() {
    let rows = [
        ("a", 0, ONE),
        ("a", 1, ONE_AGAIN),
        ("a", 2, ONE_NEARLY),
        ("a", 3, OTHER),
        ("b", 0, ONE_NEARLY),
        ("b", 1, OTHER),
    ];
    for (within, expected) in [
        ("prompt", vec!["a0", "a3", "b4", "b5"]),
        ("all", vec!["a0", "a3"]),
    ] {
        let mut io = io_of(&rows);
        let near = json!({ "threshold": 0.7, "words": 3, "within": within });
        let config = config(
            json!({ "keep": { "first": 2 }, "require-format": true, "near-duplicates": near }),
        );
        io.run(&config, 0).unwrap();
        assert_eq!(samples(&io), expected, "{within}");
    }
}

#[test]
fn the_most_diverse_are_far_from_each_other() {
    let mut rows = vec![
        ("a", 0, ONE),
        ("a", 1, ONE_NEARLY),
        ("a", 2, ONE_AGAIN),
        ("a", 3, OTHER),
    ];
    let run = |rows: &[(&str, u32, &str)], near: bool, count: u32| {
        let mut io = io_of(rows);
        let mut all = json!({ "keep": { "diverse": count }, "require-format": true });
        if near {
            all["near-duplicates"] = json!({ "threshold": 0.7, "words": 3, "within": "prompt" });
        }
        io.run(&config(all), 0).unwrap();
        samples(&io)
    };
    assert_eq!(run(&rows, false, 2), ["a0", "a3"]);
    assert_eq!(run(&rows, false, 3), ["a0", "a1", "a3"]);
    assert_eq!(run(&rows, true, 3), ["a0", "a3"]);
    rows.truncate(1);
    assert_eq!(run(&rows, false, 3), ["a0"]);
}

#[test]
fn many_repeats_of_a_prompt_are_told_as_few_are() {
    let kinds: [&[u32]; 3] = [&[7, 8], &[7], &[8, 8]];
    let rows: Vec<(&str, u32, &str, &[u32], &str)> = (0..200)
        .map(|sample| ("a", sample, "t", kinds[sample as usize % 3], "stop"))
        .collect();
    let judged: Vec<_> = rows
        .iter()
        .map(|row| (row.0, row.1, "correct", true))
        .collect();
    let mut io = io_of(&[("a", 0, "t")]);
    io.input("rollouts", &[rollouts_with_tokens(&rows)]);
    io.input("verdicts", &[verdicts(&judged)]);
    io.run(&keep(Keep::First(9), true), 0).unwrap();
    assert_eq!(samples(&io), ["a7", "a7", "a8"]);
}

#[test]
fn caps_by_source_and_in_total_are_drawn_by_the_seed() {
    let ids: Vec<String> = (0..60).map(|number| format!("p{number:02}")).collect();
    let texts: Vec<String> = (0..60).map(|number| format!("text {number}")).collect();
    let rows: Vec<(&str, u32, &str)> = ids
        .iter()
        .zip(&texts)
        .map(|(id, text)| (id.as_str(), 0, text.as_str()))
        .collect();
    let sourced = || {
        let mut io = io_of(&rows);
        let plain: Vec<_> = ids.iter().map(|id| (id.as_str(), None, None)).collect();
        let batch = prompts(&plain);
        let mut columns = batch.columns().to_vec();
        let names = ["big", "big", "small", "other"]
            .into_iter()
            .cycle()
            .take(60);
        columns[5] = Arc::new(LargeStringArray::from_iter_values(names));
        io.input(
            "prompts",
            &[RecordBatch::try_new(batch.schema(), columns).unwrap()],
        );
        io
    };
    let run = |max: serde_json::Value, seed: u64| {
        let mut io = sourced();
        let all = json!({ "keep": { "first": 1 }, "require-format": true, "max": max });
        io.run(&config(all), seed).unwrap();
        let out = io.output("examples");
        assert_eq!(out.schema(), TableName::Examples.schema());
        text_values(&out, "prompt_id")
    };
    let by_source = json!({ "by-source": { "big": 7 }, "each-source": 4 });
    let kept = run(by_source.clone(), 0);
    let of_source = |places: &[usize]| {
        kept.iter()
            .filter(|id| places.contains(&(id[1..].parse::<usize>().unwrap() % 4)))
            .count()
    };
    assert_eq!(
        (of_source(&[0, 1]), of_source(&[2]), of_source(&[3])),
        (7, 4, 4)
    );
    assert!(kept.is_sorted());
    assert_ne!(run(by_source, 1), kept);
    let ten = run(json!({ "total": 10 }), 0);
    let twenty: BTreeSet<String> = run(json!({ "total": 20 }), 0).into_iter().collect();
    assert_eq!((ten.len(), twenty.len()), (10, 20));
    assert!(
        ten.iter().all(|id| twenty.contains(id)),
        "a larger cap keeps what a smaller one does"
    );
}
