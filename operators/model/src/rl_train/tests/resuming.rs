//! Runs that were broken off, alarms that end a stage, and judging beside sampling.

use std::sync::atomic::Ordering;

use engine_core::StageContext;
use engine_core::policy::{Completion, GenerationWatch};
use operators_verifier::Verifier;
use serde_json::{Value, json};

use super::*;
use crate::rl_train::judging::{Bench, judge_while};
use crate::test_support::{FakeBackend, run};

/// Breaks a run off at every question whether it shall stop, and goes on from the last checkpoint.
fn goes_on_from_anywhere(changes: &Value, golds: &[&str]) {
    let stage = rl_train(changes);
    let backend = FakeBackend::new(tokens(&[RIGHT, WRONG, PLAIN]));
    let mut whole = prompts(golds);
    run(&stage, &backend, &mut whole).unwrap();
    let mut stopped_at = Vec::new();
    for questions in 0.. {
        let mut first = prompts(golds);
        first.checkpoint_each_step = true;
        first.cancel_after.store(questions, Ordering::SeqCst);
        if run(&stage, &backend, &mut first).is_ok() {
            break;
        }
        stopped_at.push(first.checkpoints.last().map(|saved| saved.step));
        let mut second = prompts(golds);
        second.checkpoints = first.checkpoints;
        run(&stage, &backend, &mut second).unwrap();
        assert_eq!(
            outcome(&second),
            outcome(&whole),
            "{changes}, question {questions}"
        );
        assert_eq!(second.last_progress(), whole.last_progress());
    }
    // The last step has no checkpoint: the stage ends with it.
    stopped_at.dedup();
    let steps = u64::from(stage.steps);
    let expected: Vec<Option<u64>> = std::iter::once(None).chain((1..steps).map(Some)).collect();
    assert_eq!(stopped_at, expected, "{changes}");
}

#[test]
fn a_run_that_was_broken_off_anywhere_goes_on_as_if_it_had_not_been() {
    // A prompt that nothing can equal gives a warning at the start.
    let mut golds = ["7"; 10];
    golds[3] = "\\frac{1}{0}";
    let changes = json!({
        "steps": 5, "prompts-per-step": 4, "updates-per-rollout": 2, "max-unusable": 1.0, "learning-rate": 0.5,
    });
    goes_on_from_anywhere(&changes, &golds);
}

#[test]
fn with_every_filter_it_goes_on_with_the_same_prompts_and_the_same_buffer() {
    let golds = ["7", "9", "8", "7", "9", "7"];
    for filter in [
        json!({"buffer": {"train-groups": 2, "max-staleness": 1, "stale": "drop"}}),
        json!({"buffer": {"train-groups": 1, "max-staleness": 0, "stale": "recompute"}}),
        json!({"resample": {"rounds": 2, "prompts-per-round": 2, "fallback": "train"}}),
        json!("none"),
    ] {
        let changes = json!({
            "steps": 4, "prompts-per-step": 3, "learning-rate": 0.5, "filter": filter, "temperature": 0.9,
            "alarms": [{"metric": "reward", "below": 1.4, "for": 2, "then": "warn"}],
        });
        goes_on_from_anywhere(&changes, &golds);
    }
}

#[test]
fn with_every_algorithm_it_goes_on_alike() {
    for changes in [
        json!({"algorithm": {"dapo": {}}}),
        json!({"algorithm": {"gspo": {}}, "updates-per-rollout": 2, "epochs": 2}),
        json!({"algorithm": {"reinforce-plus-plus": {}}, "kl": {"coefficient": 0.1, "in": "reward"}}),
        json!({"algorithm": {"cispo": {"clip-high": 4.0}}, "minibatches": "prompts", "updates-per-rollout": 2, "averaging": 0.9}),
        json!({"algorithm": {"rloo": {}}, "kl": {"coefficient": 0.1}, "lora": {"rank": 2, "alpha": 4.0}}),
    ] {
        let mut all = json!({"steps": 3, "prompts-per-step": 2, "learning-rate": 0.5});
        for (key, value) in changes.as_object().unwrap() {
            all[key] = value.clone();
        }
        goes_on_from_anywhere(&all, &["7"; 4]);
    }
}

#[test]
fn an_alarm_ends_the_stage_and_everything_that_was_recorded_is_kept() {
    let settings = |bound: f64| {
        json!({
            "steps": 5,
            "alarms": [{"metric": "groups_kept", "below": bound, "for": 2, "then": "stop"}],
        })
    };
    let backend = FakeBackend::in_turn(tokens(&[WRONG]));
    let mut io = one_prompt();
    let error = run(&rl_train(&settings(1.0)), &backend, &mut io)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`groups_kept` below 1 for 2 steps, up to step 2: 0.0000, 0.0000"),
        "{error}"
    );
    let steps: Vec<u64> = io.checkpoints.iter().map(|saved| saved.step).collect();
    assert_eq!(steps, [2]);
    // The same again ends at once; without the alarm it goes on with what was there.
    let mut again = one_prompt();
    again.checkpoints.clone_from(&io.checkpoints);
    let second = run(&rl_train(&settings(1.0)), &backend, &mut again)
        .unwrap_err()
        .to_string();
    assert_eq!(second, error);
    assert_eq!(again.output("rollouts").num_rows(), 8);
    let mut on = one_prompt();
    on.checkpoints = io.checkpoints;
    run(&rl_train(&json!({"steps": 5})), &backend, &mut on).unwrap();
    assert_eq!(on.output("rollouts").num_rows(), 20);
}

#[test]
fn answers_are_judged_as_they_come_and_come_back_in_the_order_of_the_requests() {
    let stage = rl_train(&json!({}));
    let io = one_prompt();
    let root = std::path::PathBuf::from("/nowhere");
    let context = StageContext {
        stage: "test",
        seed: 0,
        root: &root,
        backend: None,
    };
    let verifier = Verifier::open(&stage.verify, &context, &io).unwrap();
    let processor = Processor::load(&model_folder()).unwrap();
    let bench = Bench {
        verifier: &verifier,
        score: &stage.score,
        processor: &processor,
        stop: &[],
        reads_question: false,
    };
    let rows = crate::prompt_rows::read_prompts(&io, "prompts").unwrap();
    let answers = tokens(&[RIGHT, WRONG, PLAIN]);
    let count = 200;
    let sample = |watch: &mut dyn GenerationWatch| {
        for index in (0..count).rev() {
            let completion = Completion {
                token_ids: answers[index % 3].clone(),
                ..Completion::default()
            };
            watch.finished(index, &completion);
        }
        Ok(())
    };
    let ((), judged) = judge_while(&bench, count, &|_| &rows[0], &io, &mut |_| {}, sample).unwrap();
    for (index, judgement) in judged.iter().enumerate() {
        assert_eq!(judgement.text, [RIGHT, WRONG, PLAIN][index % 3]);
        let is_right = judgement.verdict.outcome == operators_verdict::Outcome::Correct;
        assert_eq!(is_right, index % 3 == 0);
    }
    // A policy that does not tell of every answer is noticed.
    let silent = judge_while(&bench, 1, &|_| &rows[0], &io, &mut |_| {}, |_| Ok(()));
    assert!(silent.is_err());
}
