//! A training stage that is killed after any of its steps goes on from there, to the same numbers bit for bit.

use serde_json::Value;

use crate::every_kind;
use crate::support::{Outcome, Place, Project, is_running, wait_until};

on_every_store!(killed_after_every_step_the_losses_are_those_of_an_undisturbed_run);

/// One checkpoint after each step.
const RUN: [&str; 7] = [
    "run",
    "p.yaml",
    "--json",
    "--device",
    "cpu",
    "--checkpoint-seconds",
    "0",
];

fn metrics(project: &Project) -> Value {
    let query = "select * from metrics order by stage, step, name";
    let mut rows = project.call(&["sql", query, "--json"]).expect(0).json();
    for row in rows.as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("run");
    }
    rows
}

/// Checkpoints that were ever seen, as `key/step`.
fn checkpoints(project: &Project) -> Vec<String> {
    let names = project.objects("v1/checkpoints/").into_iter();
    names
        .filter(|name| {
            std::path::Path::new(name)
                .extension()
                .is_some_and(|end| end == "json")
                && !name.contains("/files/")
        })
        .collect()
}

fn killed_after_every_step_the_losses_are_those_of_an_undisturbed_run(place: Place) {
    let (digests, undisturbed) = every_kind::undisturbed(place);
    let expected = metrics(&undisturbed);
    let text = expected.to_string();
    for name in ["loss", "grad_norm"] {
        assert!(text.contains(name), "no `{name}` in {text}");
    }

    let project = every_kind::project(place);
    let mut seen: Vec<String> = Vec::new();
    loop {
        let mut running = project.start(&RUN);
        let has_ended = wait_until("a checkpoint is written", || {
            if running.has_ended() {
                return Some(true);
            }
            let found = checkpoints(&project);
            let is_new = found.iter().any(|name| !seen.contains(name));
            seen.extend(found);
            is_new.then_some(false)
        });
        if has_ended {
            let (status, said) = running.finish();
            assert!(status.success(), "{said}");
            break;
        }
        running.signal("STOP");
        let workers = running.workers();
        running.signal("KILL");
        drop(running);
        for worker in workers {
            wait_until("the worker of a killed engine ends", || {
                (!is_running(worker)).then_some(())
            });
        }
    }
    seen.sort();
    seen.dedup();
    // Two stages of five steps; after the last one no checkpoint is needed.
    assert!(seen.len() >= 6, "{seen:?}");
    let outcome = Outcome(project.call(&RUN).expect(0).json());
    assert!(outcome.ran().is_empty(), "{:?}", outcome.ran());
    assert_eq!(outcome.digests(), digests);
    assert_eq!(metrics(&project), expected);
}
