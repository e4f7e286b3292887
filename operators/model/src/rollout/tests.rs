//! Tests of `rollout` on the fake policy.

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use serde_json::json;

use super::*;
use crate::test_support::{
    Call, FakeBackend, MemoryIo, apply, config, model_folder, prompt_batch, run,
};

fn stage(changes: &Value) -> Rollout {
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
fn rows_are_complete_and_in_the_order_of_slices_prompts_and_samples() {
    let ids: Vec<String> = (0..7).map(|index| format!("p{}", 9 - index)).collect();
    let mut io = io(&ids);
    let backend = FakeBackend::in_turn(vec![vec![25, 2], vec![26, 27, 2]]);
    let stage = stage(&json!({"samples": 4}));
    run(&stage, &backend, &mut io).unwrap();
    let table = io.output("rollouts");
    assert_eq!(table.schema(), TableName::Rollouts.schema());
    let found = table.column(0).as_string::<i64>();
    let samples = table.column(1).as_primitive::<UInt32Type>();
    let order: Vec<(String, u32)> = (0..table.num_rows())
        .map(|row| (found.value(row).to_owned(), samples.value(row)))
        .collect();
    let slice = |slice: Range<u32>| {
        ids.iter()
            .flat_map(move |id| slice.clone().map(move |sample| (id.clone(), sample)))
    };
    let expected: Vec<(String, u32)> = stage.slices().into_iter().flat_map(slice).collect();
    assert_eq!(order, expected);
    let texts = table.column(2).as_string::<i64>();
    assert_eq!([texts.value(0), texts.value(7)], ["3", "45"]);
    let tokens = table.column(3).as_list::<i64>();
    assert_eq!(
        tokens.value(7).as_primitive::<UInt32Type>().values(),
        &[26, 27, 2]
    );
}

#[test]
fn more_samples_begin_with_the_slices_of_fewer() {
    let slices = |samples: u32| stage(&json!({"samples": samples})).slices();
    assert_eq!(slices(1), std::iter::once(0..1).collect::<Vec<_>>());
    assert_eq!(slices(8), [0..1, 1..2, 2..4, 4..8]);
    assert_eq!(slices(16)[..4], slices(8));
    assert_eq!(slices(11)[3..], [4..8, 8..11]);
}

#[test]
fn parts_do_not_depend_on_the_number_of_samples_or_of_sequences_decoded_together() {
    let part_config = |changes: Value| {
        let stage = stage(&changes);
        stage.part_config(&serde_json::to_value(&stage).unwrap())
    };
    let usual = part_config(json!({}));
    assert_eq!(
        usual,
        part_config(json!({"samples": 99, "max-concurrent": 7}))
    );
    assert_ne!(usual, part_config(json!({"temperature": 0.5})));
    assert_ne!(usual, part_config(json!({"max-new-tokens": 9})));
}

#[test]
fn a_slice_is_the_same_beside_any_other_and_all_are_decoded_in_one_call() {
    let ids: Vec<String> = (0..5).map(|index| format!("p{index}")).collect();
    let (io, stage) = (io(&ids), stage(&json!({"samples": 8})));
    let rows: Vec<_> = ids
        .iter()
        .map(|id| (id.as_str(), "Why?", None, None))
        .collect();
    let rows = prompt_batch(&rows);
    let backend = FakeBackend::new(vec![vec![25, 2], vec![26, 27, 2]]);
    let all = apply(&stage, &backend, &io, &rows, &stage.slices()).unwrap();
    let calls = backend.calls().into_iter().filter_map(|call| match call {
        Call::Generate { requests, .. } => Some(requests),
        _ => None,
    });
    assert!(calls.eq([40]));
    let some = apply(&stage, &backend, &io, &rows, &[1..2, 4..8]).unwrap();
    assert_eq!(some.slices, [all.slices[1].clone(), all.slices[3].clone()]);
    assert!(all.tokens > some.tokens && some.tokens > 0);
}

#[test]
fn a_prompt_that_cannot_be_asked_fails_alone() {
    let long = "Why? ".repeat(200);
    let rows = [
        ("good", "Why?", None, None),
        ("long", long.as_str(), None, None),
        ("picture", "image:m1", None, None),
        ("last", "Why?", None, None),
    ];
    let io = io(&[]).with_media("m1", b"no image".to_vec());
    let mut backend = FakeBackend::in_turn(vec![vec![25, 2]]);
    backend.positions = 100;
    let stage = stage(&json!({}));
    let found = apply(&stage, &backend, &io, &prompt_batch(&rows), &stage.slices()).unwrap();
    let failed: Vec<(usize, &str)> = found
        .failed
        .iter()
        .map(|failure| (failure.row, failure.error.as_str()))
        .collect();
    assert_eq!(failed[0].0, 1);
    assert_eq!(failed[0].1, "prompt `long`: it does not fit 100 positions");
    assert_eq!(failed[1].0, 2);
    assert!(failed[1].1.contains("prompt `picture`: image m1"));
    for slice in found.slices {
        let ids = slice["rollouts"].column(0).as_string::<i64>();
        assert!(
            ids.iter()
                .flatten()
                .all(|id| ["good", "last"].contains(&id))
        );
        assert_eq!(ids.len() % 2, 0);
        assert!(!ids.is_empty());
    }
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

#[test]
fn keys_that_change_nothing_are_not_in_the_stage_key() {
    let canonical = |changes: Value| serde_json::to_value(stage(&changes)).unwrap();
    let usual = canonical(json!({}));
    let mut keys: Vec<&String> = usual.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "max-concurrent",
            "max-new-tokens",
            "precision",
            "samples",
            "temperature"
        ]
    );
    let neutral = json!({
        "top-k": 0, "top-p": 1.0, "min-p": 0.0, "repetition-penalty": 1.0, "presence-penalty": 0.0,
        "frequency-penalty": 0.0, "min-new-tokens": 0, "stop": [], "record-entropy": false,
    });
    assert_eq!(canonical(neutral), usual);
    let narrowed = json!({"top-p": 0.9, "stop": ["\n"]});
    assert_eq!(canonical(narrowed.clone())["stop"], narrowed["stop"]);
}

