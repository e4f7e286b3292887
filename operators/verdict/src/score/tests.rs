use super::*;

/// What TRL's reward functions give, from `tests/golden/score/make.py`.
const GOLDEN: &str = include_str!("../../../../tests/golden/score/parts.json");

#[derive(Deserialize)]
struct Golden {
    overlong: Vec<Counted>,
    repetition: Vec<Repeated>,
    length: Vec<Counted>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    correct: bool,
    tokens: usize,
    value: f64,
}

#[derive(Deserialize)]
struct Repeated {
    ngram: u32,
    tokens: Vec<u32>,
    value: f64,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).unwrap()
}

fn verdict(outcome: Outcome, format_ok: bool) -> Verdict {
    Verdict {
        outcome,
        extracted: None,
        format_ok,
    }
}

fn read(json: serde_json::Value) -> ScoreConfig {
    serde_json::from_value(json).unwrap()
}

fn close(ours: f64, theirs: f64) -> bool {
    (ours - theirs).abs() < 1e-12
}

const LENGTH: Length = Length {
    weight: 1.0,
    shape: LengthShape::Cosine,
    max_tokens: 100,
    correct: Ends {
        shortest: 2.0,
        longest: 1.0,
    },
    wrong: Ends {
        shortest: -10.0,
        longest: 0.0,
    },
    exceeded: None,
};

#[test]
fn accuracy_and_format_are_as_they_were_and_what_is_no_judgement_has_no_reward() {
    let score = read(serde_json::json!({"accuracy": 1.0, "format": 0.5}));
    let reward = |outcome, format_ok| {
        let facts = Facts {
            verdict: &verdict(outcome, format_ok),
            measured: score.measure("any", &[1, 2]),
            truncated: false,
            sql: &[],
        };
        let reward = score.reward(&facts).unwrap();
        reward.map(|reward| (reward.total, reward.accuracy(), reward.format()))
    };
    assert_eq!(reward(Outcome::Correct, true), Some((1.5, 1.0, 1.0)));
    assert_eq!(reward(Outcome::Correct, false), Some((1.0, 1.0, 0.0)));
    assert_eq!(reward(Outcome::Wrong, true), Some((0.5, 0.0, 1.0)));
    assert_eq!(reward(Outcome::Unparsed, false), Some((0.0, 0.0, 0.0)));
    assert_eq!(reward(Outcome::TimedOut, true), None);
    assert_eq!(reward(Outcome::Failed, true), None);
    assert_eq!(score.part_names(), ["accuracy", "format"]);
    let json = serde_json::to_value(&score).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"accuracy": 1.0, "format": 0.5}),
        "the key of old stages"
    );
}

#[test]
fn every_part_is_in_its_place_before_its_weight() {
    let score = read(serde_json::json!({
        "accuracy": 1.0,
        "overlong": {"weight": 0.5, "max-tokens": 6, "cache-tokens": 4},
        "repetition": {"weight": 2.0, "ngram": 1},
        "length": {"weight": 0.25, "shape": "linear", "max-tokens": 8, "exceeded": -1.0,
                   "correct": {"shortest": 1.0, "longest": 0.0}, "wrong": {"shortest": -1.0, "longest": 0.0}},
        "language": {"weight": 0.1, "scripts": ["latin"]},
        "sql": {"zeta": {"weight": -1.0, "expression": "1"}, "alpha": {"weight": 3.0, "expression": "sample"}},
    }));
    score.check().unwrap();
    let names = [
        "accuracy",
        "format",
        "overlong",
        "repetition",
        "length",
        "language",
        "alpha",
        "zeta",
    ];
    assert_eq!(score.part_names(), names);
    assert_eq!(score.sql_parts()[0].1, "sample");
    let reward = |truncated, sql: &[Option<f64>]| {
        score.reward(&Facts {
            verdict: &verdict(Outcome::Correct, true),
            measured: score.measure("да no", &[4, 4, 5, 4]),
            truncated,
            sql,
        })
    };
    let whole = reward(false, &[Some(2.0), Some(0.5)]).unwrap().unwrap();
    assert_eq!(whole.parts, [1.0, 1.0, -0.5, -0.5, 0.5, 0.5, 2.0, 0.5]);
    let total = 1.0 + 0.5 * -0.5 + 2.0 * -0.5 + 0.25 * 0.5 + 0.1 * 0.5 + 3.0 * 2.0 - 0.5;
    assert!(close(whole.total, total), "{}", whole.total);
    let cut = reward(true, &[Some(2.0), Some(0.5)]).unwrap().unwrap();
    assert_eq!(cut.parts[4], -1.0, "exceeded");
    for (values, shown) in [
        ([None, Some(0.0)], "part `alpha` of the reward is null"),
        (
            [Some(1.0), Some(f64::NAN)],
            "part `zeta` of the reward is NaN",
        ),
    ] {
        let error = reward(false, &values).unwrap_err().to_string();
        assert!(error.starts_with(shown), "{error}");
    }
}

