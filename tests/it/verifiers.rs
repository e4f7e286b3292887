//! Verifiers that ask somebody else: a program, a server, a model; and what differs between two of them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{Project, python};
use crate::tables::{sums, write};

const PIPELINE: &str = r"
version: 1
name: checked
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  answers:
    inputs: { p: prompts }
    sql:
      query: >-
        select prompt_id, arrow_cast(0, 'UInt32') as sample,
        case when prompt_id = 'sum-000003' then 'hang' when prompt_id = 'sum-000005' then 'about ' || answer
        else '\boxed{' || answer || '}' end as text from p
  checked:
    inputs: { rollouts: answers, prompts: prompts }
    verify: VERIFY
";

const CHECK: &str = r#"
import json, sys, time
asked = open("asked", "a")
for line in sys.stdin:
    row = json.loads(line)
    print(row["prompt_id"], file=asked, flush=True)
    if row["text"] == "hang":
        time.sleep(1000)
    is_right = row["gold"] in row["text"] and STRICT in row["text"]
    verdict = "correct" if is_right else "wrong"
    print(json.dumps({"verdict": verdict, "reason": "looked for STRICT at " + row["question"]}), flush=True)
"#;

fn project(verify: &str) -> Project {
    let project = Project::new();
    write(&project.path("sums.parquet"), &sums(0..12));
    project.write("p.yaml", &PIPELINE.replace("VERIFY", verify));
    project
}

fn verdicts(project: &Project) -> Value {
    let query = "select verdict, count(*) as n from verdicts group by verdict order by verdict";
    project.call(&["sql", query, "--json"]).expect(0).json()
}

