//! Runs of a pipeline with every kind of stage that are killed at random moments and started again until they end.
//!
//! Each ends with the artifacts of an undisturbed run, and nothing that was committed is computed again. A few run with all
//! tests; `METIS_TEST_KILLS=200 cargo xtask test --test it -- killed_at_random` runs that many.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::every_kind::{self, RUN};
use crate::random::Random;
use crate::support::{Outcome, Place, Project, is_running, try_signal, variable, wait_until};

on_every_store!(killed_at_random_moments_it_ends_as_if_undisturbed);

/// Kills where the environment does not say how many.
const KILLED_RUNS: u64 = 20;
/// On S3 the store differs, not the engine.
const KILLED_RUNS_ON_S3: u64 = 5;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Engine,
    Worker,
    Both,
}

fn killed_at_random_moments_it_ends_as_if_undisturbed(place: Place) {
    let start = Instant::now();
    let (digests, _store) = every_kind::undisturbed(place);
    let span = start.elapsed();
    let runs = match variable("METIS_TEST_KILLS") {
        Some(number) => number
            .parse()
            .expect("METIS_TEST_KILLS is a number of runs"),
        None if place == Place::S3 => KILLED_RUNS_ON_S3,
        None => KILLED_RUNS,
    };
    for seed in 0..runs {
        let trial = Trial {
            project: every_kind::project(place),
            random: Random::new(seed),
            span,
            name: format!("seed {seed}"),
        };
        trial.run(&digests);
    }
}

struct Trial {
    project: Project,
    random: Random,
    /// How long an undisturbed run takes.
    span: Duration,
    name: String,
}

impl Trial {
    fn run(mut self, digests: &BTreeMap<String, String>) {
        // In half of the runs training goes on from its latest step, in the others from its start.
        let cadence = self.random.choose(&["0", "60"]);
        let flags = [&RUN[..], &["--checkpoint-seconds", cadence]].concat();
        let kills = 1 + self.random.below(3);
        let mut killed = 0;
        while killed < kills {
            let victim = self
                .random
                .choose(&[Victim::Engine, Victim::Worker, Victim::Both]);
            if self.disturb(&flags, victim) {
                killed += 1;
            } else if killed == 0 {
                // It had ended before: not the trial that is meant.
                self.project.clear_store();
            } else {
                break;
            }
        }

        let before = self.committed();
        let outcome = Outcome(self.project.call(&flags).expect(0).json());
        assert_eq!(&outcome.digests(), digests, "{}", self.name);
        let after = self.committed();
        self.assert_kept(&before, &after);
        let new = after.len() - before.len();
        assert_eq!(
            self.computed(outcome.0["run"].as_str().unwrap()),
            new as u64,
            "{}: parts that were committed are computed again",
            self.name
        );
        let again = Outcome(self.project.call(&flags).expect(0).json());
        assert!(again.ran().is_empty(), "{}: {:?}", self.name, again.ran());
    }

    /// Starts a run and kills somebody at some moment. False when the run had ended by then.
    fn disturb(&mut self, flags: &[&str], victim: Victim) -> bool {
        let before = self.committed();
        let mut running = self.project.start(flags);
        std::thread::sleep(self.random.moment(self.span));
        if running.has_ended() {
            return false;
        }
        // Held still, so that it starts no worker that nobody knows of.
        try_signal(running.id(), "STOP");
        let workers = running.workers();
        let victim = if workers.is_empty() {
            Victim::Engine
        } else {
            victim
        };
        if victim != Victim::Engine {
            for worker in &workers {
                // It may have ended by itself in this very moment.
                try_signal(*worker, "KILL");
            }
        }
        if victim == Victim::Worker {
            // The engine starts another one, and the run goes on.
            running.signal("CONT");
            let (status, said) = running.finish();
            assert!(status.success(), "{}: {said}", self.name);
        } else {
            running.signal("KILL");
            drop(running);
            for worker in workers {
                wait_until("the worker of a killed engine ends", || {
                    (!is_running(worker)).then_some(())
                });
            }
        }
        self.assert_kept(&before, &self.committed());
        true
    }

    /// Manifests of parts by name, with when they were written.
    fn committed(&self) -> BTreeMap<String, Vec<u8>> {
        let names = self.project.objects("v1/map-parts/").into_iter();
        names
            .map(|name| {
                let bytes = self.project.object(&name).unwrap();
                (name, bytes)
            })
            .collect()
    }

    fn assert_kept(&self, before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) {
        for (name, bytes) in before {
            assert!(
                after.get(name) == Some(bytes),
                "{}: {name} was there before the kill and is another one now",
                self.name
            );
        }
    }

    /// Parts that a run computed, as its records tell.
    fn computed(&self, run: &str) -> u64 {
        let records = self.project.objects(&format!("v1/runs/{run}/stages/"));
        records
            .iter()
            .filter_map(|record| self.project.json_object(record)["parts"]["computed"].as_u64())
            .sum()
    }
}
