//! Independent jobs on threads of our own.
//!
//! On the CPU a batch is cut into jobs of a fixed size, each job runs on one thread, and results are taken in the order
//! of the jobs. So the result does not depend on the number of threads, and no operation waits for all threads at a
//! barrier, which costs small models more than the operation itself when other programs use the cores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use engine_core::error::ModelError;

use crate::guard::guarded;

/// What a worker tells the calling thread.
enum Message<T, P> {
    Done(usize, Result<T, ModelError>),
    Progress(P),
}

/// A worker's way to report from the middle of a job.
pub(crate) struct Reporter<'a, T, P> {
    target: Target<'a, T, P>,
}

enum Target<'a, T, P> {
    Caller(&'a mut dyn FnMut(P) -> bool),
    Channel(Sender<Message<T, P>>, &'a AtomicBool),
}

impl<T, P> Reporter<'_, T, P> {
    /// Reports; false asks the job to break off.
    pub(crate) fn report(&mut self, progress: P) -> bool {
        match &mut self.target {
            Target::Caller(report) => report(progress),
            Target::Channel(sender, stop) => {
                sender.send(Message::Progress(progress)).is_ok() && !stop.load(Ordering::Relaxed)
            }
        }
    }
}

/// Runs `jobs` jobs on one thread for each worker. `report` gets what jobs report and returns whether to go on; `take`
/// gets the results in the order of the jobs, as soon as that order allows. With one worker or one job everything
/// runs on the calling thread.
///
/// # Errors
/// That of the first job, in their order, that failed.
pub(crate) fn run<W: Send, T: Send, P: Send>(
    mut workers: Vec<W>,
    jobs: usize,
    work: impl Fn(&W, usize, &mut Reporter<'_, T, P>) -> Result<T, ModelError> + Sync,
    mut report: impl FnMut(P) -> bool,
    mut take: impl FnMut(usize, T),
) -> Result<(), ModelError> {
    if workers.len() <= 1 || jobs <= 1 {
        let worker = workers.pop().expect("there is a worker");
        for job in 0..jobs {
            let mut reporter = Reporter {
                target: Target::Caller(&mut report),
            };
            take(job, work(&worker, job, &mut reporter)?);
        }
        return Ok(());
    }
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (sender, receiver) = channel();
    let mut early = BTreeMap::new();
    let (mut taken, mut refused) = (0, false);
    let mut failures = BTreeMap::new();
    std::thread::scope(|scope| {
        for worker in workers {
            let (sender, stop, next, work) = (sender.clone(), &stop, &next, &work);
            scope.spawn(move || {
                let mut reporter = Reporter {
                    target: Target::Channel(sender.clone(), stop),
                };
                while !stop.load(Ordering::Relaxed) {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= jobs {
                        break;
                    }
                    let result = guarded(|| work(&worker, job, &mut reporter));
                    // A failure ends the call; what the others are at is of no use.
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if sender.send(Message::Done(job, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for message in receiver {
            match message {
                Message::Done(job, Ok(result)) => {
                    early.insert(job, result);
                    while let Some(result) = early.remove(&taken) {
                        take(taken, result);
                        taken += 1;
                    }
                }
                Message::Done(job, Err(error)) => {
                    failures.insert(job, error);
                }
                Message::Progress(progress) => {
                    if !report(progress) {
                        refused = true;
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    // Jobs that broke off because of another's failure say that they were interrupted; the cause comes first.
    let cause = failures
        .into_values()
        .find(|error| !matches!(error, ModelError::Interrupted));
    match cause {
        Some(cause) => Err(cause),
        None if taken == jobs && !refused => Ok(()),
        None => Err(ModelError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for threads in [1, 3] {
            let (mut seen, mut results) = (0, Vec::new());
            let outcome = run(
                vec![(); threads],
                20,
                |(), job, reporter| {
                    reporter.report(1);
                    Ok(job * 2)
                },
                |progress: usize| {
                    seen += progress;
                    true
                },
                |_, result| results.push(result),
            );
            assert!(outcome.is_ok());
            assert_eq!(results, (0..20).map(|job| job * 2).collect::<Vec<_>>());
            assert_eq!(seen, 20);
        }
    }

    #[test]
    fn a_failure_or_a_panic_ends_the_call_with_its_cause() {
        let failing = |(): &(), job: usize, reporter: &mut Reporter<'_, usize, ()>| match job {
            5 => Err(ModelError::NonFinite("job 5".to_owned())),
            _ if reporter.report(()) => Ok(job),
            _ => Err(ModelError::Interrupted),
        };
        let error = run(vec![(); 3], 50, failing, |()| true, |_, _| ()).unwrap_err();
        assert!(matches!(error, ModelError::NonFinite(_)), "{error}");
        let panics = |(): &(), _: usize, _: &mut Reporter<'_, (), ()>| panic!("broken job");
        let error = run(vec![(); 2], 4, panics, |()| true, |_, ()| ()).unwrap_err();
        assert_eq!(error.to_string(), "libtorch: broken job");
        let idle = |(): &(), _: usize, reporter: &mut Reporter<'_, (), ()>| {
            if reporter.report(()) {
                Ok(())
            } else {
                Err(ModelError::Interrupted)
            }
        };
        assert!(matches!(
            run(vec![(); 2], 4000, idle, |()| false, |_, ()| ()),
            Err(ModelError::Interrupted)
        ));
    }
}
