//! What is refused at plan time, where, and with which fix.

use engine_core::{OperatorConfig, PortType, PortTypes};
use serde_json::{Value, json};

use super::*;

fn refused(changes: &Value) -> Vec<(String, String)> {
    let faults = rl_train(changes)
        .output_types(&PortTypes::new())
        .err()
        .unwrap_or_default();
    let faults = faults.into_iter();
    faults
        .map(|fault| (fault.path.join("/"), fault.message))
        .collect()
}

#[test]
fn every_bad_value_is_reported_at_once_where_it_is() {
    let changes = json!({
        "algorithm": {"grpo": {"clip-low": 1.5, "clip-high": 0.28}}, "samples": 1, "learning-rate": 0.0, "temperature": 0.0,
        "min-p": 1.5, "epochs": 0, "imitation": -1.0, "filter": {"resample": {"rounds": 0, "fallback": "train"}},
        "kl": {"coefficient": 0.0}, "lora": {"rank": 0, "alpha": 1.0},
    });
    let paths: Vec<String> = refused(&changes)
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        paths,
        [
            "algorithm/grpo/clip-low",
            "samples",
            "temperature",
            "min-p",
            "min-p",
            "learning-rate",
            "epochs",
            "imitation",
            "lora/rank",
            "filter/resample/rounds",
            "kl/coefficient"
        ]
    );
}

/// Every case is refused once, there, with this in its message.
fn assert_refused(cases: &[(Value, &str, &str)]) {
    for (changes, path, fix) in cases {
        let found = refused(changes);
        assert!(
            matches!(&found[..], [(at, message)] if at == path && message.contains(fix)),
            "{changes}: {found:?}"
        );
    }
}

#[test]
fn what_does_not_go_with_an_algorithm_is_refused_with_the_fix() {
    let with =
        |algorithm: Value, key: &str, value: Value| json!({"algorithm": algorithm, key: value});
    let batch = || json!("batch");
    let in_reward = json!({"coefficient": 0.1, "in": "reward"});
    assert_refused(&[
        (
            with(json!({"gspo": {}}), "aggregation", json!("token-mean")),
            "aggregation",
            "leave `aggregation` out",
        ),
        (
            with(
                json!({"gspo-token": {}}),
                "aggregation",
                json!({"token-sum": {}}),
            ),
            "aggregation",
            "`gspo-token`",
        ),
        (
            with(json!({"dapo": {}}), "aggregation", json!("sequence-mean")),
            "aggregation",
            "use `grpo`",
        ),
        (
            with(
                json!({"dr-grpo": {}}),
                "aggregation",
                json!("sequence-mean"),
            ),
            "aggregation",
            "set `token-sum`",
        ),
        (
            with(json!({"dr-grpo": {}}), "statistics", batch()),
            "statistics",
            "leave `statistics` out",
        ),
        (
            with(json!({"rloo": {}}), "statistics", batch()),
            "statistics",
            "leave `statistics` out",
        ),
        (
            with(json!({"reinforce-plus-plus": {}}), "statistics", batch()),
            "statistics",
            "leave `statistics` out",
        ),
        (
            with(
                json!({"reinforce-plus-plus": {"group-baseline": true}}),
                "kl",
                in_reward,
            ),
            "kl/in",
            "estimator: k2",
        ),
    ]);
}

#[test]
fn clips_that_have_no_effect_are_refused_with_the_fix() {
    let of = |algorithm: Value| json!({"algorithm": algorithm});
    assert_refused(&[
        (
            of(json!({"grpo": {"clip-low": 0.2, "clip-high": 0.28, "ratio-cap": 1.1}})),
            "algorithm/grpo/ratio-cap",
            "1.28",
        ),
        (
            of(json!({"dapo": {"ratio-cap": 3.0, "dual-clip": 3.0}})),
            "algorithm/dapo/dual-clip",
            "no effect",
        ),
        (
            of(json!({"rloo": {"dual-clip": 1.0}})),
            "algorithm/rloo/dual-clip",
            "above 1",
        ),
        (
            of(json!({"cispo": {"clip-low": 1.1, "clip-high": 1.0}})),
            "algorithm/cispo/clip-low",
            "no lower bound",
        ),
    ]);
}

