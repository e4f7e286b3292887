//! Every layout, as other people's programs write it, and every way in which a row of one can be wrong.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::tests::{conversation, png, run};
use super::*;
use crate::testing::{TestIo, text_values};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/source")
}

fn config(value: Value) -> Source {
    serde_json::from_value(value).unwrap()
}

/// Runs in the folder of the golden files.
fn run_golden(config: &Source) -> TestIo {
    let mut io = TestIo::new();
    io.root = golden();
    assert_eq!(config.inspect(&io.root), []);
    io.run(config, 0).unwrap();
    io
}

fn bytes(digits: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(digit).collect()
}

/// Compares an output with what Python made of the same files.
fn assert_golden(name: &str, config: Value) {
    let config = self::config(config);
    let io = run_golden(&config);
    let prompts = io.output("prompts");
    let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let expected = expected[name].as_array().unwrap();
    assert_eq!(prompts.num_rows(), expected.len(), "{name}");
    for (row, expected) in expected.iter().enumerate() {
        let part = |part: &Value| match part["image"].as_str() {
            Some(digits) => format!("[{}]", &io.digest(&bytes(digits))[..6]),
            None => part["text"].as_str().unwrap().to_owned(),
        };
        let turns = expected["messages"].as_array().unwrap().iter().map(|turn| {
            let parts = turn["content"].as_array().unwrap().iter().map(part);
            (turn["role"].as_str().unwrap().to_owned(), parts.collect())
        });
        assert_eq!(
            conversation(&prompts, row),
            turns.collect::<Vec<_>>(),
            "{name} {row}"
        );
        for (column, key) in [
            ("answer", "answer"),
            ("solution", "solution"),
            ("category", "category"),
        ] {
            let found = text_values(&prompts, column)[row].clone();
            assert_eq!(
                found,
                expected[key].as_str().unwrap_or_default(),
                "{name} {row} {column}"
            );
        }
        let source = expected["source"].as_str().unwrap_or("data");
        assert_eq!(text_values(&prompts, "source")[row], source);
    }
    if config.examples {
        let examples = io.output("examples");
        assert_eq!(examples.schema(), TableName::Examples.schema());
        assert_eq!(
            text_values(&examples, "text"),
            text_values(&prompts, "solution")
        );
        assert_eq!(examples.column(1), prompts.column(1));
        assert_eq!(examples.column(0), prompts.column(0));
    }
}

#[test]
fn data_sets_of_hugging_face_are_read_as_their_own_library_reads_them() {
    assert_golden("easyr1", json!({"path": "easyr1", "split": "train"}));
    assert_golden("easyr1", json!({"path": "easyr1-arrow"}));
    assert_golden("verl", json!({"path": "verl.parquet"}));
    let folder = json!({"path": "imagefolder", "split": "train", "columns": {"problem": "question", "answer": "gold"}});
    assert_golden("imagefolder", folder);
    assert_golden(
        "classes",
        json!({"path": "classes", "question": "What is it?"}),
    );
}

#[test]
fn conversations_become_examples() {
    let images = json!({"path": "sharegpt.json", "examples": true, "media": "sharegpt-images"});
    assert_golden("sharegpt", images);
    assert_golden("openai", json!({"path": "openai.jsonl", "examples": true}));
    assert_golden("alpaca", json!({"path": "alpaca.csv", "examples": true}));
    assert_golden(
        "alpaca",
        json!({"path": "alpaca.jsonl.gz", "examples": true, "layout": "alpaca"}),
    );
    // Without gold answers, prompts that nothing can verify.
    assert_golden(
        "openai",
        json!({"path": "openai.jsonl", "require-answers": false}),
    );
}

