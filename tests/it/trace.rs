//! What ran when: trace files, and spans for an OpenTelemetry collector.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::support::{Place, Project};
use crate::tables::{sums, write};

on_every_store!(a_trace_has_the_run_its_stages_and_their_parts);

const PIPELINE: &str = "
version: 1
name: traced
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id } } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 3' }
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    write(&project.path("sums.parquet"), &sums(0..8));
    project.write("p.yaml", PIPELINE);
    project
}

fn a_trace_has_the_run_its_stages_and_their_parts(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    project
        .call(&["show", "latest", "--trace", "trace.json"])
        .expect(0);
    let text = std::fs::read_to_string(project.path("trace.json")).unwrap();
    let trace: Value = serde_json::from_str(&text).unwrap();
    let events: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().collect();
    let named = |category: &str| -> Vec<&str> {
        let events = events.iter().filter(|event| event["cat"] == category);
        events
            .map(|event| event["name"].as_str().unwrap())
            .collect()
    };
    assert_eq!(named("run"), ["traced (done)"]);
    assert_eq!(named("stage"), ["prompts", "few"]);
    assert_eq!(named("part"), ["prompts"], "the source has one part");
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let whole = ["ts", "dur", "pid", "tid"];
        assert!(whole.iter().all(|name| event[name].is_u64()), "{event}");
    }
    let wrong = project
        .call(&["show", "few", "--trace", "x.json"])
        .expect(2);
    assert!(wrong.stderr.contains("show a run"), "{}", wrong.stderr);
}

/// Takes one request after the other, says that all is well, and passes on path and body.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut path, mut length) = (String::new(), 0);
            for line in reader.by_ref().lines().map_while(Result::ok) {
                if path.is_empty() {
                    line.split(' ').nth(1).unwrap().clone_into(&mut path);
                } else if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                    length = text.trim().parse().unwrap();
                } else if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
            if sender.send((path, body)).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

#[test]
fn a_collector_gets_spans_of_run_stages_and_parts() {
    let project = project(Place::Local);
    let (url, requests) = collector();
    let finished = project.call(&["run", "p.yaml", "--otlp", &url]).expect(0);
    assert!(!finished.stderr.contains("warning"), "{}", finished.stderr);
    let (paths, bodies): (Vec<String>, Vec<Vec<u8>>) = requests.try_iter().unzip();
    assert!(paths.iter().all(|path| path == "/v1/traces") && !paths.is_empty());
    let bytes = bodies.concat();
    for words in [
        "run traced",
        "stage prompts",
        "stage few",
        "part of prompts",
        "metis-flow",
    ] {
        let is_there = bytes
            .windows(words.len())
            .any(|window| window == words.as_bytes());
        assert!(is_there, "no span `{words}`");
    }
}

#[test]
fn a_collector_that_is_not_there_costs_a_warning() {
    let project = project(Place::Local);
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}");
    let finished = project.call(&["run", "p.yaml", "--otlp", &url]).expect(0);
    assert!(
        finished
            .stderr
            .contains("warning: traces did not reach http://127.0.0.1"),
        "{}",
        finished.stderr
    );
    let wrong = project
        .call(&["run", "p.yaml", "--otlp", "localhost"])
        .expect(2);
    assert!(
        wrong.stderr.contains("http://localhost:4318"),
        "{}",
        wrong.stderr
    );
}
