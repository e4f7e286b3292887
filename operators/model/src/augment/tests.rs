//! Tests of `augment` on the fake policy.

use std::sync::Arc;

use arrow::array::{Array, AsArray, LargeStringArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use serde_json::json;

use super::*;
use crate::processor::Processor;
use crate::test_support::{
    Call, FakeBackend, MemoryIo, apply, config, model_folder, prompt_batch, run,
};

const RIGHT: &str = "<think>3 + 4</think><answer>7</answer>";
const WRONG: &str = "<think>3</think><answer>8</answer>";

fn io(rows: &[(&str, &str, Option<&str>, Option<&str>)]) -> MemoryIo {
    MemoryIo::new().with_table("prompts", TableName::Prompts, vec![prompt_batch(rows)])
}

fn texts(io: &MemoryIo, port: &str, column: &str) -> Vec<String> {
    let table = io.output(port);
    let column = table.column_by_name(column).unwrap().as_string::<i64>();
    column
        .iter()
        .map(|text| text.unwrap_or("null").to_owned())
        .collect()
}

fn from_model(keep: u32, max_new_tokens: u32) -> Augment {
    config(json!({
        "expert": {"model": {"attempts": 4, "keep": keep, "temperature": 1.0, "max-new-tokens": max_new_tokens}},
        "verify": {"math": {}}, "require-format": true,
    }))
}

fn backend() -> FakeBackend {
    let processor = Processor::load(&model_folder()).unwrap();
    FakeBackend::in_turn(
        [WRONG, RIGHT]
            .map(|text| processor.encode_completion(text).unwrap())
            .to_vec(),
    )
}

#[test]
fn correct_solutions_become_examples_and_the_rest_is_unanswered() {
    let mut io = io(&[
        ("right", "How much?", Some("7"), Some(RIGHT)),
        ("wrong", "How much?", Some("7"), Some(WRONG)),
        ("none", "How much?", Some("7"), None),
        ("bare", "How much?", Some("7"), Some("\\boxed{7}")),
    ]);
    let stage: Augment = config(
        json!({"expert": {"solutions": {}}, "verify": {"math": {}}, "require-format": true}),
    );
    run(&stage, &backend(), &mut io).unwrap();
    assert_eq!(io.output("examples").schema(), TableName::Examples.schema());
    assert_eq!(io.output("unanswered").schema(), unanswered_schema());
    assert_eq!(texts(&io, "examples", "prompt_id"), ["right"]);
    assert_eq!(texts(&io, "examples", "origin"), ["expert"]);
    assert_eq!(texts(&io, "examples", "model"), ["null"]);
    assert_eq!(
        texts(&io, "unanswered", "prompt_id"),
        ["wrong", "none", "bare"]
    );
    assert_eq!(
        texts(&io, "unanswered", "reason"),
        [
            "the one answer cannot be learnt: 1 wrong",
            "there is no worked solution",
            "the one answer cannot be learnt: 1 right, in another form than the required one",
        ]
    );
}

#[test]
fn right_answers_are_rewritten_and_verified_again() {
    let rows = [
        ("boxed", "How much?", Some("7"), Some("3 + 4 is \\boxed{7}")),
        ("bare", "How much?", Some("7"), Some("<answer>7</answer>")),
        ("wrong", "How much?", Some("7"), Some("\\boxed{8}")),
        (
            "tags",
            "How much?",
            Some("7"),
            Some("As in <answer>1</answer><answer>7</answer>"),
        ),
        (
            "avoided",
            "How much?",
            Some("7"),
            Some("The Hint says \\boxed{7}"),
        ),
        (
            "unreadable",
            "How much?",
            Some("\\frac{"),
            Some("\\boxed{7}"),
        ),
    ];
    let mut io = io(&rows);
    let stage: Augment = config(json!({
        "expert": {"solutions": {}}, "verify": {"math": {}}, "require-format": true, "avoid": ["hint"],
        "rewrite": "<think>{reasoning}</think><answer>{answer}</answer>",
    }));
    run(&stage, &backend(), &mut io).unwrap();
    assert_eq!(
        texts(&io, "examples", "text"),
        ["<think>3 + 4 is \\boxed{7}</think><answer>7</answer>"]
    );
    let reasons = texts(&io, "unanswered", "reason");
    let expected = [
        "1 right, without the reasoning or answer to rewrite it",
        "1 wrong",
        "1 right, and not any more when rewritten",
        "1 right, with a text that is to be avoided",
        "its gold answer cannot be used: ",
    ];
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
    let faulty: Augment = config(json!({
        "expert": {"solutions": {"keep": 0}}, "verify": {"math": {}}, "require-format": true, "rewrite": "{reasoning}",
    }));
    let faults = faulty.output_types(&PortTypes::new()).unwrap_err();
    let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
    assert_eq!(paths, ["rewrite", "expert/solutions/keep"]);
}

#[test]
fn worked_solutions_of_a_table_come_before_the_column() {
    let text = |values: &[&str]| Arc::new(LargeStringArray::from(values.to_vec()));
    let schema = match worked::columns() {
        InputType::Columns(schema) => schema,
        other => panic!("{other:?}"),
    };
    let ids = text(&["p1", "other", "p1", "p1"]);
    let worked =
        RecordBatch::try_new(schema, vec![ids, text(&[WRONG, RIGHT, RIGHT, RIGHT])]).unwrap();
    for (keep, kept) in [(1, 1), (5, 2)] {
        let mut io = io(&[
            ("p1", "How much?", Some("7"), None),
            ("p2", "How much?", Some("7"), Some(RIGHT)),
        ])
        .with_table("solutions", TableName::Rows, vec![worked.clone()]);
        let stage: Augment = config(json!({
            "expert": {"solutions": {"keep": keep}}, "verify": {"math": {}}, "require-format": true,
        }));
        run(&stage, &backend(), &mut io).unwrap();
        assert_eq!(texts(&io, "examples", "text"), vec![RIGHT; kept]);
        assert_eq!(texts(&io, "unanswered", "prompt_id"), ["p2"]);
    }
}

#[test]
fn a_hint_is_for_the_expert_alone_and_only_where_it_is_needed() {
    let rows = [
        ("p1", "How much?", Some("8"), None),
        ("p2", "How much?", Some("7"), None),
        ("p3", "How much?", Some("9"), None),
    ];
    let mut io = io(&rows).with_model("model", model_folder());
    let processor = Processor::load(&model_folder()).unwrap();
    let encode = |text: &str| processor.encode_completion(text).unwrap();
    // The first attempts: 8, 8, 8. With a hint: 7 or 9 by turns.
    let stage: Augment = config(json!({
        "expert": {"model": {
            "attempts": 1, "keep": 2, "temperature": 1.0, "max-new-tokens": 60,
            "hint": {"text": "The answer is {answer}.", "attempts": 2},
        }},
        "verify": {"math": {}}, "require-format": true,
    }));
    let answer = |number: u32| encode(&format!("<think>so</think><answer>{number}</answer>"));
    let backend = FakeBackend::in_turn(vec![answer(8), answer(7), answer(9)]);
    run(&stage, &backend, &mut io).unwrap();
    assert_eq!(texts(&io, "examples", "prompt_id"), ["p1", "p2", "p3"]);
    assert_eq!(
        texts(&io, "examples", "origin"),
        ["expert", "expert-hinted", "expert-hinted"]
    );
    let table = io.output("examples");
    let messages = format!("{:?}", table.column_by_name("messages").unwrap());
    assert!(messages.contains("How much?") && !messages.contains("The answer is"));
    let generated: Vec<usize> = backend
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Generate { requests, .. } => Some(*requests),
            _ => None,
        })
        .collect();
    assert_eq!(generated, [3, 4]);
}