#[test]
fn the_same_rows_in_other_formats_are_the_same_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let lines = "{\"problem\": \"a?\", \"answer\": 1.50}\n\n{\"answer\": \"2\", \"problem\": \"b, \\\"c\\\"?\"}\n";
    write("a.jsonl", lines.as_bytes());
    write("a.json", b"[{\"problem\": \"a?\", \"answer\": 1.50},\n {\"problem\": \"b, \\\"c\\\"?\", \"answer\": 2}]");
    write(
        "a.csv",
        b"\xef\xbb\xbfproblem,answer\r\na?,1.50\r\n\"b, \"\"c\"\"?\",2\r\n",
    );
    write(
        "a.tsv",
        b"problem\tanswer\na?\t1.50\n\"b, \"\"c\"\"?\"\t2\n",
    );
    write(
        "a.csv.zst",
        &zstd::encode_all(&b"problem,answer\na?,1.50\n\"b, \"\"c\"\"?\",2\n"[..], 1).unwrap(),
    );
    let mut all = Vec::new();
    for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.csv.zst"] {
        let (prompts, _) = run(&config(json!({"path": name})), &folder).unwrap();
        assert_eq!(text_values(&prompts, "answer"), ["1.50", "2"], "{name}");
        assert_eq!(conversation(&prompts, 1)[0].1, ["b, \"c\"?"]);
        all.push(prompts);
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    let limited = config(json!({"path": "a.csv", "limit": 1}));
    assert_eq!(run(&limited, &folder).unwrap().0.num_rows(), 1);
}

/// What is said of a file that is read to its first bad row.
fn told(name: &str, content: &[u8], mut keys: Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pictures")).unwrap();
    std::fs::write(folder.path().join("pictures/a.png"), png(1)).unwrap();
    std::fs::write(folder.path().join("pictures/cut.png"), &png(1)[..40]).unwrap();
    std::fs::write(folder.path().join(name), content).unwrap();
    keys["path"] = json!(name);
    let config = config(keys);
    assert_eq!(
        config.inspect(folder.path()),
        [],
        "the mistake is one of a row"
    );
    run(&config, &folder)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn bad_rows_are_named_by_line_and_column() {
    let good = r#"{"problem": "a?", "answer": "1"}"#;
    let lines = [
        (
            r#"{"problem": "b?""#,
            "line 2: it is no JSON: a `,` or `}` belongs here, at column 17",
        ),
        ("[1]", "line 2: it is a list and not an object"),
        (r#"{"problem": "b?"}"#, "line 2: column `answer` is empty"),
        (
            r#"{"problem": " ", "answer": "1"}"#,
            "line 2: column `problem` is empty",
        ),
        (
            r#"{"problem": ["b"], "answer": {"x": 1}}"#,
            "line 2: column `answer` is an object",
        ),
        (good, "line 2: the same prompt is also in"),
        (
            r#"{"problem": "b?", "answer": 1, "images": ["pictures/b.png"]}"#,
            "line 2: image 0: there is no file `pictures/b.png`",
        ),
        (
            r#"{"problem": "b?", "answer": 1, "images": ["pictures/cut.png"]}"#,
            "line 2: image 0 cannot be decoded",
        ),
        (
            r#"{"problem": "<image>b <image>?", "answer": 1, "images": ["a.png"]}"#,
            "line 2: the text has 2 `<image>` and the row has 1 images",
        ),
        (
            r#"{"problem": "b?", "answer": 1, "images": ["https://a/b.png"]}"#,
            "line 2: image 0: `https://a/b.png` is on the network",
        ),
        (
            r#"{"problem": "b?", "answer": 1, "images": 7}"#,
            "line 2: column `images` is a number",
        ),
        (
            r#"{"problem": "b?", "answer": 1, "videos": ["a.mp4"]}"#,
            "line 2: column `videos` is filled",
        ),
    ];
    for (line, expected) in lines {
        let content = format!("{good}\n{line}\n");
        let told = told("a.jsonl", content.as_bytes(), json!({"media": "pictures"}));
        assert!(
            told.contains("a.jsonl, ") && told.contains(expected),
            "{line}: {told}"
        );
    }
    let without_media = format!(
        "{good}\n{}",
        r#"{"problem": "b?", "answer": 1, "images": ["a.png"]}"#
    );
    let told_of_path = told("a.jsonl", without_media.as_bytes(), json!({}));
    assert!(
        told_of_path.contains("name the folder of the images with `media`"),
        "{told_of_path}"
    );
    let told_of_fields = told("a.csv", b"problem,answer\na?,1\nb?,2,3\n", json!({}));
    assert!(
        told_of_fields.contains("a.csv, line 3: it has 3 fields and the first line has 2"),
        "{told_of_fields}"
    );
    let told_of_bytes = told("a.csv", b"problem,answer\na?,1\nb\xff?,2\n", json!({}));
    assert!(
        told_of_bytes.contains("line 3: column `problem` is no UTF-8"),
        "{told_of_bytes}"
    );
}

#[test]
fn bad_conversations_are_named_by_turn() {
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let rows = [
        (r#"{"messages": []}"#, "column `messages` is empty"),
        (
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            "no turn of the assistant",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}]}"#,
            "has no turn before the answer",
        ),
        (
            r#"{"messages": [{"role": "boss", "content": "a"}]}"#,
            "turn 0: `boss` is no role that is known",
        ),
        (
            r#"{"messages": [{"content": "a"}]}"#,
            "turn 0: it has no `role` or `from`",
        ),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "turn 0: it has no `content` or `value`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": " "}]}"#,
            "turn 0: the user says nothing",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}"#,
            "turn 0: it has a part of the type `video`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#,
            "the row has no image left for it",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}"#,
            "turn 1: calls of tools cannot be learnt",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}], "images": []}"#,
            "the text has 1 `<image>` and the row has 0 images",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, {"role": "assistant", "content": "b"}]}"#,
            "image 0 cannot be decoded",
        ),
    ];
    for (row, expected) in rows {
        let content = format!("{good}\n{row}\n");
        let told = told("a.jsonl", content.as_bytes(), json!({"examples": true}));
        assert!(
            told.contains("line 2: ") && told.contains(expected),
            "{row}: {told}"
        );
    }
}