#[test]
fn values_that_cannot_be_used_are_all_named() {
    let faults = |changes: Value| {
        let found = stage(&changes).output_types(&PortTypes::new());
        let faults = found.err().unwrap_or_default().into_iter();
        faults.map(|fault| fault.path.join(".")).collect::<Vec<_>>()
    };
    let wrong = json!({
        "top-p": 1.1, "min-p": -0.1, "repetition-penalty": 0.0, "presence-penalty": 2.5,
        "frequency-penalty": -3.0, "min-new-tokens": 9, "stop": ["a", ""],
    });
    assert_eq!(
        faults(wrong),
        [
            "top-p",
            "min-p",
            "repetition-penalty",
            "presence-penalty",
            "frequency-penalty",
            "min-new-tokens",
            "stop"
        ]
    );
    let greedy = json!({"samples": 1, "temperature": 0.0, "top-k": 5});
    assert_eq!(faults(greedy), ["top-k"]);
    assert!(faults(json!({"top-k": 5, "top-p": 0.9, "stop": ["x"]})).is_empty());
}

#[test]
fn an_answer_ends_at_a_stop_string_and_the_columns_are_those_asked_for() {
    let io = io(&["one".to_owned()]);
    let rows = prompt_batch(&[("one", "Why?", None, None)]);
    let backend = FakeBackend::in_turn(vec![vec![25, 26, 27, 2]]);
    let sampled = |changes: Value| {
        let stage = stage(&changes);
        let mut found = apply(&stage, &backend, &io, &rows, &stage.slices()).unwrap();
        let types = stage.output_types(&PortTypes::new()).unwrap();
        let table = found.slices[0].remove("rollouts").unwrap();
        let PortType::Table { schema, .. } = &types["rollouts"][0] else {
            panic!("rollouts are a table");
        };
        assert_eq!(table.schema(), *schema);
        table
    };
    let whole = sampled(json!({}));
    assert_eq!(whole.schema(), TableName::Rollouts.schema());
    assert_eq!(whole.column(2).as_string::<i64>().value(0), "345");
    let cut = sampled(json!({"stop": ["4"], "record-entropy": true, "top-k": 3}));
    assert_eq!(cut.column(2).as_string::<i64>().value(0), "3");
    let tokens = cut.column(3).as_list::<i64>().value(0);
    assert_eq!(tokens.as_primitive::<UInt32Type>().values(), &[25, 26]);
    let reasons = cut.column_by_name("finish_reason").unwrap();
    assert_eq!(reasons.as_string::<i64>().value(0), "stop");
    for name in ["truncated_logprobs", "entropies"] {
        let lists = cut.column_by_name(name).unwrap().as_list::<i64>();
        assert_eq!(lists.value(0).len(), 2);
    }
    assert!(
        sampled(json!({"top-p": 0.5}))
            .column_by_name("entropies")
            .is_none()
    );
}
