//! `rollout` and `augment` with a server instead of a model, and with one that is not there.

use std::net::TcpListener;

use serde_json::Value;

use crate::serve::Server;
use crate::support::{Outcome, Project};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/expert");

const PIPELINE: &str = "
version: 1
name: remote
seed: 5
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 12 }
  answers:
    inputs: { prompts: prompts }
    rollout: { samples: 3, temperature: 1.0, max-new-tokens: 24, endpoint: { url: '$url', model: expert, give-up-seconds: 2, concurrency: 4 } }
  verdicts: { inputs: { rollouts: answers, prompts: prompts }, verify: { math: {} } }
  self: { inputs: { prompts: prompts, rollouts: answers, verdicts: verdicts }, distill: { keep: { shortest: 1 }, require-format: true } }
  taught:
    inputs: { prompts: prompts }
    augment:
      expert:
        model: { attempts: 2, keep: 1, temperature: 0.5, max-new-tokens: 24, endpoint: { url: '$url', model: expert, give-up-seconds: 2 } }
      verify: { math: {} }
      require-format: true
";

fn write(project: &Project, url: &str) {
    project.write("p.yaml", &PIPELINE.replace("$url", url));
}

fn rows(project: &Project, query: &str) -> Vec<Value> {
    let rows = project.call(&["sql", query, "--json"]).expect(0).json();
    rows.as_array().unwrap().clone()
}

fn ran(outcome: &Outcome) -> Vec<String> {
    outcome.ran()
}

#[test]
fn answers_of_a_server_are_rollouts_and_examples_like_any_other() {
    let first = Project::new();
    let server = Server::start(&first, MODEL, &[]);
    write(&first, &server.url());
    first.run("p.yaml");
    let texts = "select prompt_id, sample, text, finish_reason, model from rollouts where stage = 'answers' order by 1, 2";
    let answers = rows(&first, texts);
    assert_eq!(answers.len(), 36);
    assert!(answers.iter().all(|row| row["model"] == "expert"));
    let whole = "select count(*) as n from rollouts where stage = 'answers' and cardinality(token_ids) = cardinality(logprobs) and prompt_tokens > 8";
    assert_eq!(rows(&first, whole)[0]["n"], 36);
    // The expert knows most of it, pictures included: they came through.
    let right = rows(
        &first,
        "select count(*) as n from verdicts where stage = 'verdicts' and verdict = 'correct'",
    );
    assert!(right[0]["n"].as_u64().unwrap() > 12, "{right:?}");
    let examples = "select origin, count(*) as n, count(token_ids) as ids from examples group by origin order by origin";
    let examples = rows(&first, examples);
    let origins: Vec<&Value> = examples.iter().map(|row| &row["origin"]).collect();
    assert_eq!(origins, ["expert", "self"]);
    assert_eq!(examples[0]["ids"], 0, "an expert's tokens are its own");
    assert_eq!(examples[1]["ids"], examples[1]["n"]);

    // How it is asked is no part of what it answers.
    let text = PIPELINE
        .replace("$url", &server.url())
        .replace("concurrency: 4", "concurrency: 1, timeout-seconds: 99");
    first.write("p.yaml", &text);
    assert!(ran(&first.run("p.yaml")).is_empty());
    let second = Project::new();
    second.write("p.yaml", &text);
    second.run("p.yaml");
    assert_eq!(rows(&second, texts), answers);
}

#[test]
fn a_server_that_is_not_there_is_named_and_the_run_goes_on_when_it_is() {
    let project = Project::new();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}/v1");
    write(&project, &url);
    let failed = project
        .call(&["run", "p.yaml", "--device", "cpu"])
        .expect(1);
    assert!(failed.stderr.contains(&url), "{}", failed.stderr);
    assert!(
        failed.stderr.contains("requests in a row failed"),
        "{}",
        failed.stderr
    );
    let server = Server::start(&project, MODEL, &["--port", &free.port().to_string()]);
    let outcome = project.run("p.yaml");
    assert!(!ran(&outcome).contains(&"prompts".to_owned()));
    assert!(ran(&outcome).contains(&"answers".to_owned()));
    drop(server);
}

#[test]
fn a_server_that_dies_in_the_middle_loses_no_answer() {
    let project = Project::new();
    // One at a time, so that some prompts are answered and others not.
    let server = Server::start(&project, MODEL, &["--max-concurrent", "1"]);
    let text = PIPELINE
        .replace("$url", &server.url())
        .replace("limit: 12", "limit: 400")
        .replace("samples: 3", "samples: 1");
    project.write("p.yaml", &text);
    let mut running = project.start(&["run", "p.yaml", "--to", "answers", "--device", "cpu"]);
    running.wait_for_start("answers");
    let parts = || project.objects("v1/map-parts/").len();
    let before = parts();
    crate::support::wait_until("a part is committed", || (parts() > before).then_some(()));
    let port = server.address.port().to_string();
    drop(server);
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&port), "{said}");
    let server = Server::start(&project, MODEL, &["--port", &port]);
    let outcome = project
        .call(&[
            "run", "p.yaml", "--to", "answers", "--json", "--device", "cpu",
        ])
        .expect(0)
        .json();
    let answers = outcome["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stage| stage["stage"] == "answers")
        .unwrap();
    assert!(
        answers["parts"]["reused"].as_u64().unwrap() >= 1,
        "{answers}"
    );
    drop(server);
}

#[test]
fn a_wrong_endpoint_is_found_before_anything_runs() {
    let project = Project::new();
    let check = |change: &dyn Fn(String) -> String, said: &str| {
        let text = PIPELINE.replace("$url", "http://127.0.0.1:9/v1");
        project.write("p.yaml", &change(text));
        let wrong = project.call(&["check", "p.yaml"]).expect(2);
        assert!(wrong.stderr.contains(said), "{}", wrong.stderr);
    };
    check(
        &|text| text.replace("http://127", "ftp://127"),
        "no address of a web server",
    );
    check(
        &|text| text.replace("http://127", "http://me:secret@127"),
        "api-key-env",
    );
    check(
        &|text| text.replace("concurrency: 4", "concurrency: 0"),
        "`concurrency` is 0",
    );
    check(
        &|text| text.replace("samples: 3", "samples: 3, record-entropy: true"),
        "no entropies",
    );
    // Either a model or a server: both and neither are wrong.
    let both = "base: { load-model: { path: $repo/examples/models/expert } }\n  answers:\n    inputs: { prompts: prompts, model: base }";
    check(
        &|text| text.replace("answers:\n    inputs: { prompts: prompts }", both),
        "model",
    );
    check(
        &|text| {
            text.replace(", endpoint: { url: 'http://127.0.0.1:9/v1', model: expert, give-up-seconds: 2, concurrency: 4 }", "")
        },
        "model",
    );

    let text = PIPELINE
        .replace("$url", "http://127.0.0.1:9/v1")
        .replace("concurrency: 4", "api-key-env: METIS_FLOW_NO_SUCH_KEY");
    project.write("p.yaml", &text);
    let unset = project
        .call(&["run", "p.yaml", "--to", "answers", "--device", "cpu"])
        .expect(1);
    assert!(
        unset.stderr.contains("METIS_FLOW_NO_SUCH_KEY"),
        "{}",
        unset.stderr
    );
}