#[test]
fn what_follows_the_last_answer_is_left_out_and_a_system_message_replaces_another() {
    let folder = tempfile::tempdir().unwrap();
    let line = json!({"messages": [
        {"role": "system", "content": "old"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ], "gold": {"value": [7]}});
    std::fs::write(folder.path().join("a.jsonl"), line.to_string()).unwrap();
    let keys = json!({
        "path": "a.jsonl", "examples": true, "system": "new", "columns": {"answer": "gold.value"}, "name": "mine",
    });
    let mut io = TestIo::new();
    io.root = folder.path().to_owned();
    io.run(&config(keys), 0).unwrap();
    let examples = io.output("examples");
    let turn = |role: &str, text: &str| (role.to_owned(), vec![text.to_owned()]);
    assert_eq!(
        conversation(&examples, 0),
        [turn("system", "new"), turn("user", "a")]
    );
    assert_eq!(text_values(&examples, "text"), ["b"]);
    assert_eq!(text_values(&examples, "origin"), ["mine"]);
    assert_eq!(text_values(&io.output("prompts"), "answer"), ["7"]);
}

/// What is found before anything runs: code, message and help.
fn found(files: &[(&str, &[u8])], keys: Value) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let faults = config(keys).inspect(folder.path());
    let fault = faults.first().expect("there is a fault");
    let help = fault.help.clone().unwrap_or_default();
    (fault.code.to_owned(), format!("{}\n{help}", fault.message))
}

