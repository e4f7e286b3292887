//! Data as people have them, from the file to a trained model: conversations, folders of images, rows that are bad.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::Project;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/source")
        .join(name)
}

fn rows(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

const FINE_TUNING: &str = "
version: 1
name: fine-tuning
seed: 3
stages:
  data: { source: { path: chats.jsonl, examples: true, media: pictures, name: chats } }
  base: { load-model: { path: $repo/examples/models/base } }
  sft:
    inputs: { model: base, examples: data.examples }
    sft-train: { steps: 2, sequences-per-step: 2, max-tokens: 96, learning-rate: 1.0e-4, warmup-steps: 0, weight-decay: 0.0 }
";

#[test]
fn a_model_is_fine_tuned_on_conversations_as_they_are() {
    let project = Project::new();
    fs::create_dir(project.path("pictures")).unwrap();
    let picture = project.path("pictures/a.png");
    fs::copy(golden("sharegpt-images/5.png"), &picture).unwrap();
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let one = json!({"conversations": [turn("human", "What is 3 + 4?"), turn("gpt", "7"), turn("human", "and 1 + 1?"), turn("gpt", "2")]});
    let two = json!({"conversations": [turn("human", "<image>Read it."), turn("gpt", "5"), turn("human", "thanks")], "images": ["pictures/a.png"]});
    project.write("chats.jsonl", &format!("{one}\n{two}\n"));
    project.write("p.yaml", FINE_TUNING);
    let first = project.run("p.yaml");
    assert!(first.ran().contains(&"sft".to_owned()));
    let examples = rows(
        &project,
        "select text, origin, cardinality(messages) as turns, token_ids is null as fresh from examples order by turns desc",
    );
    assert_eq!(
        examples,
        json!([
            {"text": "2", "origin": "chats", "turns": 3, "fresh": true},
            {"text": "5", "origin": "chats", "turns": 1, "fresh": true},
        ])
    );
    let losses = rows(
        &project,
        "select count(*) as n from metrics where stage = 'sft' and name = 'loss'",
    );
    assert_eq!(losses, json!([{"n": 2}]));
    assert!(project.run("p.yaml").ran().is_empty());
    // The content of an image file counts, although the rows name it by its path alone.
    fs::copy(golden("sharegpt-images/6.png"), &picture).unwrap();
    assert_eq!(
        project.run("p.yaml").ran().first().map(String::as_str),
        Some("data")
    );
}

#[test]
fn a_folder_of_images_has_its_answers_in_the_names_of_folders() {
    let project = Project::new();
    for (from, to) in [
        ("cat/20.png", "cat/a.png"),
        ("cat/21.png", "cat/b.png"),
        ("dog/22.png", "dog/c.png"),
    ] {
        let to = project.path("images").join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden("classes").join(from), to).unwrap();
    }
    project.write(
        "p.yaml",
        "version: 1\nname: images\nseed: 1\nstages:\n  prompts: { source: { path: images, question: What is it? } }\n",
    );
    project.run("p.yaml");
    let answers = rows(
        &project,
        "select answer, messages[1]['content'][2]['text'] as question, length(messages[1]['content'][1]['image']) as digits
         from prompts order by answer",
    );
    let row = |answer: &str| json!({"answer": answer, "question": "What is it?", "digits": 64});
    assert_eq!(answers, json!([row("cat"), row("cat"), row("dog")]));
    fs::rename(
        project.path("images/cat/b.png"),
        project.path("images/dog/b.png"),
    )
    .unwrap();
    assert_eq!(project.run("p.yaml").ran(), ["prompts"]);
}

#[test]
fn bad_lines_are_named_and_as_many_go_into_quarantine_as_may() {
    let project = Project::new();
    let lines = [
        r#"{"question": "1 + 1?", "meta": {"gold": 2}}"#,
        r#"{"question": "1 + 2?", "meta": {"gold": 3}"#,
        r#"{"question": "1 + 3?", "meta": {"gold": 4}}"#,
        r#"{"question": "1 + 4?", "meta": {}}"#,
        r#"{"question": "1 + 1?", "meta": {"gold": 2}}"#,
    ];
    project.write("rows.jsonl", &lines.join("\n"));
    let pipeline = |quarantine: &str| {
        format!(
            "version: 1\nname: lines\nseed: 1\nstages:\n  prompts:\n{quarantine}    source: {{ path: rows.jsonl, columns: {{ problem: question, answer: meta.gold }} }}\n"
        )
    };
    project.write("p.yaml", &pipeline(""));
    let failed = project.call(&["run", "p.yaml"]).expect(1).stderr;
    for expected in [
        "rows.jsonl, line 2: it is no JSON",
        "rows.jsonl, line 4: column `meta.gold` is empty",
        "rows.jsonl, line 5: the same prompt is also in",
    ] {
        assert!(failed.contains(expected), "{expected}\n{failed}");
    }
    project.write("p.yaml", &pipeline("    quarantine: { rows: 3 }\n"));
    project.run("p.yaml");
    let good = rows(&project, "select answer from prompts order by answer");
    assert_eq!(good, json!([{"answer": "2"}, {"answer": "4"}]));
    let bad = rows(&project, "select \"row\", error from quarantine order by 1");
    assert_eq!(bad.as_array().unwrap().len(), 3);
    assert_eq!(bad[0]["row"], 1);
}

#[test]
fn worked_solutions_of_a_file_are_an_expert_like_any_other() {
    let project = Project::new();
    project.write(
        "prompts.csv",
        "uid,problem,answer\na,1 + 1?,2\nb,1 + 2?,3\nc,1 + 3?,4\n",
    );
    project.write(
        "worked.jsonl",
        "{\"prompt_id\": \"a\", \"text\": \"One more than 1 is \\\\boxed{2}.\"}\n{\"prompt_id\": \"b\", \"text\": \"\\\\boxed{4}\"}\n",
    );
    project.write(
        "p.yaml",
        "
version: 1
name: worked
seed: 1
stages:
  prompts: { source: { path: prompts.csv, columns: { id: uid } } }
  worked: { source: { path: worked.jsonl, layout: solutions } }
  taught:
    inputs: { prompts: prompts, solutions: worked }
    augment:
      expert: { solutions: {} }
      verify: { math: {} }
      require-format: true
      rewrite: <think>{reasoning}</think><answer>{answer}</answer>
",
    );
    project.run("p.yaml");
    let examples = rows(&project, "select prompt_id, text from examples");
    assert_eq!(
        examples,
        json!([{"prompt_id": "a", "text": "<think>One more than 1 is \\boxed{2}.</think><answer>2</answer>"}])
    );
    let left = rows(
        &project,
        "select prompt_id, reason from prompts where stage = 'taught' order by prompt_id",
    );
    assert_eq!(
        left,
        json!([
            {"prompt_id": "b", "reason": "the one answer cannot be learnt: 1 wrong"},
            {"prompt_id": "c", "reason": "there is no worked solution"},
        ])
    );
}
