//! `verify`: verdicts outside of any pipeline.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::Project;

#[test]
fn one_verdict_is_explained() {
    let project = Project::new();
    let told = project
        .call(&[
            "verify",
            "--gold",
            "\\frac{1}{2}",
            "--answer",
            "so it is \\boxed{0.5}",
        ])
        .expect(0)
        .stdout;
    for word in ["correct", "0.5", "1/2", "math 2", "us"] {
        assert!(told.contains(word), "no `{word}` in {told}");
    }
    let told = project
        .call(&["verify", "--gold", "-3", "--answer", "-x+1", "--json"])
        .expect(0)
        .json();
    assert_eq!(told["verdict"], "wrong");
    assert_eq!(told["gold_form"], "-3");
    assert_eq!(told["answer_form"], "-x + 1");
    assert_eq!(told["extracted"], "-x+1");
    assert!(told["microseconds"].is_u64());
}

#[test]
fn other_verifiers_are_named_as_in_a_pipeline() {
    let project = Project::new();
    let any = r#"{"any": {"of": [{"exact": {}}, {"numeric": {"relative": 0.01}}]}}"#;
    let told = project
        .call(&[
            "verify",
            "--gold",
            "10",
            "--answer",
            "10.05",
            "--verifier",
            any,
            "--json",
        ])
        .expect(0)
        .json();
    assert_eq!(told["verdict"], "correct");
    assert_eq!(told["agreement"], 0.5);
    assert_eq!(
        told["parts"][0],
        json!({ "verifier": "exact 1", "verdict": "wrong" })
    );
    let bad = project
        .call(&[
            "verify",
            "--gold",
            "1",
            "--answer",
            "1",
            "--verifier",
            r#"{"maths": {}}"#,
        ])
        .expect(2);
    assert!(bad.stderr.contains("maths"), "{}", bad.stderr);
    project.call(&["verify", "--gold", "1"]).expect(2);
}

#[test]
fn a_file_is_judged_line_by_line_in_its_order() {
    let project = Project::new();
    let lines: Vec<Value> = (0..5000)
        .map(|index| match index % 5 {
            0 => json!({ "gold": index.to_string(), "answer": format!("{index}.0") }),
            1 => json!({ "gold": "x+1", "answer": format!("{index}+x"), "id": index }),
            2 => json!({ "gold": "1/0", "answer": "1" }),
            3 => json!({ "gold": "5", "answer": "9^{9^{9^{9}}}" }),
            _ => json!({ "gold": "5", "answer": "" }),
        })
        .collect();
    let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
    project.write("pairs.jsonl", &(text.join("\n") + "\n"));
    let check = |stdout: &str| {
        let judged: Vec<Value> = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(judged.len(), lines.len());
        for (index, line) in judged.iter().enumerate() {
            let expected = match index {
                _ if index % 5 == 0 => "correct",
                1 => "correct",
                _ => ["", "wrong", "failed", "timed-out", "unparsed"][index % 5],
            };
            assert_eq!(line["verdict"], expected, "line {}: {line}", index + 1);
        }
    };
    check(
        &project
            .call(&["verify", "--jsonl", "pairs.jsonl"])
            .expect(0)
            .stdout,
    );
    let mut child = project
        .command(&["verify", "--jsonl", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.join("\n");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    check(&String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_bad_line_is_named() {
    let project = Project::new();
    project.write(
        "pairs.jsonl",
        "{\"gold\": \"1\", \"answer\": \"1\"}\n{\"gold\": 1}\n",
    );
    let bad = project
        .call(&["verify", "--jsonl", "pairs.jsonl"])
        .expect(2);
    assert!(bad.stderr.contains("line 2"), "{}", bad.stderr);
    let missing = project
        .call(&["verify", "--jsonl", "nothing.jsonl"])
        .expect(2);
    assert!(
        missing.stderr.contains("nothing.jsonl"),
        "{}",
        missing.stderr
    );
}