#[test]
fn other_settings_that_cannot_work_are_refused_with_the_fix() {
    let alarm = json!({"metric": "rewards", "below": 0.1, "then": "warn"});
    assert_refused(&[
        (
            json!({"aggregation": {"token-sum": {"over": 0}}}),
            "aggregation/token-sum",
            "at least 1",
        ),
        (
            json!({"updates-per-rollout": 5}),
            "updates-per-rollout",
            "4 answers",
        ),
        (
            json!({"updates-per-rollout": 2, "minibatches": "prompts"}),
            "updates-per-rollout",
            "1 prompts",
        ),
        (
            json!({"filter": {"drop": {"min-accuracy": 0.9, "max-accuracy": 0.1}}}),
            "filter/drop/min-accuracy",
            "exchange them",
        ),
        (
            json!({"alarms": [alarm]}),
            "alarms/0/metric",
            "no metric `rewards`",
        ),
        (
            json!({"score": {"accuracy": 1.0, "sql": {"x": {"weight": 1.0, "expression": " "}}}}),
            "score/sql/x/expression",
            "empty",
        ),
        (
            json!({"min-learning-rate": 0.1}),
            "min-learning-rate",
            "constant",
        ),
    ]);
}

#[test]
fn a_reference_model_that_nothing_uses_is_refused() {
    let inputs = PortTypes::from([("reference".to_owned(), vec![PortType::Model])]);
    let faults = rl_train(&json!({})).output_types(&inputs).unwrap_err();
    assert_eq!(faults[0].path, ["kl"]);
    assert!(
        rl_train(&json!({"kl": {"coefficient": 0.1}}))
            .output_types(&inputs)
            .is_ok()
    );
}

#[test]
fn expressions_of_the_reward_are_checked_against_the_columns() {
    let inputs = PortTypes::from([(
        "prompts".to_owned(),
        vec![PortType::table(TableName::Prompts)],
    )]);
    let stage = |expression: &str| {
        let part = json!({"weight": 1.0, "expression": expression});
        rl_train(&json!({"score": {"accuracy": 1.0, "sql": {"own": part}}}))
    };
    assert!(
        stage("tokens < 5 AND category = 'sum'")
            .output_types(&inputs)
            .is_ok()
    );
    let faults = stage("tokns < 5").output_types(&inputs).unwrap_err();
    assert_eq!(faults[0].path, ["score", "sql", "own", "expression"]);
}

#[test]
fn every_algorithm_is_fine_with_its_own_defaults() {
    for algorithm in [
        json!({"grpo": {"clip-low": 0.2, "clip-high": 0.2}}),
        json!({"dapo": {}}),
        json!({"dr-grpo": {}}),
        json!({"gspo": {}}),
        json!({"gspo-token": {}}),
        json!({"rloo": {}}),
        json!({"reinforce-plus-plus": {}}),
        json!({"reinforce-plus-plus": {"group-baseline": true}}),
        json!({"cispo": {"clip-high": 4.0}}),
    ] {
        let changes = json!({"algorithm": algorithm});
        assert_eq!(refused(&changes), [], "{algorithm}");
        // What is written is what is read.
        let stage = rl_train(&changes);
        let again: RlTrain = config(serde_json::to_value(&stage).unwrap());
        assert_eq!(stage, again);
    }
}

#[test]
fn keys_that_are_not_there_are_refused() {
    for unknown in [
        json!({"gspo": {"ratio-cap": 3.0}}),
        json!({"cispo": {"clip-high": 1.0, "dual-clip": 3.0}}),
        json!({"dr-grpo": {"clip": 0.2}}),
    ] {
        let result: Result<crate::rl_train::Algorithm, _> = serde_json::from_value(unknown.clone());
        assert!(result.is_err(), "{unknown}");
    }
}
