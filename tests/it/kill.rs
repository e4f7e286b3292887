//! Runs that are interrupted or robbed of their worker: nothing that was finished is lost, and it is said what happened.

use crate::support::{Place, Project, is_running, send_signal, wait_until};

on_every_store!(
    a_stage_whose_worker_is_killed_once_is_started_again,
    an_interrupted_run_says_how_to_go_on_and_keeps_what_was_finished,
);

/// About two seconds of work on a small machine, most of it in a worker.
const PIPELINE: &str = "
version: 1
name: killed
seed: 7
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind }, limit: 100 }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 40' }
  base: { init-model: { config: $repo/examples/models/tiny-vl-config } }
  answers:
    inputs: { prompts: few, model: base }
    rollout: { samples: 4, temperature: 1.0, max-new-tokens: 48 }
  verdicts: { inputs: { rollouts: answers, prompts: few }, verify: { math: {} } }
  kinds:
    inputs: { verdicts: verdicts }
    sql: { query: 'select verdict, count(*) as n from verdicts group by verdict order by verdict' }
";

const RUN: [&str; 4] = ["run", "p.yaml", "--device", "cpu"];

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project
}

fn a_stage_whose_worker_is_killed_once_is_started_again(place: Place) {
    let project = project(place);
    let mut running = project.start(&RUN);
    running.wait_for_start("answers");
    send_signal(running.wait_for_worker(&[]), "KILL");
    let (status, said) = running.finish();
    assert!(status.success(), "{said}");
    assert!(
        said.contains("the worker of stage `answers` was killed (signal 9"),
        "{said}"
    );
    assert!(said.contains("started again"), "{said}");
    // The record of the run keeps it.
    let shown = project.call(&["show", "latest", "--json"]).expect(0).stdout;
    assert!(shown.contains("was killed"), "{shown}");
}

#[test]
fn a_stage_whose_worker_is_killed_again_fails_by_name_and_goes_on_later() {
    let project = project(Place::Local);
    let mut running = project.start(&[&RUN[..], &["--worker-retries", "1"]].concat());
    running.wait_for_start("answers");
    let first = running.wait_for_worker(&[]);
    send_signal(first, "KILL");
    send_signal(running.wait_for_worker(&[first]), "KILL");
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("error: stage `answers` (rollout) failed"),
        "{said}"
    );
    assert!(said.contains("was killed (signal 9"), "{said}");
    let outcome = project.run("p.yaml");
    assert_eq!(outcome.statuses()["base"], "cached");
    assert_eq!(outcome.ran(), ["answers", "kinds", "verdicts"]);
}

#[test]
fn a_worker_that_goes_silent_is_stopped() {
    let project = project(Place::Local);
    let mut running = project.start(&["run", "p.yaml", "--device", "cpu", "--worker-silence", "5"]);
    running.wait_for_start("answers");
    send_signal(running.wait_for_worker(&[]), "STOP");
    let (status, said) = running.finish();
    assert!(status.success(), "{said}");
    assert!(
        said.contains("the worker of stage `answers` said nothing for 5 s"),
        "{said}"
    );
}

fn an_interrupted_run_says_how_to_go_on_and_keeps_what_was_finished(place: Place) {
    for signal in ["INT", "TERM"] {
        let project = project(place);
        let mut running = project.start(&RUN);
        running.wait_for_start("answers");
        let worker = running.wait_for_worker(&[]);
        running.signal(signal);
        let (status, said) = running.finish();
        assert_eq!(status.code(), Some(3), "{said}");
        assert!(
            said.contains("goes on with the rest")
                && said.contains(&format!("metis-flow {}", RUN.join(" "))),
            "{said}"
        );
        wait_until("the worker ends", || (!is_running(worker)).then_some(()));
        let runs = project.call(&["runs", "--json"]).expect(0).json();
        assert_eq!(runs[0]["status"], "interrupted");
        let outcome = project.run("p.yaml");
        assert_eq!(outcome.statuses()["few"], "cached");
        assert_eq!(outcome.ran(), ["answers", "kinds", "verdicts"]);
    }
}
