//! GRPO as it has always been: the loop, its tables, its errors.

use engine_core::policy::{Loss, Precision};
use engine_core::{OperatorConfig, OperatorError, PortType, PortTypes};
use serde_json::json;

use super::*;
use crate::test_support::{Call, FakeBackend, run, run_with_seed};

#[test]
fn weights_and_advantages_are_those_of_the_formula() {
    // Rewards 1.5, 0.5, 0, 1.5: mean 0.875, deviation (Bessel) 0.75.
    let completions = tokens(&[RIGHT, WRONG, PLAIN]);
    let backend = FakeBackend::in_turn(completions.clone());
    run(&rl_train(&json!({})), &backend, &mut one_prompt()).unwrap();
    let learnt = backend.learnt();
    assert_eq!(learnt.len(), 1);
    assert_eq!(learnt[0].len(), 4);
    for (index, (reward, completion)) in [(1.5, 0), (0.5, 1), (0.0, 2), (1.5, 0)]
        .into_iter()
        .enumerate()
    {
        let completion = &completions[completion];
        let advantage = ((reward - 0.875) / (0.75 + 1e-6)) as f32;
        let weight = (1.0 / (4.0 * completion.len() as f64)) as f32;
        let found = learnt[0]
            .iter()
            .filter(|sequence| &sequence.completion == completion);
        let matching = found
            .filter(|sequence| {
                sequence.advantages == [advantage] && sequence.token_weight == weight
            })
            .count();
        assert!(
            matching > 0,
            "rollout {index}: no sequence with advantage {advantage} and weight {weight}"
        );
    }
    assert!(
        learnt[0]
            .iter()
            .all(|sequence| sequence.sampler_logprobs.len() == sequence.completion.len())
    );
    let clipped = Loss::clipped(0.2, 0.28);
    assert!(
        backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::ForwardBackward(_, loss) if *loss == clipped))
    );
}

#[test]
fn groups_without_signal_never_reach_the_policy() {
    for (texts, counted) in [([RIGHT], "groups_all_right"), ([WRONG], "groups_all_wrong")] {
        let backend = FakeBackend::in_turn(tokens(&texts));
        let mut io = one_prompt();
        run(&rl_train(&json!({})), &backend, &mut io).unwrap();
        assert!(backend.learnt().is_empty());
        assert!(
            !backend
                .calls()
                .iter()
                .any(|call| matches!(call, Call::OptimizerStep(_)))
        );
        let metrics = io.output("metrics");
        assert_eq!(metric(&metrics, 1, counted), Some(1.0));
        assert_eq!(metric(&metrics, 1, "groups_kept"), Some(0.0));
        assert_eq!(metric(&metrics, 1, "loss"), None);
        let rollouts = io.output("rollouts");
        assert_eq!(rollouts.num_rows(), 4);
        assert_eq!(
            rollouts.column_by_name("advantage").unwrap().null_count(),
            4
        );
    }
}

#[test]
fn answers_that_nothing_can_equal_are_never_rewarded_and_too_many_of_them_stop_the_stage() {
    let rows = [("p1", "How much?", Some("\\frac{1}{0}"), None)];
    let backend = FakeBackend::in_turn(tokens(&[RIGHT]));
    let error = run(&rl_train(&json!({})), &backend, &mut io(&rows)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("4 of 4 answers have no usable verdict"),
        "{error}"
    );

    let mut lenient = io(&rows);
    run(
        &rl_train(&json!({"max-unusable": 1.0})),
        &backend,
        &mut lenient,
    )
    .unwrap();
    assert!(lenient.warnings()[0].contains("p1"));
    assert_eq!(
        lenient
            .output("rollouts")
            .column_by_name("reward")
            .unwrap()
            .null_count(),
        4
    );
    assert!(backend.learnt().is_empty());
}

#[test]
fn it_learns_what_pays() {
    let backend = FakeBackend::new(tokens(&[WRONG, RIGHT, PLAIN]));
    let mut io = ten_prompts();
    let changes = json!({"steps": 40, "prompts-per-step": 5, "samples": 8, "learning-rate": 0.5});
    run(&rl_train(&changes), &backend, &mut io).unwrap();
    let metrics = io.output("metrics");
    let accuracy = |steps: std::ops::RangeInclusive<i64>| {
        let values: Vec<f64> = steps
            .map(|step| metric(&metrics, step, "accuracy").unwrap())
            .collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    assert!(accuracy(1..=5) < 0.6);
    assert!(accuracy(36..=40) > 0.9, "{}", accuracy(36..=40));
}

#[test]
fn tables_have_their_schemas_and_every_rollout() {
    let backend = FakeBackend::new(tokens(&[RIGHT, WRONG]));
    let mut io = ten_prompts();
    let stage = rl_train(&json!({"steps": 3, "prompts-per-step": 4}));
    run(&stage, &backend, &mut io).unwrap();
    let types = stage.output_types(&PortTypes::new()).unwrap();
    for port in ["metrics", "rollouts"] {
        let PortType::Table { schema, .. } = &types[port][0] else {
            panic!("{port} is a table")
        };
        assert_eq!(&io.output(port).schema(), schema);
    }
    let rollouts = io.output("rollouts");
    assert_eq!(rollouts.num_rows(), 3 * 4 * 4);
    let ids = rollouts.column(0).as_string::<i64>();
    let of_step = |step: usize| -> Vec<&str> {
        (0..4)
            .map(|prompt| ids.value(step * 16 + prompt * 4))
            .collect()
    };
    // Two steps fit in an epoch of ten prompts; no prompt occurs twice in it.
    let mut epoch: Vec<&str> = of_step(0).into_iter().chain(of_step(1)).collect();
    epoch.sort_unstable();
    epoch.dedup();
    assert_eq!(epoch.len(), 8);
    assert_eq!(io.written_models["model"].len(), 1);
    let progress = io.last_progress();
    assert_eq!(
        (progress.done, progress.total, progress.unit.as_str()),
        (3, Some(3), "steps")
    );
    assert!(progress.note.starts_with("reward "));
}

#[test]
fn the_same_seed_gives_the_same_tables_and_model_and_another_seed_does_not() {
    let outcome = |seed: u64| {
        let backend = FakeBackend::new(tokens(&[RIGHT, WRONG, PLAIN]));
        let mut io = ten_prompts();
        let changes = json!({"steps": 4, "prompts-per-step": 3, "updates-per-rollout": 2});
        run_with_seed(&rl_train(&changes), &backend, &mut io, seed).unwrap();
        (
            io.output("metrics"),
            io.output("rollouts"),
            io.written_models["model"].clone(),
        )
    };
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1).1, outcome(2).1);
}

