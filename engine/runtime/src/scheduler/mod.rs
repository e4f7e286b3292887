//! The scheduler: one loop over messages, stages on threads of their own.
//!
//! What there is to do is kept in queues: stages whose inputs have all come are looked up, those without a result wait for a
//! place. A message costs what it changes, however many stages there are.

mod closing;
mod lookup;
mod queues;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use engine_core::{Digest, StageEvent};
use engine_plan::Plan;
use engine_store::{Store, new_run_id};
use schemas::record::{RunEnded, RunStarted, StageRecord};

use crate::cancel::CancelToken;
use crate::clock;
use crate::event::{RunEvent, RunObserver};
use crate::execute::RunOptions;
use crate::failure::RunError;
use crate::keys::{KeyMaker, Outputs};
use crate::outcome::{RunOutcome, RunStatus, StageOutcome};
use crate::task::{Message, Start, Task, TaskShared};
use crate::worker::{WorkerPool, WorkerSetup};
use queues::Queues;

/// How long the scheduler waits before it looks at the wish to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long stages in this process may take to notice the wish to stop before they are left behind.
const GRACE: Duration = Duration::from_secs(5);
/// How often a run says that it is at work.
const ALIVE: Duration = Duration::from_mins(1);

/// What is known of a stage.
#[derive(Debug)]
enum State {
    /// An input is not there yet.
    Waiting,
    /// It can start.
    Ready(Box<Start>),
    Running {
        key: Digest,
        since: Instant,
        warnings: Vec<String>,
    },
    Over,
}

pub(crate) struct Scheduler<'a> {
    plan: &'a Arc<Plan>,
    store: &'a Store,
    options: &'a RunOptions,
    cancel: &'a CancelToken,
    observer: &'a mut dyn RunObserver,
    run: String,
    keys: KeyMaker,
    states: Vec<State>,
    queues: Queues,
    outputs: Vec<Option<Outputs>>,
    outcomes: Vec<Option<StageOutcome>>,
    /// Stages that were found in the store; their records are written together.
    cached: Vec<(usize, StageRecord)>,
    /// Warnings about stages that have not started, for example a damaged manifest.
    early_warnings: Vec<Vec<String>>,
    /// Facts that running stages told.
    notes: Vec<Vec<String>>,
    shared: Arc<TaskShared>,
    sender: Sender<Message>,
    messages: Receiver<Message>,
    has_failed: bool,
    cancelled_at: Option<Instant>,
}

impl<'a> Scheduler<'a> {
    pub(crate) fn try_new(
        plan: &'a Arc<Plan>,
        store: &'a Store,
        options: &'a RunOptions,
        cancel: &'a CancelToken,
        observer: &'a mut dyn RunObserver,
    ) -> Result<Self, RunError> {
        let count = plan.stages.len();
        let setup = WorkerSetup {
            version: options.version.clone(),
            store: store.url().to_owned(),
            root: options.root.clone(),
            threads: options.threads,
            device: options.device.clone(),
        };
        let run = new_run_id();
        let shared = TaskShared {
            plan: Arc::clone(plan),
            store: store.clone(),
            options: options.clone(),
            workers: WorkerPool::new(options.worker.clone(), setup),
            cancel: cancel.clone(),
            generations: store.generations()?,
            span: tracing::info_span!("run", run, pipeline = plan.name),
        };
        let (sender, messages) = channel();
        Ok(Self {
            plan,
            store,
            options,
            cancel,
            observer,
            run,
            keys: KeyMaker::new(&options.root),
            states: (0..count).map(|_| State::Waiting).collect(),
            queues: Queues::new(plan, options),
            outputs: vec![None; count],
            outcomes: vec![None; count],
            cached: Vec::new(),
            early_warnings: vec![Vec::new(); count],
            notes: vec![Vec::new(); count],
            shared: Arc::new(shared),
            sender,
            messages,
            has_failed: false,
            cancelled_at: None,
        })
    }

