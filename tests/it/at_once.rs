//! Processes that run the same pipeline on one store at once.

use crate::every_kind::{self, RUN};
use crate::support::{Outcome, Place};

on_every_store!(
    runs_at_once_on_one_store_end_with_one_result,
    a_run_that_starts_while_another_is_at_work_uses_what_is_finished,
);

fn runs_at_once_on_one_store_end_with_one_result(place: Place) {
    let (digests, _store) = every_kind::undisturbed(Place::Local);
    let project = every_kind::project(place);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| Outcome(project.call(&RUN).expect(0).json())))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for outcome in &outcomes {
        assert_eq!(outcome.digests(), digests);
    }
    // One manifest for each stage, whoever wrote it.
    let keys = outcomes[0].0["stages"].as_array().unwrap().len();
    assert_eq!(project.objects("v1/stages/").len(), keys);
    assert!(project.objects("v1/generations/").is_empty());
    let again = Outcome(project.call(&RUN).expect(0).json());
    assert!(again.ran().is_empty(), "{:?}", again.ran());
    assert_eq!(again.digests(), digests);
}

fn a_run_that_starts_while_another_is_at_work_uses_what_is_finished(place: Place) {
    let project = every_kind::project(place);
    let mut first = project.start(&["run", "p.yaml", "--device", "cpu"]);
    first.wait_for_start("rl");
    let second = Outcome(project.call(&RUN).expect(0).json());
    for stage in ["prompts", "few"] {
        assert_eq!(second.statuses()[stage], "cached", "{stage}");
    }
    let (status, said) = first.finish();
    assert!(status.success(), "{said}");
    let again = Outcome(project.call(&RUN).expect(0).json());
    assert_eq!(again.digests(), second.digests());
    assert!(again.ran().is_empty(), "{:?}", again.ran());
}
