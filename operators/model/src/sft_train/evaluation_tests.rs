//! Evaluations, and what follows from them: averages, the best model, early stops, alarms, and going on with all of them.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use engine_core::event::StageEvent;
use engine_core::policy::WeightSet;
use engine_core::policy::WeightSet::{Averaged, Base, Current};
use engine_core::{OperatorConfig, OperatorError, PortTypes};
use schemas::TableName;
use serde_json::json;

use super::option_tests::{RIGHT, WRONG, backend, evaluate, io, metric, sft_train};
use crate::test_support::{Call, MemoryIo, conversation_batch, model_folder, prompt_batch, run};

#[test]
fn the_average_is_what_is_saved_and_evaluated_and_the_weights_are_what_is_trained() {
    let backend = backend();
    let changes = json!({"averaging": 0.5, "lora": {"rank": 1, "alpha": 1.0}, "evaluate": evaluate(&json!({}))});
    let mut io = io(&[RIGHT, RIGHT]);
    run(&sft_train(&changes), &backend, &mut io).unwrap();
    let sets: Vec<WeightSet> = backend
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::UseWeights(weights) => Some(weights),
            Call::Generate { .. } => Some(Base),
            _ => None,
        })
        .collect();
    assert_eq!(sets, [Averaged, Base, Current, Averaged, Current]);
    // Two steps of the fake: the second one begins where the first one ended, and the average is half as far behind.
    let step = |logit: f64| 1.0 - logit.exp() / (logit.exp() + (-logit).exp());
    let first = step(0.0);
    let second = first + step(first);
    let average = 0.5 * (0.5 * first) + 0.5 * second;
    let saved: Vec<f64> = serde_json::from_str(&io.written_models["model"][0]).unwrap();
    assert!((saved[0] - average).abs() < 1e-6 && (saved[1] + average).abs() < 1e-6);
    assert_eq!(io.written_models["adapter"], io.written_models["model"]);
}

#[test]
fn evaluations_are_recorded_with_intervals_and_every_answer() {
    let backend = backend();
    let mut io = io(&[RIGHT; 5]);
    run(
        &sft_train(&json!({"evaluate": evaluate(&json!({}))})),
        &backend,
        &mut io,
    )
    .unwrap();
    let accuracy = metric(&io, "eval_accuracy");
    let steps: Vec<i64> = accuracy.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [2, 4, 5]);
    let (low, high) = (
        metric(&io, "eval_accuracy_low"),
        metric(&io, "eval_accuracy_high"),
    );
    for ((accuracy, low), high) in accuracy.iter().zip(low).zip(high) {
        assert!(low.1 <= accuracy.1 && accuracy.1 <= high.1 && low.1 < high.1);
    }
    assert!(accuracy[2].1 > 0.8, "{accuracy:?}");
    let rollouts = io.output("rollouts");
    assert_eq!(rollouts.num_rows(), 3 * 10 * 4);
    let verdicts = rollouts
        .column_by_name("verdict")
        .unwrap()
        .as_string::<i64>();
    let steps = rollouts
        .column_by_name("step")
        .unwrap()
        .as_primitive::<Int64Type>();
    let correct = (0..rollouts.num_rows())
        .filter(|row| steps.value(*row) == 4 && verdicts.value(*row) == "correct")
        .count();
    assert_eq!(correct as f64 / 40.0, accuracy[1].1);
    // The key-value cache is given back before the next update.
    let calls = backend.calls();
    let released = calls
        .iter()
        .filter(|call| matches!(call, Call::Release))
        .count();
    assert_eq!(released, 3);
    // Memory is planned for both.
    assert!(calls.iter().any(|call| matches!(call, Call::Plan(demand) if demand.generate_tokens > 64 && demand.generate_concurrent == 40)));
}

#[test]
fn training_ends_early_and_the_best_model_is_kept_beside_the_last() {
    let backend = backend();
    let changes =
        json!({"evaluate": evaluate(&json!({"every": 1})), "stop-after": 2, "keep": "best"});
    let mut io = io(&[WRONG; 9]);
    run(&sft_train(&changes), &backend, &mut io).unwrap();
    let accuracy = metric(&io, "eval_accuracy");
    let best = accuracy.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let first_best = accuracy
        .iter()
        .position(|(_, value)| *value == best)
        .unwrap();
    assert_eq!(accuracy.len(), first_best + 3);
    assert!(accuracy.len() < 9);
    assert_ne!(io.written_models["model"], io.written_models["last"]);
    // The kept model is that of the step with the best evaluation.
    let steps = first_best + 1;
    let mut shorter = self::io(&[WRONG; 9]);
    run(
        &sft_train(&json!({"epochs": null, "steps": steps})),
        &self::backend(),
        &mut shorter,
    )
    .unwrap();
    assert_eq!(io.written_models["model"], shorter.written_models["model"]);
    let events = io.events.lock().unwrap();
    let told = events.iter().any(
        |event| matches!(event, StageEvent::Note(note) if note.contains("stopped after step")),
    );
    assert!(told);
}

