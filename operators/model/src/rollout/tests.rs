//! Tests of `rollout` on the fake policy.

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use serde_json::json;

use super::*;
use crate::test_support::{Call, FakeBackend, MemoryIo, config, model_folder, prompt_batch, run};

fn stage(changes: &serde_json::Value) -> Rollout {
    let mut settings = json!({"samples": 3, "temperature": 1.0, "max-new-tokens": 8});
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config(settings)
}

fn io(ids: &[String]) -> MemoryIo {
    let rows: Vec<_> = ids
        .iter()
        .map(|id| (id.as_str(), "Why?", None, None))
        .collect();
    MemoryIo::new()
        .with_table("prompts", TableName::Prompts, vec![prompt_batch(&rows)])
        .with_model("model", model_folder())
}

#[test]
fn rows_are_complete_and_in_the_order_of_prompts_and_samples() {
    let ids: Vec<String> = (0..7).map(|index| format!("p{}", 9 - index)).collect();
    let mut io = io(&ids);
    let backend = FakeBackend::in_turn(vec![vec![25, 2], vec![26, 27, 2]]);
    // One call takes at most two prompts.
    run(&stage(&json!({"max-concurrent": 1})), &backend, &mut io).unwrap();
    let table = io.output("rollouts");
    assert_eq!(table.schema(), TableName::Rollouts.schema());
    let found = table.column(0).as_string::<i64>();
    let samples = table.column(1).as_primitive::<UInt32Type>();
    let order: Vec<(String, u32)> = (0..table.num_rows())
        .map(|row| (found.value(row).to_owned(), samples.value(row)))
        .collect();
    let expected: Vec<(String, u32)> = ids
        .iter()
        .flat_map(|id| (0..3).map(move |sample| (id.clone(), sample)))
        .collect();
    assert_eq!(order, expected);
    let texts = table.column(2).as_string::<i64>();
    assert_eq!([texts.value(0), texts.value(1)], ["3", "45"]);
    let tokens = table.column(3).as_list::<i64>();
    assert_eq!(
        tokens.value(1).as_primitive::<UInt32Type>().values(),
        &[26, 27, 2]
    );
    assert_eq!(io.last_progress().done, 21);
    let calls = backend
        .calls()
        .iter()
        .filter(|call| {
            matches!(
                call,
                Call::Generate {
                    requests: 1..=6,
                    ..
                }
            )
        })
        .count();
    assert_eq!(calls, 4);
}

#[test]
fn images_are_part_of_the_prompt_and_preprocessed_once() {
    let picture = model_folder().join("../image0.png");
    let rows = [("a", "image:m1", None, None), ("b", "image:m1", None, None)];
    let mut io = MemoryIo::new()
        .with_table("prompts", TableName::Prompts, vec![prompt_batch(&rows)])
        .with_model("model", model_folder())
        .with_media("m1", std::fs::read(picture).unwrap());
    run(
        &stage(&json!({})),
        &FakeBackend::in_turn(vec![vec![2]]),
        &mut io,
    )
    .unwrap();
    let table = io.output("rollouts");
    let tokens = table
        .column_by_name("prompt_tokens")
        .unwrap()
        .as_primitive::<UInt32Type>()
        .value(0);
    let mut text = MemoryIo::new()
        .with_table(
            "prompts",
            TableName::Prompts,
            vec![prompt_batch(&[("a", "", None, None)])],
        )
        .with_model("model", model_folder());
    run(
        &stage(&json!({})),
        &FakeBackend::in_turn(vec![vec![2]]),
        &mut text,
    )
    .unwrap();
    let without = text
        .output("rollouts")
        .column_by_name("prompt_tokens")
        .unwrap()
        .as_primitive::<UInt32Type>()
        .value(0);
    // Eight placeholders between a start and an end token.
    assert_eq!(tokens, without + 10);
}

#[test]
fn an_unreadable_image_names_prompt_and_digest() {
    let mut io = MemoryIo::new()
        .with_table(
            "prompts",
            TableName::Prompts,
            vec![prompt_batch(&[("a", "image:m1", None, None)])],
        )
        .with_model("model", model_folder())
        .with_media("m1", b"no image".to_vec());
    let error = run(
        &stage(&json!({})),
        &FakeBackend::in_turn(vec![vec![2]]),
        &mut io,
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("prompt `a`: image m1: not a readable image"),
        "{error}"
    );
}

#[test]
fn no_prompts_give_an_empty_table() {
    let mut io = io(&[]);
    run(
        &stage(&json!({})),
        &FakeBackend::in_turn(vec![vec![2]]),
        &mut io,
    )
    .unwrap();
    assert_eq!(io.output("rollouts").num_rows(), 0);
    assert_eq!(io.output("rollouts").column(0).null_count(), 0);
}

#[test]
fn a_repeated_prompt_id_is_refused() {
    let mut io = io(&["a".into(), "a".into()]);
    let error = run(
        &stage(&json!({})),
        &FakeBackend::in_turn(vec![vec![2]]),
        &mut io,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("prompt `a`: its id occurs twice"), "{error}");
}

#[test]
fn greedy_decoding_of_several_samples_is_refused() {
    let faults = stage(&json!({"temperature": 0.0}))
        .output_types(&PortTypes::new())
        .unwrap_err();
    assert_eq!(faults[0].path, ["temperature"]);
    assert!(faults[0].help.as_deref().unwrap().contains("samples: 1"));
    assert!(
        stage(&json!({"temperature": 0.0, "samples": 1}))
            .output_types(&PortTypes::new())
            .is_ok()
    );
}