    pub(crate) fn run(mut self) -> Result<RunOutcome, RunError> {
        let span = self.shared.span.clone();
        let _entered = span.enter();
        let begun = Instant::now();
        self.store.sweep_scratch();
        self.store.record_start(&self.started())?;
        self.observer.observe(RunEvent::Started { run: &self.run });
        self.drive()?;
        for index in 0..self.states.len() {
            self.close_left(index)?;
        }
        let is_done =
            |outcome: &Option<StageOutcome>| outcome.as_ref().is_some_and(StageOutcome::is_settled);
        let status = match (self.cancelled_at, self.has_failed) {
            (_, true) => RunStatus::Failed,
            (Some(_), false) if !self.outcomes.iter().all(is_done) => RunStatus::Interrupted,
            _ => RunStatus::Done,
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.store.record_cached(&self.run, &self.cached)?;
        self.store.record_end(&RunEnded {
            run: self.run.clone(),
            ended: clock::now(),
            status: status.as_str().to_owned(),
            seconds,
        })?;
        let stages = self
            .outcomes
            .into_iter()
            .map(|outcome| outcome.expect("every stage was closed"))
            .collect();
        let outcome = RunOutcome {
            run: self.run,
            status,
            seconds,
            stages,
        };
        self.observer.observe(RunEvent::Ended { outcome: &outcome });
        Ok(outcome)
    }

    fn started(&self) -> RunStarted {
        let stages = self.plan.stages.iter();
        RunStarted {
            run: self.run.clone(),
            pipeline: self.plan.name.clone(),
            text: self.plan.text.clone(),
            resolved: Some(self.plan.resolved.clone()),
            started: clock::now(),
            version: self.options.version.clone(),
            stages: stages.map(|stage| stage.name.clone()).collect(),
        }
    }

    /// Starts what can start and hears what happens, until nothing runs and nothing can start.
    fn drive(&mut self) -> Result<(), RunError> {
        let mut last_alive = Instant::now();
        loop {
            if self.cancel.is_cancelled() && self.cancelled_at.is_none() {
                self.cancelled_at = Some(Instant::now());
                self.observer.observe(RunEvent::Stopping);
            }
            if self.cancelled_at.is_none() && !self.has_failed {
                self.look_up_all()?;
                self.start_ready();
            }
            let is_late = self.cancelled_at.is_some_and(|at| at.elapsed() > GRACE);
            if !self.queues.is_running() || is_late {
                return Ok(());
            }
            if last_alive.elapsed() > ALIVE {
                last_alive = Instant::now();
                self.store.record_alive(&self.run);
            }
            let first = match self.messages.recv_timeout(TICK) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.hear(first)?;
            while let Ok(message) = self.messages.try_recv() {
                self.hear(message)?;
            }
        }
    }

    fn start_ready(&mut self) {
        while let Some(index) = self.queues.next_start() {
            let State::Ready(start) = std::mem::replace(&mut self.states[index], State::Waiting)
            else {
                unreachable!("only stages that are ready are in the queue")
            };
            let key = start.key.digest.clone();
            if !self.queues.begin(index, &key) {
                // The same work runs under another name: it is looked up again when that ends.
                continue;
            }
            let warnings = std::mem::take(&mut self.early_warnings[index]);
            self.observer
                .observe(RunEvent::StageStarted { index, key: &key });
            for warning in &warnings {
                self.observer.observe(RunEvent::Stage {
                    index,
                    event: &StageEvent::Warning(warning.clone()),
                });
            }
            self.states[index] = State::Running {
                key,
                since: Instant::now(),
                warnings,
            };
            Task {
                index,
                start: *start,
                shared: Arc::clone(&self.shared),
                sender: self.sender.clone(),
            }
            .spawn();
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), RunError> {
        match message {
            Message::Event { index, event } => {
                if let (StageEvent::Warning(warning), State::Running { warnings, .. }) =
                    (&event, &mut self.states[index])
                {
                    warnings.push(warning.clone());
                }
                if let StageEvent::Note(note) = &event {
                    self.notes[index].push(note.clone());
                }
                self.observer.observe(RunEvent::Stage {
                    index,
                    event: &event,
                });
                Ok(())
            }
            Message::Finished { index, result } => {
                let state = std::mem::replace(&mut self.states[index], State::Over);
                let State::Running {
                    key,
                    since,
                    warnings,
                } = state
                else {
                    unreachable!("only a running stage finishes")
                };
                self.queues.end(index, &key);
                match *result {
                    Ok(done) => self.finish(index, done, since, warnings),
                    Err(failure) => self.fail(index, Some(key), since, failure, warnings),
                }
            }
        }
    }
}
