//! What a configuration says about itself, and mistakes in it.

use serde_json::json;

use super::*;
use crate::test_support::{assert_says, config};

fn exec() -> Value {
    json!({ "command": ["python3", "check.py"], "files": ["check.py"], "timeout-seconds": 5, "memory-mb": 100 })
}

#[test]
fn files_of_programs_are_found_wherever_they_stand() {
    let nested = config(json!({ "any": { "of": [
        { "math": {} },
        { "all": { "of": [{ "format": { "tags": ["answer"] } }, { "exec": exec() }] } },
    ] } }));
    let pointers = |at: &[&str]| -> Vec<String> {
        let externals = nested.externals(at);
        externals
            .into_iter()
            .map(|external| external.pointer)
            .collect()
    };
    assert_eq!(
        pointers(&["verify"]),
        [
            "/verify/any/of/1/all/of/1/exec/files/0",
            "/verify/any/of/1/all/of/1/exec/command/1"
        ]
    );
    assert!(config(json!({ "exec": exec() })).externals(&[])[0].pointer == "/exec/files/0");
    let folder = tempfile::tempdir().unwrap();
    let faults = nested.inspect(folder.path(), &[]);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].path.last().unwrap(), "0");
    assert_says(&faults[0].message, &["check.py"]);
    std::fs::write(folder.path().join("check.py"), "").unwrap();
    assert_eq!(nested.inspect(folder.path(), &[]), []);
}

#[test]
fn how_verdicts_are_fetched_does_not_count() {
    let content = |value: Value| {
        let mut value = serde_json::to_value(config(value)).unwrap();
        VerifyConfig::retain_content(&mut value);
        value.to_string()
    };
    let mut more = exec();
    more["workers"] = json!(8);
    assert_eq!(
        content(json!({ "exec": exec() })),
        content(json!({ "exec": more }))
    );
    more["timeout-seconds"] = json!(6);
    assert_ne!(
        content(json!({ "exec": exec() })),
        content(json!({ "exec": more }))
    );

    let judge = |endpoint: Value, votes: u32| {
        json!({ "all": { "of": [{ "math": {} }, { "judge": {
            "endpoint": endpoint, "votes": votes, "temperature": 1.0
        } }] } })
    };
    let near = json!({ "url": "http://a/v1", "model": "m", "revision": "r" });
    let far = json!({ "url": "http://b/v1", "model": "m", "revision": "r", "concurrency": 2 });
    assert_eq!(content(judge(near.clone(), 3)), content(judge(far, 3)));
    assert_ne!(content(judge(near.clone(), 3)), content(judge(near, 5)));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let mut bad = exec();
    (bad["command"], bad["timeout-seconds"]) = (json!([]), json!(0));
    let faults =
        config(json!({ "all": { "of": [{ "math": {} }, { "exec": bad }] } })).faults(&["verify"]);
    let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
    assert_eq!(
        paths,
        [
            "verify/all/of/1/exec/command",
            "verify/all/of/1/exec/timeout-seconds"
        ]
    );
    for (options, path, words) in [
        (json!({ "votes": 3 }), "judge/votes", "decodes greedily"),
        (json!({ "votes": 0 }), "judge/votes", "at least 1"),
        (
            json!({ "temperature": -1.0 }),
            "judge/temperature",
            "at least 0",
        ),
        (
            json!({ "rubric": "{{ what }} {{ answer }}" }),
            "judge/rubric",
            "`what`",
        ),
        (
            json!({ "endpoint": { "url": "here", "model": "m" } }),
            "judge/endpoint/url",
            "no address",
        ),
    ] {
        let faults = config(json!({ "judge": options })).faults(&[]);
        assert_eq!(faults[0].path.join("/"), path, "{faults:?}");
        assert_says(&faults[0].message, &[words]);
    }
    let faults = config(json!({ "any": { "of": [] } })).faults(&[]);
    assert_eq!(faults[0].path, ["any", "of"]);
    let two = json!({ "any": { "of": [{ "judge": {} }, { "judge": { "max-new-tokens": 7 } }] } });
    assert_says(&config(two).faults(&[])[0].message, &["port `judge`"]);
}

#[test]
fn gold_answers_are_checked_by_whoever_needs_them() {
    let free = json!({ "judge": { "needs-gold": false } });
    assert!(config(free.clone()).check_gold(None).is_ok());
    assert_eq!(
        config(json!({ "judge": {} })).check_gold(None),
        Err(GoldError::Missing)
    );
    assert_eq!(
        config(json!({ "exec": exec() })).check_gold(Some(" ")),
        Err(GoldError::Empty)
    );
    let with_math = |kind: &str| config(json!({ kind: { "of": [{ "math": {} }, free] } }));
    // A judge reads what no rule can; all of them must be able to.
    assert!(with_math("any").check_gold(Some("{")).is_ok());
    assert!(with_math("all").check_gold(Some("{")).is_err());
    assert!(with_math("all").check_gold(Some("7")).is_ok());
    assert_eq!(with_math("any").check_gold(None), Err(GoldError::Missing));
}

#[test]
fn rules_of_old_pipelines_are_the_same_rules() {
    let old = json!({ "any": { "of": [{ "math": {} }, { "choice": { "letters": "ABCD" } }], "format": "boxed" } });
    let rule = config(old.clone()).rule().unwrap();
    let same: Rule = serde_json::from_value(old.clone()).unwrap();
    assert_eq!(rule, same);
    assert_eq!(
        serde_json::to_value(config(old)).unwrap(),
        serde_json::to_value(same).unwrap()
    );
    assert!(
        config(json!({ "any": { "of": [{ "judge": {} }] } }))
            .rule()
            .is_none()
    );
}

#[test]
fn rules_that_could_judge_nothing_are_refused_where_they_stand() {
    let cases = [
        (
            json!({"regex": {"pattern": "("}}),
            "regex/pattern",
            "unclosed group",
        ),
        (json!({"regex": {"pattern": "^{gold}$"}}), "", ""),
        (
            json!({"numeric": {"relative": -0.1}}),
            "numeric/relative",
            "at least 0",
        ),
        (
            json!({"choice": {"letters": " "}}),
            "choice/letters",
            "no letter",
        ),
        (json!({"format": {"tags": []}}), "format/tags", "no tag"),
        (
            json!({"all": {"of": [{"math": {}}, {"regex": {"pattern": "[a"}}]}}),
            "all/of/1/regex/pattern",
            "unclosed character class",
        ),
    ];
    for (config, path, words) in cases {
        let config: VerifyConfig = serde_json::from_value(config).unwrap();
        let faults = config.faults(&[]);
        let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
        if path.is_empty() {
            assert!(faults.is_empty(), "{faults:?}");
            continue;
        }
        assert_eq!(paths, [path]);
        assert!(faults[0].message.contains(words), "{}", faults[0].message);
    }
}