#[test]
fn overlong_equals_trl() {
    let overlong = Overlong {
        weight: 1.0,
        max_tokens: 100,
        cache_tokens: 20,
    };
    for case in golden().overlong {
        assert!(
            close(overlong.value(case.tokens), case.value),
            "{}",
            case.tokens
        );
    }
}

#[test]
fn overlong_has_the_values_of_the_paper() {
    let overlong = Overlong {
        weight: 1.0,
        max_tokens: 20480,
        cache_tokens: 4096,
    };
    for (tokens, value) in [
        (0, 0.0),
        (16384, 0.0),
        (18432, -0.5),
        (20480, -1.0),
        (20481, -1.0),
    ] {
        assert_eq!(overlong.value(tokens), value);
    }
}

#[test]
fn repetition_equals_trl() {
    for case in golden().repetition {
        let repetition = Repetition {
            weight: 1.0,
            ngram: case.ngram,
        };
        let value = repetition.value(&case.tokens);
        assert!(close(value, case.value), "{:?}: {value}", case.tokens);
    }
}

#[test]
fn length_equals_trl() {
    for case in golden().length {
        let value = LENGTH.value(case.correct, case.tokens, false);
        assert!(close(value, case.value), "{} {value}", case.tokens);
    }
}

#[test]
fn length_is_a_straight_line_if_asked_and_cut_answers_can_have_a_worth_of_their_own() {
    let linear = Length {
        shape: LengthShape::Linear,
        exceeded: Some(-10.0),
        ..LENGTH
    };
    assert_eq!(linear.value(true, 25, false), 1.75);
    assert_eq!(linear.value(false, 25, false), -7.5);
    assert_eq!(linear.value(true, 25, true), -10.0);
    assert_eq!(linear.value(true, 100, false), -10.0);
    assert_eq!(LENGTH.value(true, 25, true), LENGTH.value(true, 25, false));
}

#[test]
fn what_cannot_be_is_named_with_its_key() {
    for (json, key, shown) in [
        (serde_json::json!({}), "", "every weight"),
        (
            serde_json::json!({"accuracy": 1.0, "overlong": {"weight": 1.0, "max-tokens": 8, "cache-tokens": 9}}),
            "overlong.cache-tokens",
            "between 1 and",
        ),
        (
            serde_json::json!({"accuracy": 1.0, "repetition": {"weight": 1.0, "ngram": 0}}),
            "repetition.ngram",
            "is 0",
        ),
        (
            serde_json::json!({"language": {"weight": 1.0, "scripts": []}}),
            "language.scripts",
            "no script",
        ),
        (
            serde_json::json!({"sql": {"format": {"weight": 1.0, "expression": "1"}}}),
            "sql.format",
            "built in",
        ),
        (
            serde_json::json!({"sql": {"My Part": {"weight": 1.0, "expression": "1"}}}),
            "sql.My Part",
            "reward_<name>",
        ),
        (
            serde_json::json!({"sql": {"mine": {"weight": 1.0, "expression": " "}}}),
            "sql.mine.expression",
            "is empty",
        ),
    ] {
        let error = read(json).check().unwrap_err();
        assert_eq!(error.path().join("."), key);
        assert!(error.to_string().contains(shown), "{error}");
    }
    let endless = ScoreConfig {
        accuracy: f64::INFINITY,
        length: Some(Length {
            exceeded: Some(f64::NAN),
            max_tokens: 0,
            ..LENGTH
        }),
        ..ScoreConfig::default()
    };
    let faults = endless.faults();
    let keys: Vec<String> = faults.iter().map(|fault| fault.path().join(".")).collect();
    assert_eq!(keys, ["accuracy", "length.exceeded", "length.max-tokens"]);
    assert!(serde_json::from_str::<ScoreConfig>(r#"{"acuracy": 1.0}"#).is_err());
}