#[test]
fn a_program_judges_and_what_flips_when_it_changes_is_listed() {
    let verify = format!(
        "{{ exec: {{ command: ['{}', check.py], files: [check.py], timeout-seconds: 2, memory-mb: 500, format: any }} }}",
        python().display()
    );
    let project = project(&verify);
    let strict = CHECK.replace("STRICT", "'boxed'");
    fs::write(project.path("check.py"), &strict).unwrap();
    project.run("p.yaml");
    assert_eq!(
        verdicts(&project),
        json!([
            { "verdict": "correct", "n": 10 },
            { "verdict": "timed-out", "n": 1 },
            { "verdict": "wrong", "n": 1 },
        ])
    );
    let asked = || {
        fs::read_to_string(project.path("asked"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(asked(), 12);
    // More copies of the program judge no differently, so nothing is judged again.
    let more = PIPELINE.replace(
        "VERIFY",
        &verify.replace("format: any", "format: any, workers: 3"),
    );
    project.write("p.yaml", &more);
    assert_eq!(project.run("p.yaml").ran(), [""; 0]);
    assert_eq!(asked(), 12);

    fs::write(project.path("check.py"), CHECK.replace("STRICT", "''")).unwrap();
    assert_eq!(project.run("p.yaml").ran(), ["checked"]);
    let diff = project
        .call(&["diff", "latest~1", "latest", "--json", "--rows", "9"])
        .expect(0)
        .json();
    let answers = &diff["results"][0]["answers"];
    assert_eq!(
        (
            &answers["wrong_to_right"],
            &answers["right_to_wrong"],
            &answers["masked"]
        ),
        (&json!(1), &json!(0), &json!(1))
    );
    let rows = answers["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["prompt_id"], "sum-000005");
    assert_eq!(rows[0]["a"]["verdict"], "wrong");
    assert_eq!(
        rows[0]["a"]["reason"],
        "looked for 'boxed' at What is 5 + 1?"
    );
    assert_eq!(rows[0]["b"]["verdict"], "correct");
    assert_eq!(rows[0]["b"]["reason"], "looked for '' at What is 5 + 1?");
    let text = project
        .call(&["diff", "latest~1", "latest"])
        .expect(0)
        .stdout;
    assert!(
        text.contains("looked for 'boxed' at What is 5 + 1?"),
        "{text}"
    );
}

/// A judge on loopback that finds right what it is shown with a word; its address, and what it was asked.
fn judge(word: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    judge_but(word, Arc::default())
}

/// The same, that refuses what has one of some words.
fn judge_but(
    word: &'static str,
    refused: Arc<Mutex<Vec<&'static str>>>,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (seen, refused) = (Arc::clone(&seen), Arc::clone(&refused));
            std::thread::spawn(move || serve(&stream, word, &refused, &seen));
        }
    });
    (url, asked)
}

fn serve(
    mut stream: &TcpStream,
    word: &str,
    refused: &Mutex<Vec<&'static str>>,
    seen: &Mutex<Vec<String>>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if !reader.read_line(&mut first).is_ok_and(|read| read > 0) {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut status = "200 OK";
        let answer = if first.starts_with("GET") {
            json!({ "data": [{ "id": "m" }] })
        } else {
            let request: Value = serde_json::from_slice(&body).unwrap();
            let told = request["messages"][0]["content"]
                .as_str()
                .unwrap()
                .to_owned();
            let verdict = if told.contains(word) {
                "CORRECT"
            } else {
                "WRONG"
            };
            if refused
                .lock()
                .unwrap()
                .iter()
                .any(|word| told.contains(word))
            {
                status = "400 Bad Request";
            }
            seen.lock().unwrap().push(told);
            let text = format!("I looked for {word}.\nVERDICT: {verdict}");
            json!({
                "choices": [{ "message": { "content": text }, "finish_reason": "stop" }],
                "usage": { "prompt_tokens": 9, "completion_tokens": 9 },
            })
        };
        let answer = answer.to_string();
        let sent = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if sent.is_err() {
            return;
        }
    }
}

#[test]
fn a_judge_behind_a_server_is_asked_where_the_rule_says_no() {
    let (url, asked) = judge("about");
    let verify = |more: &str| {
        format!(
            "{{ any: {{ of: [{{ math: {{}} }}, {{ judge: {{ of: completion, endpoint: {{ url: '{url}', model: m{more} }} }} }}], format: any }} }}"
        )
    };
    let project = project(&verify(""));
    project.run("p.yaml");
    assert_eq!(
        verdicts(&project),
        json!([{ "verdict": "correct", "n": 11 }, { "verdict": "wrong", "n": 1 }])
    );
    let told = asked.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "only what is not in a box");
    assert!(
        told.iter()
            .any(|told| told.contains("What is 5 + 1?") && told.contains("\n6\n"))
    );
    let query = "select reason, agreement from verdicts where prompt_id = 'sum-000005'";
    let rows = project.call(&["sql", query, "--json"]).expect(0).json();
    assert_eq!(
        rows[0]["reason"],
        "math unparsed: the completion has no answer; judge correct: I looked for about."
    );
    assert_eq!(rows[0]["agreement"], 0.5);

    let slower = PIPELINE.replace("VERIFY", &verify(", concurrency: 1, retries: 1"));
    project.write("p.yaml", &slower);
    assert_eq!(project.run("p.yaml").ran(), [""; 0]);
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[test]
fn what_a_judge_could_not_be_asked_is_asked_again_and_nothing_else() {
    let refused = Arc::new(Mutex::new(vec!["hang", "about"]));
    let (url, asked) = judge_but("about", Arc::clone(&refused));
    let verify = format!(
        "{{ judge: {{ of: completion, format: any, endpoint: {{ url: '{url}', model: m, price: {{ input: 1000, output: 1000 }} }} }} }}"
    );
    let project = project(&verify);
    let failed = project.call(&["run", "p.yaml"]).expect(1);
    for words in [
        "prompt_id=sum-000003",
        "prompt_id=sum-000005",
        "the judge could not be asked",
        "400",
        "run again",
        "`quarantine`",
    ] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.stderr);
    }
    assert_eq!(asked.lock().unwrap().len(), 12);

    // A stage that may set rows aside goes on without them, and asks nobody again.
    let text = fs::read_to_string(project.path("p.yaml")).unwrap();
    let text = text.replace("    verify:", "    quarantine: { rows: 2 }\n    verify:");
    project.write("p.yaml", &text);
    refused.lock().unwrap().retain(|word| *word == "hang");
    asked.lock().unwrap().clear();
    let run = project.run("p.yaml");
    assert_eq!(run.0["stages"][2]["rows"], 11);
    let told = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(told.len(), 2, "only those that failed: {told:?}");
    assert_eq!(
        verdicts(&project),
        json!([{ "verdict": "correct", "n": 1 }, { "verdict": "wrong", "n": 10 }]),
        "none is `failed`"
    );
    // What it cost stands in the record of the run.
    let shown = project.call(&["show"]).expect(0).stdout;
    assert!(
        shown.contains("judge: asked m: 1 answers, 9 tokens in, 9 out, cost 0.0180"),
        "{shown}"
    );

    refused.lock().unwrap().clear();
    let replay = project.call(&["replay", "checked", "--json"]).expect(0);
    assert_eq!(
        replay.json()["replay"],
        json!({ "stage": "checked", "tried": 1, "fixed": 1, "failing": 0 })
    );
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(project.run("p.yaml").0["stages"][2]["rows"], 12);
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn a_judge_can_be_a_model_of_the_pipeline() {
    let project =
        project("{ judge: { max-new-tokens: 4, reminders: 0, of: completion, format: any } }");
    let refused = project.call(&["check", "p.yaml"]).expect(2);
    assert!(
        refused.stderr.contains("lacks the input `judge`"),
        "{}",
        refused.stderr
    );
    let text = fs::read_to_string(project.path("p.yaml")).unwrap();
    let text = text
        .replace("prompts: prompts }", "prompts: prompts, judge: base }")
        .replace(
            "stages:",
            "stages:\n  base: { load-model: { path: $repo/examples/models/base } }",
        );
    project.write("p.yaml", &text);
    project.run("p.yaml");
    // This one has never learnt to judge: what cannot be understood is no verdict.
    assert_eq!(
        verdicts(&project),
        json!([{ "verdict": "failed", "n": 12 }])
    );
    let query = "select count(*) as n from verdicts where reason like '%no verdict in the form%'";
    let rows = project.call(&["sql", query, "--json"]).expect(0).json();
    assert_eq!(rows[0]["n"], 12);
}