#[test]
fn the_first_correct_answers_of_a_model_are_kept() {
    for (keep, kept) in [(1, vec!["p1"]), (9, vec!["p1", "p1"])] {
        let rows = [
            ("p1", "How much?", Some("7"), None),
            ("p2", "How much?", Some("12"), None),
        ];
        let mut io = io(&rows).with_model("model", model_folder());
        run(&from_model(keep, 40), &backend(), &mut io).unwrap();
        assert_eq!(texts(&io, "examples", "prompt_id"), kept);
        assert!(
            texts(&io, "examples", "text")
                .iter()
                .all(|text| text == RIGHT)
        );
        assert_eq!(texts(&io, "unanswered", "prompt_id"), ["p2"]);
        assert_eq!(
            io.output("examples")
                .column_by_name("token_ids")
                .unwrap()
                .null_count(),
            kept.len()
        );
    }
}

#[test]
fn tokens_are_kept_for_a_student_with_the_same_tokenizer() {
    let rows = [("p1", "How much?", Some("7"), None)];
    let mut io = io(&rows)
        .with_model("model", model_folder())
        .with_model("student", model_folder());
    run(&from_model(1, 40), &backend(), &mut io).unwrap();
    let table = io.output("examples");
    let tokens = table
        .column_by_name("token_ids")
        .unwrap()
        .as_list::<i64>()
        .value(0);
    assert_eq!(
        tokens.as_primitive::<UInt32Type>().values().last(),
        Some(&2)
    );
}