#[test]
fn a_layout_that_cannot_be_told_or_is_not_there_is_a_fault() {
    let turns = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    let both = format!(r#"{{"messages": {turns}, "conversations": {turns}}}"#);
    let openai = format!(r#"{{"messages": {turns}}}"#);
    let cases: Vec<(&[u8], Value, &str, &str)> = vec![
        (
            both.as_bytes(),
            json!({"examples": true}),
            "ambiguous-layout",
            "`sharegpt` (`conversations`) and `openai` (`messages`)",
        ),
        (
            openai.as_bytes(),
            json!({"layout": "sharegpt", "examples": true}),
            "wrong-layout",
            "it looks like the layout `openai`",
        ),
        (
            openai.as_bytes(),
            json!({}),
            "missing-column",
            "`examples: true`",
        ),
        (
            br#"{"question": "a", "answer": "b"}"#,
            json!({}),
            "missing-column",
            "set `columns: { problem: ... }` to one of answer, question",
        ),
        (
            br#"{"messages": {"a": 1}}"#,
            json!({"layout": "openai", "examples": true}),
            "type-mismatch",
            "does not hold turns",
        ),
        (
            br#"{"problem": "a", "answer": {"value": 1}}"#,
            json!({}),
            "type-mismatch",
            "`columns: { answer: answer.NAME }`",
        ),
        (
            br#"{"problem": "a", "answer": "b"}"#,
            json!({"columns": {"id": "uid"}}),
            "missing-column",
            "no column `uid`",
        ),
        (b"\n", json!({}), "missing-rows", "has no rows"),
        (
            b"not json\n",
            json!({}),
            "unreadable-file",
            "line 1: it is no JSON",
        ),
    ];
    for (content, mut keys, code, expected) in cases {
        keys["path"] = json!("a.jsonl");
        let (found_code, told) = found(&[("a.jsonl", content)], keys);
        assert!(
            found_code == code && told.contains(expected),
            "{found_code}: {told}"
        );
    }
    let (code, told) = found(&[("a.txt", b"problem,answer\n")], json!({"path": "a.txt"}));
    assert!(
        code == "unknown-format" && told.contains(".jsonl"),
        "{told}"
    );
    // Of several layouts, the one that has what is asked for.
    let folder = tempfile::tempdir().unwrap();
    let line = format!(r#"{{"problem": "a", "answer": "1", "messages": {turns}}}"#);
    std::fs::write(folder.path().join("a.jsonl"), line).unwrap();
    let (prompts, _) = run(&config(json!({"path": "a.jsonl"})), &folder).unwrap();
    assert_eq!(text_values(&prompts, "answer"), ["1"]);
}

#[test]
fn splits_of_a_folder_are_never_read_together_unasked() {
    let row: &[u8] = br#"{"problem": "a", "answer": "b"}"#;
    let files: [(&str, &[u8]); 3] = [
        ("d/train.jsonl", row),
        ("d/test.jsonl", row),
        ("d/README.md", b"#"),
    ];
    let (code, told) = found(&files, json!({"path": "d"}));
    assert!(
        code == "ambiguous-split" && told.contains("`test`, `train`"),
        "{told}"
    );
    let (code, told) = found(&files, json!({"path": "d", "split": "dev"}));
    assert!(
        code == "missing-file" && told.contains("it has `test`, `train`"),
        "{told}"
    );
    let pictures: [(&str, &[u8]); 1] = [("d/cat/1.png", b"x")];
    let (code, told) = found(&pictures, json!({"path": "d"}));
    assert!(
        code == "missing-key" && told.contains("`question:"),
        "{told}"
    );
    let (code, told) = found(&[("d/README.md", b"#")], json!({"path": "d"}));
    assert!(
        code == "missing-file" && told.contains(".parquet"),
        "{told}"
    );
}

#[test]
fn worked_solutions_of_other_prompts_have_an_output_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.csv"),
        "prompt_id,text\np1,first\np1,second\np2,third\n",
    )
    .unwrap();
    let stage = config(json!({"path": "a.csv", "layout": "solutions"}));
    assert_eq!(stage.ports().outputs[0].name, "solutions");
    let mut io = TestIo::new();
    io.root = folder.path().to_owned();
    io.run(&stage, 0).unwrap();
    let solutions = io.output("solutions");
    assert_eq!(text_values(&solutions, "prompt_id"), ["p1", "p1", "p2"]);
    assert_eq!(
        text_values(&solutions, "text"),
        ["first", "second", "third"]
    );
    let told = told(
        "a.csv",
        b"prompt_id,text\np1,first\n,second\n",
        json!({"layout": "solutions"}),
    );
    assert!(
        told.contains("line 3: column `prompt_id` or `text` is empty"),
        "{told}"
    );
}

#[test]
fn keys_that_contradict_each_other_are_faults() {
    let cases = [
        (
            json!({"path": "a", "question": "q", "columns": {"problem": "p"}}),
            "question",
        ),
        (
            json!({"path": "a", "question": "q", "layout": "openai"}),
            "question",
        ),
        (
            json!({"path": "a", "examples": true, "layout": "solutions"}),
            "examples",
        ),
        (json!({"path": "a", "limit": 0}), "limit"),
    ];
    for (keys, key) in cases {
        let faults = config(keys).output_types(&PortTypes::new()).unwrap_err();
        assert_eq!(faults[0].path, [key]);
    }
}