#[test]
fn the_command_asks_programs_and_judges_too() {
    let project = Project::new();
    fs::write(project.path("check.py"), CHECK.replace("STRICT", "''")).unwrap();
    let exec = json!({ "exec": {
        "command": [python().to_str().unwrap(), "check.py"], "files": ["check.py"], "timeout-seconds": 2, "memory-mb": 500,
    } })
    .to_string();
    project.write(
        "pairs.jsonl",
        "{\"gold\": \"7\", \"answer\": \"it is 7\"}\n{\"gold\": \"7\", \"answer\": \"hang\"}\n{\"gold\": \"7\", \"answer\": \"8\", \"question\": \"why?\"}\n",
    );
    let told = project
        .call(&["verify", "--jsonl", "pairs.jsonl", "--verifier", &exec])
        .expect(0)
        .stdout;
    let lines: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let found: Vec<&Value> = lines.iter().map(|line| &line["verdict"]).collect();
    assert_eq!(found, ["correct", "timed-out", "wrong"]);
    assert_eq!(lines[2]["reason"], "looked for '' at why?");

    let (url, _) = judge("seven");
    let judge = json!({ "judge": { "endpoint": { "url": url, "model": "m" } } }).to_string();
    let told = project
        .call(&[
            "verify",
            "--gold",
            "7",
            "--answer",
            "seven",
            "--question",
            "3 + 4?",
            "--verifier",
            &judge,
            "--json",
        ])
        .expect(0);
    let account = "judge: asked m: 1 answers, 9 tokens in, 9 out";
    assert!(told.stderr.contains(account), "{}", told.stderr);
    let told = told.json();
    assert_eq!(
        (&told["verdict"], &told["reason"]),
        (&json!("correct"), &json!("I looked for seven."))
    );
    let local = project
        .call(&[
            "verify",
            "--gold",
            "7",
            "--answer",
            "7",
            "--verifier",
            r#"{"judge": {}}"#,
        ])
        .expect(2);
    assert!(local.stderr.contains("endpoint"), "{}", local.stderr);
    let wrong = project
        .call(&[
            "verify",
            "--gold",
            "7",
            "--answer",
            "7",
            "--verifier",
            r#"{"judge": {"votes": 0}}"#,
        ])
        .expect(2);
    assert!(wrong.stderr.contains("judge.votes"), "{}", wrong.stderr);
}

