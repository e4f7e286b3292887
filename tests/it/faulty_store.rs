//! A store that fails, is late, gives half of what there is and lists what was: runs end all the same, with the same result.

use crate::every_kind::{self, RUN};
use crate::support::{Outcome, Place};

on_every_store!(a_store_that_fails_now_and_then_changes_no_result);

fn a_store_that_fails_now_and_then_changes_no_result(place: Place) {
    let (digests, _store) = every_kind::undisturbed(Place::Local);
    let seeds = match place {
        Place::Local => 1..7,
        Place::S3 => 7..9,
    };
    for seed in seeds {
        let project = every_kind::project(place);
        let url = match place {
            Place::Local => format!("file://{}", project.store_url()),
            Place::S3 => project.store_url(),
        };
        let faulty = format!("chaos+{url}?seed={seed}&rate=0.05");
        let flags = [&RUN[..], &["--store", &faulty]].concat();
        let outcome = Outcome(project.call(&flags).expect(0).json());
        assert_eq!(outcome.digests(), digests, "seed {seed}");

        // What it left is whole: a run on the plain store finds all of it.
        let flags = [&RUN[..], &["--store", &url]].concat();
        let again = Outcome(project.call(&flags).expect(0).json());
        assert!(again.ran().is_empty(), "seed {seed}: {:?}", again.ran());
        assert_eq!(again.digests(), digests, "seed {seed}");
    }
}
