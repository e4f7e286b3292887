//! Every option of the stage with a policy that records what it is given.

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, UInt32Type};
use engine_core::event::StageEvent;
use engine_core::policy::{LoraOptions, Masters, TrainOptions};
use engine_core::{OperatorConfig, PortTypes};
use schemas::TableName;
use serde_json::{Value, json};

use super::config::SftTrain;
use crate::processor::Processor;
use crate::test_support::{
    Call, FakeBackend, MemoryIo, config, conversation_batch, model_folder, prompt_batch, run,
};

pub(super) const RIGHT: &str = "<think>3 + 4 = 7</think><answer>\\boxed{7}</answer>";
pub(super) const WRONG: &str = "<think>3 + 4 = 8</think><answer>\\boxed{8}</answer>";

fn processor() -> Processor {
    Processor::load(&model_folder()).unwrap()
}

pub(super) fn sft_train(changes: &Value) -> SftTrain {
    let mut settings = json!({"epochs": 1, "sequences-per-step": 1, "learning-rate": 1.0, "warmup-steps": 0, "schedule": "constant"});
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config(settings)
}

pub(super) fn evaluate(changes: &Value) -> Value {
    let mut settings = json!({"every": 2, "verify": {"math": {}}, "max-new-tokens": 64, "samples": 4, "temperature": 1.0});
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

/// `answers` to one question each, and the ten prompts of an evaluation whose answer is 7.
pub(super) fn io(answers: &[&str]) -> MemoryIo {
    let question: &[(&str, &str)] = &[("user", "Why?")];
    let ids: Vec<String> = (0..answers.len())
        .map(|index| format!("e{index}"))
        .collect();
    let rows: Vec<_> = ids
        .iter()
        .zip(answers)
        .map(|(id, answer)| (id.as_str(), question, *answer))
        .collect();
    let ids: Vec<String> = (0..10).map(|index| format!("p{index}")).collect();
    let prompts: Vec<_> = ids
        .iter()
        .map(|id| (id.as_str(), "What?", Some("7"), None))
        .collect();
    MemoryIo::new()
        .with_table(
            "examples",
            TableName::Examples,
            vec![conversation_batch(&rows)],
        )
        .with_table(
            "evaluation",
            TableName::Prompts,
            vec![prompt_batch(&prompts)],
        )
        .with_model("model", model_folder())
}

pub(super) fn backend() -> FakeBackend {
    let tokens = [RIGHT, WRONG].map(|text| processor().encode_completion(text).unwrap());
    FakeBackend::new(tokens.to_vec())
}

/// Steps and values of a metric.
pub(super) fn metric(io: &MemoryIo, name: &str) -> Vec<(i64, f64)> {
    let table = io.output("metrics");
    let steps = table.column(0).as_primitive::<Int64Type>();
    let names = table.column(1).as_string::<i64>();
    let values = table.column(2).as_primitive::<Float64Type>();
    (0..table.num_rows())
        .filter(|row| names.value(*row) == name)
        .map(|row| (steps.value(row), values.value(row)))
        .collect()
}

fn training(backend: &FakeBackend) -> TrainOptions {
    let calls = backend.calls();
    let loaded = calls.iter().find_map(|call| match call {
        Call::Load(options) => options.training.clone(),
        _ => None,
    });
    loaded.unwrap()
}

#[test]
fn all_turns_are_one_sequence_whose_mask_marks_the_answers_and_their_end_tokens() {
    let turns: &[(&str, &str)] = &[
        ("system", "Be short."),
        ("user", "3 + 4?"),
        ("assistant", "7"),
        ("user", "2 + 1?"),
        ("assistant", "3"),
        ("user", "9?"),
    ];
    let conversations = || {
        MemoryIo::new()
            .with_table(
                "examples",
                TableName::Examples,
                vec![conversation_batch(&[("a", turns, "9 + 0")])],
            )
            .with_model("model", model_folder())
    };
    let all = backend();
    let mut io = conversations();
    run(&sft_train(&json!({"turns": "all"})), &all, &mut io).unwrap();
    let learnt = all.learnt().concat();
    assert_eq!(learnt.len(), 1);
    let sequence = &learnt[0];
    assert_eq!(sequence.loss_mask.len(), sequence.completion.len());
    let processor = processor();
    let mut answers: Vec<Vec<u32>> = Vec::new();
    for (place, token) in sequence.completion.iter().enumerate() {
        if !sequence.loss_mask[place] {
            continue;
        }
        if place == 0 || !sequence.loss_mask[place - 1] {
            answers.push(Vec::new());
        }
        answers.last_mut().unwrap().push(*token);
    }
    let expected = ["7", "3", "9 + 0"].map(|text| processor.encode_completion(text).unwrap());
    assert_eq!(answers, expected);
    // The weight is that of the tokens that carry loss, and they alone are counted.
    let targets: usize = expected.iter().map(Vec::len).sum();
    assert_eq!(sequence.token_weight, (1.0 / targets as f64) as f32);
    assert_eq!(metric(&io, "tokens"), [(1, targets as f64)]);

    let last = backend();
    run(&sft_train(&json!({})), &last, &mut conversations()).unwrap();
    let alone = &last.learnt().concat()[0];
    assert_eq!(alone.completion, expected[2]);
    assert!(alone.loss_mask.is_empty());
    // Both see the same conversation before the last answer.
    let whole = [&sequence.prompt.token_ids[..], &sequence.completion].concat();
    let same = [&alone.prompt.token_ids[..], &alone.completion].concat();
    assert_eq!(whole, same);
}

#[test]
fn an_answer_with_an_image_is_refused_and_named() {
    let turns: &[(&str, &str)] = &[
        ("user", "Draw."),
        ("assistant", "image:00"),
        ("user", "More."),
    ];
    let mut io = MemoryIo::new()
        .with_table(
            "examples",
            TableName::Examples,
            vec![conversation_batch(&[("a", turns, "No.")])],
        )
        .with_model("model", model_folder());
    let error = run(&sft_train(&json!({"turns": "all"})), &backend(), &mut io).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("prompt `a`") && text.contains("answer 1 has an image"),
        "{text}"
    );
}

