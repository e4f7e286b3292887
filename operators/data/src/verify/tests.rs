//! Rollouts and prompts that meet, and verifiers that need more than rules.

use super::*;
use crate::testing::{TestIo, prompts, rollouts, text_values};

fn math() -> Verify {
    serde_json::from_str(r#"{"math": {}}"#).unwrap()
}

#[test]
fn rollouts_meet_the_gold_answer_of_their_prompt() {
    let mut io = TestIo::new();
    io.input(
        "prompts",
        &[prompts(&[
            ("a", Some("7"), None),
            ("b", Some("1/2"), None),
            ("c", None, None),
        ])],
    );
    let boxed = |answer: &str| format!("<think>t</think><answer>\\boxed{{{answer}}}</answer>");
    let texts = [
        boxed("7"),
        boxed("0.5"),
        boxed("8"),
        "7".to_owned(),
        boxed("7"),
    ];
    io.input(
        "rollouts",
        &[rollouts(&[
            ("a", 0, &texts[0]),
            ("b", 0, &texts[1]),
            ("a", 1, &texts[2]),
            ("a", 2, &texts[3]),
            ("c", 0, &texts[4]),
        ])],
    );
    io.run(&math(), 0).unwrap();
    let out = io.output("verdicts");
    assert_eq!(
        text_values(&out, "verdict"),
        ["correct", "correct", "wrong", "unparsed", "failed"]
    );
    assert_eq!(text_values(&out, "extracted"), ["7", "0.5", "8", "", ""]);
    let reasons = text_values(&out, "reason");
    assert_eq!(reasons[4], "gold answer: it has none");
    assert!(
        reasons.iter().all(|reason| !reason.is_empty()),
        "{reasons:?}"
    );
    assert_eq!(
        out.column_by_name("format_ok").unwrap().as_boolean(),
        &BooleanArray::from(vec![true, true, true, false, true])
    );
    assert_eq!(io.warnings().len(), 2);
    assert!(io.warnings()[0].contains("`c`"), "{:?}", io.warnings());
}

#[test]
fn several_verifiers_say_how_far_they_agree() {
    let mut io = TestIo::new();
    io.input(
        "prompts",
        &[prompts(&[("a", Some("1/2"), None), ("b", None, None)])],
    );
    io.input(
        "rollouts",
        &[rollouts(&[
            ("a", 0, "<answer>1/2</answer>"),
            ("a", 1, "<answer>0.5</answer>"),
            ("a", 2, "<answer>3</answer>"),
            ("b", 0, "<answer>3</answer>"),
        ])],
    );
    let any: Verify =
        serde_json::from_str(r#"{"any": {"of": [{"math": {}}, {"exact": {}}]}}"#).unwrap();
    io.run(&any, 0).unwrap();
    let out = io.output("verdicts");
    assert_eq!(
        text_values(&out, "verdict"),
        ["correct", "correct", "wrong", "failed"]
    );
    let agreement = out.column_by_name("agreement").unwrap();
    assert_eq!(
        agreement.as_primitive::<arrow::datatypes::Float64Type>(),
        &Float64Array::from(vec![Some(1.0), Some(0.5), Some(1.0), None])
    );
}

#[test]
fn a_verifier_of_form_needs_no_gold_answer() {
    let mut io = TestIo::new();
    io.input("prompts", &[prompts(&[("a", None, None)])]);
    io.input(
        "rollouts",
        &[rollouts(&[
            ("a", 0, "<plan>x</plan><answer>y</answer>"),
            ("a", 1, "<answer>y</answer>"),
        ])],
    );
    let format: Verify =
        serde_json::from_str(r#"{"format": {"tags": ["plan", "answer"]}}"#).unwrap();
    io.run(&format, 0).unwrap();
    assert_eq!(
        text_values(&io.output("verdicts"), "verdict"),
        ["correct", "wrong"]
    );
    assert!(io.warnings().is_empty(), "{:?}", io.warnings());
}

#[test]
fn a_rollout_without_its_prompt_is_named() {
    let mut io = TestIo::new();
    io.input("prompts", &[prompts(&[("a", Some("7"), None)])]);
    io.input("rollouts", &[rollouts(&[("lost", 0, "7")])]);
    assert!(
        io.run(&math(), 0)
            .unwrap_err()
            .to_string()
            .contains("`lost`")
    );
}

#[test]
fn no_rollouts_give_an_empty_table() {
    let mut io = TestIo::new();
    io.input("prompts", &[prompts(&[])]);
    io.input("rollouts", &[rollouts(&[])]);
    io.run(&math(), 0).unwrap();
    assert_eq!(io.output("verdicts").num_rows(), 0);
}

/// A program that says what it was asked, and hangs on request.
const PROGRAM: &str = r#"
import json, sys, time
for line in sys.stdin:
    row = json.loads(line)
    if row["text"] == "hang":
        time.sleep(1000)
    verdict = "correct" if row["text"] == row["gold"] else "wrong"
    print(json.dumps({"verdict": verdict, "reason": f"asked {row['question']}"}), flush=True)
"#;

fn program() -> Verify {
    serde_json::from_value(serde_json::json!({ "exec": {
        "command": ["python3", "check.py"],
        "files": ["check.py"],
        "timeout-seconds": 2,
        "memory-mb": 500,
    } }))
    .unwrap()
}

#[test]
fn a_program_judges_rollouts_and_one_that_hangs_is_timed_out() {
    let mut io = TestIo::new();
    std::fs::write(io.root.join("check.py"), PROGRAM).unwrap();
    io.input(
        "prompts",
        &[prompts(&[("a", Some("7"), None), ("b", None, None)])],
    );
    io.input(
        "rollouts",
        &[rollouts(&[
            ("a", 0, "7"),
            ("a", 1, "hang"),
            ("a", 2, "8"),
            ("b", 0, "8"),
        ])],
    );
    io.run(&program(), 0).unwrap();
    let out = io.output("verdicts");
    assert_eq!(
        text_values(&out, "verdict"),
        ["correct", "timed-out", "wrong", "failed"]
    );
    let reasons = text_values(&out, "reason");
    assert_eq!(reasons[0], "asked a");
    assert!(reasons[1].contains("within 2 s"), "{reasons:?}");
    assert!(
        io.warnings()
            .iter()
            .any(|said| said.starts_with("2 of 4 rollouts"))
    );
}

#[test]
fn what_a_verifier_needs_decides_ports_place_and_key() {
    let judge = |options: Value| -> Verify {
        serde_json::from_value(
            serde_json::json!({ "any": { "of": [{ "math": {} }, { "judge": options }] } }),
        )
        .unwrap()
    };
    let names = |verify: &Verify| -> Vec<String> {
        let ports = verify.ports().inputs.into_iter();
        ports.map(|port| port.name).collect()
    };
    let local = judge(serde_json::json!({}));
    assert_eq!(names(&local), ["rollouts", "prompts", JUDGE]);
    assert_eq!(local.placement(), Some(Placement::Worker));
    let server = serde_json::json!({ "endpoint": { "url": "http://a/v1", "model": "m" } });
    let remote = judge(server);
    assert_eq!(names(&remote), ["rollouts", "prompts"]);
    assert_eq!((remote.placement(), math().placement()), (None, None));
    assert!(math().part_size().rows > remote.part_size().rows);

    let key = |verify: &Verify| {
        let canonical = engine_core::registry::canonical(verify);
        assert_eq!(
            verify.key_config(&canonical, &PortTypes::new()),
            verify.part_config(&canonical)
        );
        verify.part_config(&canonical)
    };
    let mut faster = program();
    if let VerifyConfig::Exec(options) = &mut faster.0 {
        options.workers = 8;
    }
    assert_eq!(key(&program()), key(&faster));
    let pointers: Vec<String> = program()
        .externals()
        .into_iter()
        .map(|e| e.pointer)
        .collect();
    assert_eq!(pointers, ["/exec/files/0", "/exec/command/1"]);
    let bad = judge(serde_json::json!({ "votes": 0 }));
    let faults = bad.output_types(&PortTypes::new()).unwrap_err();
    assert_eq!(faults[0].path, ["any", "of", "1", "judge", "votes"]);
}