#[test]
fn a_loaded_judge_works_beside_a_model_that_learns() {
    let project = Project::new();
    write(&project.path("sums.parquet"), &sums(0..4));
    // A judge that has never learnt to judge says nothing that counts.
    let text = "
version: 1
name: judged
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  base: { load-model: { path: $repo/examples/models/base } }
  rl:
    inputs: { prompts: prompts, model: base, judge: base }
    rl-train:
      algorithm: { grpo: { clip-low: 0.2, clip-high: 0.28 } }
      steps: 1
      prompts-per-step: 2
      samples: 4
      temperature: 1.0
      max-new-tokens: 8
      verify: { any: { of: [{ judge: { max-new-tokens: 4, reminders: 0, of: completion } }, { math: {} }] } }
      score: { accuracy: 1.0 }
      learning-rate: 1.0e-4
      warmup-steps: 0
";
    project.write("p.yaml", text);
    project.run("p.yaml");
    let shown = project.call(&["show"]).expect(0).stdout;
    assert!(
        shown.contains("rl: judge: ") && shown.contains(" more, together at most "),
        "{shown}"
    );
    project.write("p.yaml", &text.replace(", judge: base", ""));
    let refused = project.call(&["check", "p.yaml"]).expect(2).stderr;
    assert!(refused.contains("lacks the input `judge`"), "{refused}");
}

#[test]
fn a_prompt_whose_solutions_nobody_could_judge_is_tried_again() {
    let refused = Arc::new(Mutex::new(vec!["is 5 + 1?"]));
    let (url, asked) = judge_but("is", Arc::clone(&refused));
    let project = Project::new();
    write(&project.path("sums.parquet"), &sums(0..8));
    let text = "
version: 1
name: taught
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  worked:
    inputs: { p: prompts }
    sql: { query: \"select prompt_id, 'it is ' || answer as text from p order by prompt_id\" }
  taught:
    inputs: { prompts: prompts, solutions: worked }
    quarantine: { rows: 1 }
    augment:
      expert: { solutions: {} }
      verify: { judge: { of: completion, format: any, endpoint: { url: 'URL', model: m } } }
      require-format: true
";
    project.write("p.yaml", &text.replace("URL", &url));
    let run = project.run("p.yaml");
    assert_eq!(run.0["stages"][2]["parts"]["quarantined"], 1);
    let count = |port: &str| {
        let table = if port == "examples" {
            "examples"
        } else {
            "prompts"
        };
        let query =
            format!("select count(*) as n from {table} where stage = 'taught' and port = '{port}'");
        let rows = project.call(&["sql", &query, "--json"]).expect(0).json();
        rows[0]["n"].as_u64().unwrap()
    };
    assert_eq!((count("examples"), count("unanswered")), (7, 0));
    let shown = project.call(&["show"]).expect(0).stdout;
    assert!(shown.contains("judge: asked m: 7 answers"), "{shown}");

    refused.lock().unwrap().clear();
    asked.lock().unwrap().clear();
    let replay = project.call(&["replay", "taught", "--json"]).expect(0);
    assert_eq!(replay.json()["replay"]["fixed"], 1);
    assert_eq!(asked.lock().unwrap().len(), 1);
    project.run("p.yaml");
    assert_eq!(count("examples"), 8);
}