#[test]
fn dropped_answers_are_listed_with_turn_and_length() {
    let turns: &[(&str, &str)] = &[("user", "3 + 4?"), ("assistant", "7"), ("user", "Why?")];
    let rows = [("a", turns, RIGHT), ("b", &turns[..1], "7")];
    let mut io = MemoryIo::new()
        .with_table(
            "examples",
            TableName::Examples,
            vec![conversation_batch(&rows)],
        )
        .with_model("model", model_folder());
    let backend = backend();
    run(
        &sft_train(&json!({"turns": "all", "max-tokens": 30})),
        &backend,
        &mut io,
    )
    .unwrap();
    let dropped = io.output("dropped");
    assert_eq!(dropped.num_rows(), 1);
    assert_eq!(dropped.column(0).as_string::<i64>().value(0), "a");
    assert_eq!(dropped.column(1).as_primitive::<UInt32Type>().value(0), 2);
    assert!(dropped.column(2).as_primitive::<UInt32Type>().value(0) > 30);
    assert!(
        dropped
            .column(3)
            .as_string::<i64>()
            .value(0)
            .contains("max-tokens: 30")
    );
    assert_eq!(backend.learnt().concat().len(), 2);
    assert_eq!(
        io.warnings(),
        ["1 of 3 examples are longer than `max-tokens: 30` and were dropped: a"]
    );
}

