//! The divergence from a reference model, and what training does with adapters and averages.

use std::sync::Arc;

use engine_core::policy::{Completion, WeightSet};
use engine_core::{OperatorConfig, PortTypes};
use operators_verdict::{Outcome, Reward, Verdict};
use serde_json::json;

use super::*;
use crate::rl_train::advantages::set_advantages;
use crate::rl_train::algorithms::AdvantageRule;
use crate::rl_train::group::{Fate, Group, Origin, Rollout};
use crate::rl_train::kl::Kl;
use crate::test_support::{Call, FakeBackend, run};

fn loads(backend: &FakeBackend) -> Vec<bool> {
    let calls = backend.calls();
    let loads = calls.iter().filter_map(|call| match call {
        Call::Load(options) => Some(options.training.is_some()),
        _ => None,
    });
    loads.collect()
}

#[test]
fn the_reference_model_is_loaded_only_where_it_is_used() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    run(&rl_train(&json!({})), &backend, &mut one_prompt()).unwrap();
    assert_eq!(loads(&backend), [true]);

    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let settings = json!({"kl": {"coefficient": 0.04}});
    run(&rl_train(&settings), &backend, &mut one_prompt()).unwrap();
    assert_eq!(loads(&backend), [true, false]);

    // Adapters taken off give the reference model without a second one.
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let settings = json!({"kl": {"coefficient": 0.04}, "lora": {"rank": 4, "alpha": 8.0}});
    let mut io = one_prompt();
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    assert_eq!(loads(&backend), [true]);
    let calls = backend.calls();
    let base = calls
        .iter()
        .position(|call| matches!(call, Call::UseWeights(WeightSet::Base)));
    let base = base.expect("the base is used");
    assert!(matches!(calls[base + 1], Call::Logprobs(4)));
    assert!(matches!(
        calls[base + 2],
        Call::UseWeights(WeightSet::Current)
    ));
    assert!(io.written_models.contains_key("adapter"));

    // A model on the port counts before that.
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let mut io = one_prompt().with_model("reference", model_folder());
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    assert_eq!(loads(&backend), [true, false]);
}

#[test]
fn a_divergence_in_the_reward_is_taken_off_the_whole_answer_and_recorded() {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let settings =
        json!({"steps": 2, "learning-rate": 0.5, "kl": {"coefficient": 0.5, "in": "reward"}});
    let mut io = one_prompt();
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let rollouts = io.output("rollouts");
    let penalties = number_column(&rollouts, "kl_penalty");
    // The reference model is as at the start: half and half.
    assert_eq!(penalties[..4], [Some(0.0); 4]);
    let logprobs = rollouts
        .column_by_name("logprobs")
        .unwrap()
        .as_list::<i64>();
    let totals = number_column(&rollouts, "reward");
    let mut rewards = Vec::new();
    for (row, (penalty, total)) in penalties.iter().zip(&totals).enumerate().skip(4) {
        let values = logprobs.value(row);
        let values = values.as_primitive::<arrow::datatypes::Float32Type>();
        let sum: f64 = values.values().iter().map(|value| f64::from(*value)).sum();
        let expected = -0.5 * (sum - 0.5_f64.ln());
        assert!((penalty.unwrap() - expected).abs() < 1e-5, "{row}");
        rewards.push(total.unwrap() + expected);
    }
    // Advantages are of the reward with it.
    let mean = rewards.iter().sum::<f64>() / 4.0;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let deviation = (squares / 3.0).sqrt() + 1e-6;
    for (found, reward) in number_column(&rollouts, "advantage")[4..]
        .iter()
        .zip(&rewards)
    {
        assert!((found.unwrap() - (reward - mean) / deviation).abs() < 1e-4);
    }
    // It is no part of the loss.
    let sequences = backend.learnt().concat();
    assert!(
        sequences
            .iter()
            .all(|sequence| sequence.reference_logprobs.is_empty())
    );
    assert!(metric(&io.output("metrics"), 2, "kl").unwrap() > 0.0);
    assert!(metric(&io.output("metrics"), 2, "kl_penalty").is_some());
}

fn rollout(reward: Option<f64>, logprobs: &[f32], reference: &[f32]) -> Rollout {
    let outcome = match reward {
        None => Outcome::TimedOut,
        Some(reward) if reward > 0.0 => Outcome::Correct,
        Some(_) => Outcome::Wrong,
    };
    Rollout {
        sample: 0,
        completion: Completion {
            token_ids: vec![2; logprobs.len()],
            logprobs: logprobs.to_vec(),
            ..Completion::default()
        },
        text: String::new(),
        verdict: Verdict {
            outcome,
            extracted: None,
            format_ok: true,
        },
        reward: reward.map(|total| Reward {
            total,
            parts: vec![total, 0.0],
        }),
        reward_kl: None,
        recomputed_logprobs: None,
        reference_logprobs: reference.to_vec(),
        advantages: Vec::new(),
    }
}

