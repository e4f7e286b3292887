//! The loop with a policy that records what it is given.

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use engine_core::policy::Loss;
use engine_core::{OperatorConfig, OperatorError, PortTypes};
use schemas::TableName;
use serde_json::json;

use super::config::SftTrain;
use crate::processor::Processor;
use crate::test_support::{
    Call, FakeBackend, MemoryIo, config, example_batch, model_folder, run, run_with_seed,
};

const SHORT: &str = "7";
const LONG: &str = "<think>3 + 4 = 7</think><answer>\\boxed{7}</answer>";

fn processor() -> Processor {
    Processor::load(&model_folder()).unwrap()
}

fn sft_train(changes: &serde_json::Value) -> SftTrain {
    let mut settings = json!({
        "epochs": 1, "sequences-per-step": 2, "max-tokens": 100, "learning-rate": 0.1, "warmup-steps": 0, "weight-decay": 0.0,
    });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config(settings)
}

fn io(rows: &[(&str, &str, Option<&[u32]>)]) -> MemoryIo {
    MemoryIo::new()
        .with_table("examples", TableName::Examples, vec![example_batch(rows)])
        .with_model("model", model_folder())
}

#[test]
fn text_is_tokenised_with_the_end_token_and_sampled_tokens_are_taken_as_they_are() {
    let sampled: &[u32] = &[25, 302, 2];
    let backend = FakeBackend::new(Vec::new());
    run(
        &sft_train(&json!({})),
        &backend,
        &mut io(&[("a", LONG, None), ("b", "ignored", Some(sampled))]),
    )
    .unwrap();
    let learnt = backend.learnt();
    assert_eq!(learnt.len(), 1);
    let expected = processor().encode_completion(LONG).unwrap();
    assert_eq!(expected.last(), Some(&2));
    let mut completions: Vec<&[u32]> = learnt[0]
        .iter()
        .map(|sequence| sequence.completion.as_slice())
        .collect();
    completions.sort_by_key(|completion| completion.len());
    assert_eq!(completions, [sampled, &expected]);
    let weight = (1.0 / (expected.len() + sampled.len()) as f64) as f32;
    assert!(
        learnt[0]
            .iter()
            .all(|sequence| sequence.token_weight == weight)
    );
    assert!(
        learnt[0]
            .iter()
            .all(|sequence| sequence.prompt.token_ids.len() > 5)
    );
    assert!(
        backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::ForwardBackward(_, Loss::CrossEntropy)))
    );
    assert!(
        backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::OptimizerStep(0.1)))
    );
}

#[test]
fn examples_over_the_limit_are_dropped_and_named() {
    let backend = FakeBackend::new(Vec::new());
    let mut io = io(&[("long", LONG, None), ("short", SHORT, None)]);
    run(&sft_train(&json!({"max-tokens": 20})), &backend, &mut io).unwrap();
    assert_eq!(backend.learnt().concat().len(), 1);
    assert_eq!(
        io.warnings(),
        ["1 of 2 examples are longer than `max-tokens: 20` and were dropped: long"]
    );
}

#[test]
fn nothing_to_train_on_is_an_error() {
    let backend = FakeBackend::new(Vec::new());
    let error = run(
        &sft_train(&json!({"max-tokens": 3})),
        &backend,
        &mut io(&[("a", SHORT, None)]),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("all 1 examples are longer"),
        "{error}"
    );
    let error = run(&sft_train(&json!({})), &backend, &mut io(&[])).unwrap_err();
    assert!(error.to_string().contains("no examples"), "{error}");
}

#[test]
fn token_ids_of_another_tokenizer_are_an_error_that_names_the_prompt() {
    let foreign: &[u32] = &[151_645];
    let backend = FakeBackend::new(Vec::new());
    let error = run(
        &sft_train(&json!({})),
        &backend,
        &mut io(&[("a", "", Some(foreign))]),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("prompt `a`") && error.to_string().contains("151645"),
        "{error}"
    );
}