#[test]
fn several_updates_share_the_rollouts_and_weigh_their_own_sequences() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    run(
        &rl_train(&json!({"updates-per-rollout": 2, "learning-rate": 0.25})),
        &backend,
        &mut one_prompt(),
    )
    .unwrap();
    let learnt = backend.learnt();
    assert_eq!(learnt.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    for sequence in learnt.iter().flatten() {
        assert_eq!(
            sequence.token_weight,
            (1.0 / (2.0 * sequence.completion.len() as f64)) as f32
        );
    }
    assert_eq!(
        backend
            .calls()
            .iter()
            .filter(|call| matches!(call, Call::OptimizerStep(0.25)))
            .count(),
        2
    );
}

#[test]
fn every_step_samples_from_a_stream_of_its_own() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    run(&rl_train(&json!({"steps": 3})), &backend, &mut one_prompt()).unwrap();
    let seeds = backend.calls().into_iter().filter_map(|call| match call {
        Call::Generate { requests: 4, seed } => Some(seed),
        _ => None,
    });
    let expected = (1..=3).map(|step| engine_core::seed::derive(17, &format!("step {step}")));
    assert!(seeds.eq(expected));
}

#[test]
fn at_another_temperature_ratios_are_taken_to_recomputed_probabilities() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    run(
        &rl_train(&json!({"temperature": 0.7})),
        &backend,
        &mut one_prompt(),
    )
    .unwrap();
    assert!(
        backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Logprobs(4)))
    );
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    run(&rl_train(&json!({})), &backend, &mut one_prompt()).unwrap();
    assert!(
        !backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Logprobs(_)))
    );
}

#[test]
fn truncated_answers_and_the_warm_up_are_recorded() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, PLAIN]));
    let mut io = one_prompt();
    let changes =
        json!({"max-new-tokens": 5, "steps": 2, "warmup-steps": 2, "precision": "bfloat16"});
    run(&rl_train(&changes), &backend, &mut io).unwrap();
    let metrics = io.output("metrics");
    assert_eq!(metric(&metrics, 1, "truncated"), Some(0.5));
    assert_eq!(metric(&metrics, 1, "learning_rate"), Some(0.05));
    assert_eq!(metric(&metrics, 2, "learning_rate"), Some(0.1));
    let Call::Load(options) = &backend.calls()[0] else {
        panic!("the model is loaded first")
    };
    assert_eq!(options.precision, Precision::Bfloat16);
    assert!(options.training.is_some());
}

#[test]
fn a_loss_that_is_not_finite_stops_and_names_step_and_prompt() {
    let mut backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    backend.explode_at = Some(1);
    let mut io = one_prompt();
    let error = run(&rl_train(&json!({"steps": 5})), &backend, &mut io)
        .unwrap_err()
        .to_string();
    assert!(error.contains("step 2") && error.contains("p1"), "{error}");
    assert!(io.written_models.is_empty());
}

#[test]
fn it_stops_when_asked() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let io = &mut one_prompt();
    io.cancel_after
        .store(4, std::sync::atomic::Ordering::SeqCst);
    let error = run(&rl_train(&json!({"steps": 50})), &backend, io).unwrap_err();
    assert!(matches!(error, OperatorError::Interrupted));
}

#[test]
fn steps_that_a_checkpoint_has_are_not_taken_again() {
    let stage = rl_train(&json!({"steps": 4}));
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let mut first = one_prompt();
    first.checkpoint_each_step = true;
    run(&stage, &backend, &mut first).unwrap();
    assert_eq!(backend.learnt().len(), 4);
    let steps: Vec<u64> = first.checkpoints.iter().map(|saved| saved.step).collect();
    assert_eq!(steps, [1, 2, 3]);
    let mut second = one_prompt();
    second.checkpoints = first.checkpoints;
    run(&stage, &backend, &mut second).unwrap();
    assert_eq!(backend.learnt().len(), 5);
}

#[test]
fn prompts_without_an_answer_or_too_few_are_refused() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT]));
    let error = run(
        &rl_train(&json!({})),
        &backend,
        &mut io(&[("p1", "Why?", None, None)]),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("prompt `p1`: it has no answer"),
        "{error}"
    );
    let error = run(
        &rl_train(&json!({"prompts-per-step": 2})),
        &backend,
        &mut one_prompt(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("prompts-per-step: 2"), "{error}");
}
