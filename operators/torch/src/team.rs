//! Threads that share the work of one decoding thread on the CPU.
//!
//! A model whose weights do not fit a core's cache is read faster by several cores. What is cut into jobs depends on shapes alone, and
//! each job is done by one thread, so the number of threads changes no result.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::guard::guarded;

/// Looks at the board before a helper lies down: about as long as what a decoding thread does between two sets of jobs.
const LOOKS: usize = 20_000;

/// A piece of work that owns what it needs.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// Helpers of one thread.
#[derive(Debug)]
pub(crate) struct Team {
    board: Arc<Board>,
    helpers: Vec<JoinHandle<()>>,
}

/// Where jobs are announced.
#[derive(Debug, Default)]
struct Board {
    current: Mutex<Option<Arc<Batch>>>,
    /// Number of announcements.
    version: AtomicUsize,
    sleepers: AtomicUsize,
    closed: AtomicBool,
    wake: Condvar,
}

/// Jobs that are done together.
struct Batch {
    jobs: Vec<Mutex<Option<Job>>>,
    next: AtomicUsize,
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} jobs", self.jobs.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of this many threads, the caller's among them.
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        let board = Arc::new(Board::default());
        let helper = |_| {
            let board = Arc::clone(&board);
            std::thread::spawn(move || {
                drop(guarded(|| {
                    tch::no_grad(|| board.help());
                    Ok(())
                }));
            })
        };
        let helpers = (1..threads.max(1)).map(helper).collect();
        Arc::new(Self { board, helpers })
    }

    /// Runs `work` with this team at hand for [`run`] on this thread.
    pub(crate) fn enter<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        struct Leave(Option<Arc<Team>>);
        impl Drop for Leave {
            fn drop(&mut self) {
                TEAM.set(self.0.take());
            }
        }
        let _leave = Leave(TEAM.replace(Some(Arc::clone(self))));
        work()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.closed.store(true, Ordering::SeqCst);
        drop(lock(&self.board.current));
        self.board.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its jobs.
            drop(helper.join());
        }
    }
}

/// Whether this thread is in [`Team::enter`].
pub(crate) fn is_at_hand() -> bool {
    TEAM.with_borrow(Option::is_some)
}

/// Does jobs on the threads of the team at hand, or one after the other on this one.
///
/// # Panics
/// With the panic of a job.
pub(crate) fn run(jobs: Vec<Job>) {
    let team = TEAM.with_borrow(Clone::clone);
    match team {
        Some(team) if jobs.len() > 1 && !team.helpers.is_empty() => team.board.run(jobs),
        _ => jobs.into_iter().for_each(|job| job()),
    }
}

impl Board {
    fn run(&self, jobs: Vec<Job>) {
        let batch = Arc::new(Batch {
            jobs: jobs.into_iter().map(|job| Mutex::new(Some(job))).collect(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        {
            let mut current = lock(&self.current);
            *current = Some(Arc::clone(&batch));
            self.version.fetch_add(1, Ordering::SeqCst);
        }
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake.notify_all();
        }
        batch.work();
        let mut looks = 0;
        while batch.done.load(Ordering::Acquire) < batch.jobs.len() {
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        if let Some(panic) = lock(&batch.panic).take() {
            resume_unwind(panic);
        }
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            let mut looks = 0;
            while self.version.load(Ordering::Acquire) == seen && looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            }
            let batch = {
                let mut current = lock(&self.current);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while self.version.load(Ordering::SeqCst) == seen
                    && !self.closed.load(Ordering::SeqCst)
                {
                    current = (self.wake.wait(current)).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                if self.closed.load(Ordering::SeqCst) {
                    return;
                }
                seen = self.version.load(Ordering::SeqCst);
                current.clone()
            };
            if let Some(batch) = batch {
                batch.work();
            }
        }
    }
}

impl Batch {
    fn work(&self) {
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(place) else {
                return;
            };
            let job = lock(job).take().expect("a job is done once");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                lock(&self.panic).get_or_insert(panic);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_whether_helpers_are_awake_or_not() {
        for threads in [1, 3] {
            let team = Team::new(threads);
            team.enter(|| {
                assert!(is_at_hand());
                for round in 0..200 {
                    let sums: Vec<Arc<AtomicUsize>> = (0..7).map(|_| Arc::default()).collect();
                    let jobs = sums.iter().enumerate().map(|(index, sum)| {
                        let sum = Arc::clone(sum);
                        Box::new(move || {
                            sum.fetch_add(index + round, Ordering::SeqCst);
                        }) as Job
                    });
                    run(jobs.collect());
                    for (index, sum) in sums.iter().enumerate() {
                        assert_eq!(sum.load(Ordering::SeqCst), index + round);
                    }
                    if round % 50 == 0 {
                        // Long enough for helpers to lie down.
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
            });
            assert!(!is_at_hand());
        }
    }

    #[test]
    fn a_panic_in_a_job_is_one_of_the_caller() {
        let team = Team::new(2);
        let failing = || {
            let jobs: Vec<Job> = vec![Box::new(|| ()), Box::new(|| panic!("broken job"))];
            team.enter(|| run(jobs));
            Ok(())
        };
        let error = guarded(failing).unwrap_err().to_string();
        assert_eq!(error, "libtorch: broken job");
        assert!(!is_at_hand());
    }
}