#[test]
fn epochs_visit_every_example_equally_often() {
    let rows: Vec<(String, Vec<u32>)> = (0..5)
        .map(|index| (format!("e{index}"), vec![22 + index, 2]))
        .collect();
    let rows: Vec<(&str, &str, Option<&[u32]>)> = rows
        .iter()
        .map(|(id, ids)| (id.as_str(), "", Some(ids.as_slice())))
        .collect();
    let backend = FakeBackend::new(Vec::new());
    let mut io = io(&rows);
    run(&sft_train(&json!({"epochs": 3})), &backend, &mut io).unwrap();
    let learnt = backend.learnt();
    assert_eq!(
        learnt.iter().map(Vec::len).collect::<Vec<_>>(),
        [2, 2, 2, 2, 2, 2, 2, 1]
    );
    for example in 22..27 {
        assert_eq!(
            learnt
                .iter()
                .flatten()
                .filter(|sequence| sequence.completion[0] == example)
                .count(),
            3
        );
    }
    let progress = io.last_progress();
    assert_eq!(
        (progress.done, progress.total, progress.tokens),
        (8, Some(8), 30)
    );
}

#[test]
fn the_cosine_and_the_metrics_are_recorded_and_repeat() {
    let outcome = |seed: u64| {
        let backend = FakeBackend::new(vec![processor().encode_completion(SHORT).unwrap()]);
        let mut io = io(&[("a", SHORT, None), ("b", LONG, None), ("c", SHORT, None)]);
        run_with_seed(
            &sft_train(&json!({"epochs": null, "steps": 4, "warmup-steps": 1})),
            &backend,
            &mut io,
            seed,
        )
        .unwrap();
        (
            io.output("metrics"),
            io.written_models["model"].clone(),
            format!("{:?}", backend.learnt()),
        )
    };
    let (metrics, ..) = outcome(1);
    assert_eq!(metrics.schema(), TableName::Metrics.schema());
    let names = metrics.column(1).as_string::<i64>();
    let values = metrics.column(2).as_primitive::<Float64Type>();
    let rates = (0..metrics.num_rows())
        .filter(|row| names.value(*row) == "learning_rate")
        .map(|row| values.value(row));
    let expected = [0.1, 0.1, 0.075, 0.025];
    assert!(
        rates
            .zip(expected)
            .all(|(rate, expected)| (rate - expected).abs() < 1e-12)
    );
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1).2, outcome(2).2);
}

#[test]
fn it_stops_when_asked() {
    let io = &mut io(&[("a", SHORT, None)]);
    io.cancel_after
        .store(3, std::sync::atomic::Ordering::SeqCst);
    let error = run(
        &sft_train(&json!({"epochs": 100})),
        &FakeBackend::new(Vec::new()),
        io,
    )
    .unwrap_err();
    assert!(matches!(error, OperatorError::Interrupted));
}

#[test]
fn a_run_that_was_broken_off_anywhere_goes_on_as_if_it_had_not_been() {
    let fresh = || {
        io(&[
            ("a", SHORT, None),
            ("b", LONG, None),
            ("c", "8", None),
            ("d", "12", None),
        ])
    };
    let stage = sft_train(&json!({"epochs": 4, "max-tokens": 20}));
    let completions = [SHORT, "8"].map(|text| processor().encode_completion(text).unwrap());
    let backend = FakeBackend::new(completions.to_vec());
    let outcome = |io: &MemoryIo| {
        let model = io.written_models["model"].clone();
        (
            io.output("metrics"),
            model,
            io.warnings(),
            io.last_progress(),
        )
    };
    let mut whole = fresh();
    run(&stage, &backend, &mut whole).unwrap();
    assert_eq!(whole.warnings().len(), 1);
    let mut stopped_at = Vec::new();
    for questions in 0.. {
        let mut first = fresh();
        first.checkpoint_each_step = true;
        first
            .cancel_after
            .store(questions, std::sync::atomic::Ordering::SeqCst);
        if run(&stage, &backend, &mut first).is_ok() {
            break;
        }
        stopped_at.push(first.checkpoints.last().map(|saved| saved.step));
        let mut second = fresh();
        second.checkpoints = first.checkpoints;
        run(&stage, &backend, &mut second).unwrap();
        assert_eq!(outcome(&second), outcome(&whole), "question {questions}");
    }
    stopped_at.dedup();
    assert_eq!(stopped_at.len(), 6);
}

#[test]
fn steps_and_epochs_exclude_each_other() {
    let paths = |changes| {
        let faults = sft_train(&changes)
            .output_types(&PortTypes::new())
            .unwrap_err();
        faults
            .iter()
            .map(|fault| fault.path.join("/"))
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(json!({"steps": 3})), ["epochs"]);
    assert_eq!(paths(json!({"epochs": null})), ["steps"]);
}