fn group(rollouts: Vec<Rollout>) -> Group {
    Group {
        row: 0,
        prompt: Arc::default(),
        origin: Origin {
            step: 1,
            round: 1,
            seed: 0,
            policy_version: 0,
        },
        fate: Fate::Trained,
        rollouts,
    }
}

#[test]
fn a_rollout_without_a_verdict_is_masked_and_does_not_enter_the_group() {
    let mut group = group(vec![
        rollout(Some(1.0), &[-1.0], &[]),
        rollout(None, &[-1.0], &[]),
        rollout(Some(0.0), &[-1.0], &[]),
    ]);
    let rule = AdvantageRule::Answers(operators_verdict::Advantage::Grpo);
    set_advantages(&mut [&mut group], rule, None, |_| false);
    // Of 1 and 0 alone: mean 0.5, deviation 1 / sqrt 2. A zero in the place of the masked one would give other values.
    let expected = 0.5 / (0.5_f64.sqrt() + 1e-6);
    assert!(group.rollouts[1].advantages.is_empty());
    assert!((group.rollouts[0].advantages[0] - expected).abs() < 1e-12);
    assert!((group.rollouts[2].advantages[0] + expected).abs() < 1e-12);
}

#[test]
fn with_a_divergence_in_the_reward_every_token_has_what_is_still_to_come() {
    // k1 of the tokens: 0.5 and -0.25 for the first answer, 1 for the second.
    let mut group = group(vec![
        rollout(Some(1.0), &[-1.0, -1.0], &[-1.5, -0.75]),
        rollout(Some(0.0), &[-1.0], &[-2.0]),
    ]);
    let kl: Kl = config(json!({"coefficient": 0.2, "in": "reward"}));
    let rule = AdvantageRule::Tokens {
        group_baseline: false,
    };
    set_advantages(&mut [&mut group], rule, Some(&kl), |_| false);
    // R - 0.2 * (0.5 - 0.25), R - 0.2 * (-0.25); 0 - 0.2 * 1.
    let returns = [0.95, 1.05, -0.2_f64];
    let mean = returns.iter().sum::<f64>() / 3.0;
    let squares: f64 = returns.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / 2.0).sqrt() + 1e-6;
    let found: Vec<f64> = group
        .rollouts
        .iter()
        .flat_map(|rollout| rollout.advantages.clone())
        .collect();
    assert_eq!(group.rollouts[0].advantages.len(), 2);
    for (found, value) in found.iter().zip(returns) {
        assert!((found - (value - mean) / deviation).abs() < 1e-9, "{found}");
    }
}

#[test]
fn an_average_of_the_weights_is_what_is_written() {
    let written = |settings: &serde_json::Value| {
        let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
        let mut io = one_prompt();
        run(&rl_train(settings), &backend, &mut io).unwrap();
        (io.written_models["model"].clone(), backend)
    };
    let (average, backend) = written(&json!({"steps": 2, "averaging": 0.9}));
    let (last, _) = written(&json!({"steps": 2}));
    assert_ne!(average, last);
    let last_call = backend.calls().pop().unwrap();
    assert!(matches!(last_call, Call::UseWeights(WeightSet::Averaged)));
}

#[test]
fn the_key_has_no_alarms_and_the_port_of_adapters_is_there_with_adapters() {
    let key = |changes: &serde_json::Value| {
        let stage = rl_train(changes);
        let canonical = serde_json::to_value(&stage).unwrap();
        stage.key_config(&canonical, &PortTypes::new())
    };
    let alarms = json!({"alarms": [{"metric": "entropy", "below": 0.1, "then": "warn"}]});
    assert_eq!(key(&alarms), key(&json!({})));
    assert_ne!(key(&json!({"epochs": 2})), key(&json!({})));
    let outputs = |changes: &serde_json::Value| rl_train(changes).ports().outputs.len();
    assert_eq!(outputs(&json!({})), 3);
    assert_eq!(outputs(&json!({"lora": {"rank": 4, "alpha": 8.0}})), 4);
    let types = rl_train(&json!({"lora": {"rank": 4, "alpha": 8.0}}))
        .output_types(&PortTypes::new())
        .unwrap();
    assert!(types.contains_key("adapter"));
}
