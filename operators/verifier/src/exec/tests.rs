//! Programs that judge, hang, crash, babble or leave something behind.

use std::sync::atomic::Ordering;

use operators_verdict::Outcome::{Correct, Failed, TimedOut, Unparsed, Wrong};
use serde_json::{Value, json};

use crate::test_support::{NoView, ask, assert_says, config, judge, open, outcomes, until};
use crate::{Verifier, VerifyConfig};

/// Judges by the word that the text ends with; what it does for others is what they say.
const CHECK: &str = r#"
import json, os, subprocess, sys, time
open("starts", "a").write("x")
kept = []
for line in sys.stdin:
    row = json.loads(line)
    text = row["text"]
    if text == "hang":
        child = subprocess.Popen(["sleep", "1000"])
        open("child", "w").write(f"{child.pid} ")
        time.sleep(1000)
    if text == "crash":
        sys.exit("no such theorem")
    if text == "kill":
        os.kill(os.getpid(), 9)
    if text == "babble":
        print("debug: looking", flush=True)
        continue
    if text == "twice":
        print(json.dumps({"verdict": "correct"}), flush=True)
    if text == "memory":
        ballast = bytearray(b"x") * (300 << 20)
        time.sleep(1000)
    if text == "leak":
        kept.append(bytearray(b"x") * (60 << 20))
    verdict = {"right": "correct", "none": "unparsed", "maybe": "perhaps"}.get(text, "wrong")
    answer = {"verdict": verdict, "extracted": text[:3], "reason": f"{row['question']} {row['gold']}"}
    if text == "other":
        answer["row"] = 99
    print(json.dumps(answer), flush=True)
    if text == "last":
        sys.exit(0)
"#;

fn checker(folder: &tempfile::TempDir, change: impl FnOnce(&mut Value)) -> Verifier {
    std::fs::write(folder.path().join("check.py"), CHECK).unwrap();
    let mut options = json!({
        "command": ["python3", "check.py"],
        "files": ["check.py"],
        "timeout-seconds": 1,
        "start-seconds": 9,
        "memory-mb": 200,
    });
    change(&mut options);
    open(&exec(&options), folder.path()).unwrap()
}

fn exec(options: &Value) -> VerifyConfig {
    config(json!({ "exec": options }))
}

fn starts(folder: &tempfile::TempDir) -> usize {
    std::fs::read(folder.path().join("starts")).unwrap().len()
}

fn is_running(id: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    // A zombie has ended and waits for somebody to ask.
    !state.is_empty() && !state.contains(") Z ")
}

#[test]
fn a_program_is_started_once_and_judges_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |_| {});
    let judged = judge(&verifier, &["right", "no\n\"so\"", "none", "right"]);
    assert_eq!(outcomes(&judged), [Correct, Wrong, Unparsed, Correct]);
    assert_eq!(judged[1].verdict.extracted.as_deref(), Some("no\n"));
    assert_eq!(judged[0].reason, "3 + 4? 7");
    assert_eq!(
        outcomes(&judge(&verifier, &["last", "right"])),
        [Wrong, Correct]
    );
    assert_eq!(
        starts(&folder),
        2,
        "one that ended between two answers is started again"
    );
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children_and_the_next_row_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |_| {});
    let judged = judge(&verifier, &["right", "hang", "right"]);
    assert_eq!(outcomes(&judged), [Correct, TimedOut, Correct]);
    assert_says(
        &judged[1].reason,
        &["prompt `p`", "check.py", "within 1 s", "killed"],
    );
    let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
    until("the child is gone", || !is_running(&child));
}

#[test]
fn a_program_that_breaks_is_failed_and_never_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |options| options["timeout-seconds"] = json!(30));
    for (text, words) in [
        (
            "crash",
            vec!["exit code 1", "no such theorem", "prompt `p`"],
        ),
        ("kill", vec!["signal 9"]),
        (
            "babble",
            vec!["no verdict", "debug: looking", "standard error"],
        ),
        ("maybe", vec!["\"perhaps\"", "timed-out"]),
        ("other", vec!["row 99", "row 1"]),
        ("memory", vec!["MB of memory", "`memory-mb` allows 200"]),
    ] {
        let judged = judge(&verifier, &["right", text, "right"]);
        assert_eq!(outcomes(&judged), [Correct, Failed, Correct], "{text}");
        assert_says(&judged[1].reason, &words);
    }
}

#[test]
fn a_program_that_keeps_more_and_more_is_replaced_and_no_row_suffers() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |options| options["timeout-seconds"] = json!(30));
    let judged = judge(&verifier, &["leak"; 9]);
    assert_eq!(outcomes(&judged), [Wrong; 9]);
    assert!(starts(&folder) > 1);
}

#[test]
fn a_line_too_many_shifts_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |_| {});
    assert_eq!(outcomes(&judge(&verifier, &["twice"])), [Correct]);
    // The second line came; whoever is asked next does not get it.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(
        outcomes(&judge(&verifier, &["no", "right"])),
        [Wrong, Correct]
    );
    assert_eq!(starts(&folder), 2);
}

#[test]
fn several_copies_judge_at_the_same_time_and_keep_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |options| options["workers"] = json!(3));
    let texts: Vec<&str> = (0..300)
        .map(|row| if row % 3 == 0 { "right" } else { "no" })
        .collect();
    let expected: Vec<_> = (0..300)
        .map(|row| if row % 3 == 0 { Correct } else { Wrong })
        .collect();
    assert_eq!(outcomes(&judge(&verifier, &texts)), expected);
    assert_eq!(starts(&folder), 3);
}

#[test]
fn a_program_that_never_answers_ends_the_stage() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |options| {
        options["command"] = json!(["sh", "-c", "echo no module named rewards >&2; exit 1"]);
    });
    let questions = vec![ask("right"); 50];
    let error = verifier.judge(&questions, &NoView::default()).unwrap_err();
    assert_says(
        &error.to_string(),
        &["no module named rewards", "flush", "20 answers"],
    );
    let verifier = checker(&folder, |options| {
        options["command"] = json!(["no-such-program"]);
    });
    let error = verifier.judge(&questions, &NoView::default()).unwrap_err();
    assert_says(
        &error.to_string(),
        &["`no-such-program` could not be started"],
    );
}

#[test]
fn a_wish_to_stop_and_the_end_of_the_stage_end_programs() {
    let folder = tempfile::tempdir().unwrap();
    let verifier = checker(&folder, |options| {
        options["command"] = json!(["sh", "-c", "echo $$ > child; sleep 1000"]);
        options["timeout-seconds"] = json!(1000);
    });
    let view = NoView::default();
    let child = folder.path().join("child");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until("the program runs", || child.exists());
            view.is_cancelled.store(true, Ordering::SeqCst);
        });
        let result = verifier.judge(&[ask("right")], &view);
        assert!(matches!(
            result,
            Err(engine_core::OperatorError::Interrupted)
        ));
    });
    let id = std::fs::read_to_string(&child).unwrap();
    until("the program is gone", || !is_running(&id));

    let verifier = checker(&folder, |options| {
        options["command"] = json!([
            "sh",
            "-c",
            "echo $$ > other; while read line; do echo '{\"verdict\": \"wrong\"}'; done; sleep 1000",
        ]);
    });
    assert_eq!(outcomes(&judge(&verifier, &["right"])), [Wrong]);
    drop(verifier);
    let id = std::fs::read_to_string(folder.path().join("other")).unwrap();
    until("the program is gone", || !is_running(&id));
}