#[test]
fn evaluation_without_prompts_or_gold_answers_is_refused() {
    let stage = sft_train(&json!({"evaluate": evaluate(&json!({}))}));
    let mut empty = MemoryIo::new()
        .with_table(
            "examples",
            TableName::Examples,
            vec![conversation_batch(&[("a", &[("user", "Why?")], RIGHT)])],
        )
        .with_table(
            "evaluation",
            TableName::Prompts,
            vec![prompt_batch(&[("p", "What?", None, None)])],
        )
        .with_model("model", model_folder());
    let error = run(&stage, &backend(), &mut empty).unwrap_err();
    assert!(error.to_string().contains("prompt `p`"), "{error}");
    assert!(matches!(error, OperatorError::Data(_)));
}

#[test]
fn a_stop_alarm_ends_the_stage_with_a_checkpoint_and_it_goes_on_without_the_alarm() {
    let alarms = json!([{"metric": "tokens", "above": 1.0, "for": 2, "then": "stop"}]);
    let backend = backend();
    let mut first = io(&[RIGHT; 4]);
    let error = run(&sft_train(&json!({"alarms": alarms})), &backend, &mut first).unwrap_err();
    assert!(error.to_string().contains("tokens"), "{error}");
    let saved: Vec<u64> = first.checkpoints.iter().map(|saved| saved.step).collect();
    assert_eq!(saved, [2]);
    let mut second = io(&[RIGHT; 4]);
    second.checkpoints = first.checkpoints;
    run(&sft_train(&json!({})), &backend, &mut second).unwrap();
    assert_eq!(backend.learnt().len(), 4);
    let with = sft_train(&json!({"alarms": alarms}));
    let canonical = serde_json::to_value(&with).unwrap();
    let without = serde_json::to_value(sft_train(&json!({}))).unwrap();
    assert_eq!(with.key_config(&canonical, &PortTypes::new()), without);
}

#[test]
fn a_run_with_every_option_goes_on_from_anywhere_as_if_it_had_not_been_broken_off() {
    let changes = json!({
        "turns": "all", "max-tokens": 60, "averaging": 0.9, "lora": {"rank": 1, "alpha": 1.0}, "schedule": "linear",
        "min-learning-rate": 0.1, "evaluate": evaluate(&json!({"samples": 2})), "stop-after": 3, "keep": "best",
        "alarms": [{"metric": "eval_accuracy", "below": 0.45, "then": "warn"}], "epochs": 3,
    });
    let stage = sft_train(&changes);
    let long = "3 + 4 ".repeat(60);
    let fresh = || io(&[RIGHT, WRONG, WRONG, WRONG, &long]);
    let backend = backend();
    let outcome = |io: &MemoryIo| {
        (
            ["metrics", "dropped", "rollouts"].map(|port| io.output(port)),
            io.written_models.clone(),
            io.warnings(),
            io.last_progress(),
        )
    };
    let mut whole = fresh();
    run(&stage, &backend, &mut whole).unwrap();
    let best = metric(&whole, "eval_accuracy").first().unwrap().0;
    assert_eq!(best, 2);
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
    assert!(stopped_at.len() > 5, "{stopped_at:?}");
}

#[test]
fn a_loaded_judge_evaluates_beside_the_model() {
    let verify = json!({"verify": {"judge": {"max-new-tokens": 40, "of": "completion"}}});
    let stage = sft_train(&json!({"evaluate": evaluate(&verify)}));
    let ports = stage.ports().inputs;
    assert_eq!(ports.last().unwrap().name, "judge");
    let mut backend = backend();
    let processor = crate::processor::Processor::load(&model_folder()).unwrap();
    let verdict = processor.encode_completion("VERDICT: CORRECT").unwrap();
    backend.of_others = Some(vec![verdict]);
    let mut io = io(&[RIGHT; 5]).with_model("judge", model_folder());
    run(&stage, &backend, &mut io).unwrap();
    let accuracy = metric(&io, "eval_accuracy");
    assert!(
        accuracy.iter().all(|(_, share)| *share == 1.0),
        "{accuracy:?}"
    );
    let events = io.events.lock().unwrap();
    let is_told = |event: &StageEvent| matches!(event, StageEvent::Note(note) if note.starts_with("judge: 1.0 GiB more"));
    assert!(events.iter().any(is_told));
}