#[test]
fn the_policy_is_loaded_with_the_options_and_memory_is_planned_before_the_first_step() {
    let backend = backend();
    let changes = json!({
        "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]}, "averaging": 0.5, "recompute": true,
        "micro-batch-tokens": 512, "deterministic": true, "learning-rates": {"visual.": 0.1}, "precision": "bfloat16",
    });
    let mut io = io(&[RIGHT]);
    run(&sft_train(&changes), &backend, &mut io).unwrap();
    let options = training(&backend);
    let lora = LoraOptions {
        rank: 4,
        alpha: 8.0,
        targets: vec!["q_proj".to_owned()],
    };
    assert_eq!(options.lora, Some(lora));
    assert_eq!(options.averaging, Some(0.5));
    assert_eq!(options.masters, Masters::Float32);
    assert_eq!(options.micro_batch_tokens, Some(512));
    assert!(options.recompute && options.deterministic);
    let calls = backend.calls();
    let planned = calls.iter().position(|call| matches!(call, Call::Plan(demand) if demand.train_tokens > 20 && demand.generate_tokens == 0));
    let stepped = calls
        .iter()
        .position(|call| matches!(call, Call::ForwardBackward(..)));
    assert!(planned.unwrap() < stepped.unwrap());
    let events = io.events.lock().unwrap();
    let is_note = |event: &StageEvent| matches!(event, StageEvent::Note(note) if note.starts_with("memory: weights 1.0 GiB"));
    assert_eq!(events.iter().filter(|event| is_note(event)).count(), 1);
    let is_step = |event: &&StageEvent| matches!(event, StageEvent::Metrics { step: 1, values } if values.iter().any(|(name, _)| name == "tokens_per_s"));
    assert_eq!(events.iter().filter(is_step).count(), 1);
}

#[test]
fn ports_follow_from_the_options() {
    let ports = |changes: Value| {
        let ports = sft_train(&changes).ports();
        let outputs = sft_train(&changes).output_types(&PortTypes::new()).unwrap();
        assert_eq!(outputs.len(), ports.outputs.len());
        assert!(
            ports
                .outputs
                .iter()
                .all(|port| outputs.contains_key(&port.name))
        );
        let inputs: Vec<String> = ports.inputs.into_iter().map(|port| port.name).collect();
        let outputs: Vec<String> = ports.outputs.into_iter().map(|port| port.name).collect();
        (inputs, outputs)
    };
    let (inputs, outputs) = ports(json!({}));
    assert_eq!(inputs, ["model", "examples"]);
    assert_eq!(outputs, ["model", "metrics", "dropped"]);
    let (inputs, outputs) = ports(
        json!({"evaluate": evaluate(&json!({})), "keep": "best", "lora": {"rank": 1, "alpha": 1.0}}),
    );
    assert_eq!(inputs, ["model", "examples", "evaluation"]);
    assert_eq!(
        outputs,
        ["model", "metrics", "dropped", "rollouts", "last", "adapter"]
    );
}

#[test]
fn wrong_settings_are_refused_where_they_are() {
    let cases = [
        (json!({"keep": "best"}), "keep", "add `evaluate`"),
        (json!({"stop-after": 2}), "stop-after", "add `evaluate`"),
        (
            json!({"evaluate": evaluate(&json!({"every": 0}))}),
            "evaluate/every",
            "at least 1",
        ),
        (
            json!({"evaluate": evaluate(&json!({"temperature": 0.0}))}),
            "evaluate/temperature",
            "greedily",
        ),
        (
            json!({"evaluate": evaluate(&json!({"verify": {"judge": {"rubric": "Is it right?"}}}))}),
            "evaluate/verify/judge/rubric",
            "does not show the answer",
        ),
        (
            json!({"min-learning-rate": 0.5}),
            "min-learning-rate",
            "no effect",
        ),
        (
            json!({"min-learning-rate": 1.0, "schedule": "linear"}),
            "min-learning-rate",
            "below 1",
        ),
        (
            json!({"masters": "stochastic-rounding"}),
            "masters",
            "precision: bfloat16",
        ),
        (json!({"averaging": 0.0}), "averaging", "above 0"),
        (
            json!({"alarms": [{"metric": "eval_accuracy", "below": 0.1, "then": "warn"}]}),
            "alarms",
            "no metric `eval_accuracy`",
        ),
    ];
    for (changes, path, word) in cases {
        let faults = sft_train(&changes)
            .output_types(&PortTypes::new())
            .unwrap_err();
        let fault = faults
            .iter()
            .find(|fault| fault.path.join("/").starts_with(path));
        let fault = fault.unwrap_or_else(|| panic!("{path}: {faults:?}"));
        assert!(fault.message.contains(word), "{}", fault.message);
    }
}