#[test]
fn an_answer_that_was_cut_is_not_kept() {
    let tokens = Processor::load(&model_folder())
        .unwrap()
        .encode_completion(RIGHT)
        .unwrap();
    let mut io = io(&[("p1", "How much?", Some("7"), None)]).with_model("model", model_folder());
    // Everything but the end token fits.
    run(
        &from_model(1, u32::try_from(tokens.len()).unwrap() - 1),
        &backend(),
        &mut io,
    )
    .unwrap();
    assert_eq!(io.output("examples").num_rows(), 0);
}

#[test]
fn no_prompts_give_empty_tables() {
    let mut io = io(&[]).with_model("model", model_folder());
    run(&from_model(1, 40), &backend(), &mut io).unwrap();
    assert_eq!(
        (
            io.output("examples").num_rows(),
            io.output("unanswered").num_rows()
        ),
        (0, 0)
    );
}

#[test]
fn a_prompt_without_an_answer_fails_and_is_neither_answered_nor_unanswered() {
    let rows = [
        ("none", "How much?", None, Some(RIGHT)),
        ("right", "How much?", Some("7"), Some(RIGHT)),
        ("wrong", "How much?", Some("12"), Some(WRONG)),
    ];
    let solutions: Augment = config(
        json!({"expert": {"solutions": {}}, "verify": {"math": {}}, "require-format": true}),
    );
    let io = io(&[]).with_model("model", model_folder());
    for stage in [from_model(1, 40), solutions] {
        let found = apply(
            &stage,
            &backend(),
            &io,
            &prompt_batch(&rows),
            &stage.slices(),
        )
        .unwrap();
        assert_eq!(found.failed.len(), 1);
        assert_eq!(found.failed[0].row, 0);
        assert!(
            found.failed[0]
                .error
                .contains("prompt `none`: it has no answer")
        );
        let ids = |port: &str| -> Vec<String> {
            let ids = found.slices[0][port].column(0).as_string::<i64>();
            ids.iter().flatten().map(str::to_owned).collect()
        };
        assert_eq!(ids("examples"), ["right"]);
        assert_eq!(ids("unanswered"), ["wrong"]);
    }
}

#[test]
fn an_answer_that_ends_at_a_stop_string_is_learnt_by_its_text() {
    let mut io = io(&[("p1", "How much?", Some("7"), None)])
        .with_model("model", model_folder())
        .with_model("student", model_folder());
    let processor = Processor::load(&model_folder()).unwrap();
    let answer = processor.encode_completion(&format!("{RIGHT}\n7")).unwrap();
    let stage: Augment = config(json!({
        "expert": {"model": {
            "attempts": 1, "keep": 1, "temperature": 1.0, "max-new-tokens": 60, "stop": ["\n"],
        }},
        "verify": {"math": {}}, "require-format": true,
    }));
    run(&stage, &FakeBackend::in_turn(vec![answer]), &mut io).unwrap();
    assert_eq!(texts(&io, "examples", "text"), [RIGHT]);
    assert!(
        io.output("examples")
            .column_by_name("token_ids")
            .unwrap()
            .is_null(0)
    );
}

#[test]
fn sampling_values_that_cannot_be_used_are_named_where_they_are() {
    let stage: Augment = config(json!({
        "expert": {"model": {
            "attempts": 4, "keep": 1, "temperature": 1.0, "max-new-tokens": 8, "top-p": 3.0, "min-new-tokens": 9,
        }},
        "verify": {"math": {}}, "require-format": true,
    }));
    let faults = stage.output_types(&PortTypes::new()).unwrap_err();
    let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
    assert_eq!(paths, ["expert/model/top-p", "expert/model/min-new-tokens"]);
}
