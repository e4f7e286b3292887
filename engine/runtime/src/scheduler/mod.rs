//! The scheduler: one loop over messages, stages on threads of their own.

mod closing;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use engine_core::{Digest, Placement, StageEvent};
use engine_plan::{Plan, StageKey};
use engine_store::{Lookup, Store, new_run_id};
use schemas::record::{RunEnded, RunStarted, StageStatus};

use crate::cancel::CancelToken;
use crate::clock;
use crate::event::{RunEvent, RunObserver};
use crate::execute::RunOptions;
use crate::failure::RunError;
use crate::keys::{Inputs, KeyMaker, Outputs, inputs_of};
use crate::outcome::{RunOutcome, RunStatus, StageOutcome};
use crate::task::{Message, Task, TaskShared};
use crate::worker::{WorkerPool, WorkerSetup};

/// How long the scheduler waits before it looks at the wish to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long stages in this process may take to notice the wish to stop before they are left behind.
const GRACE: Duration = Duration::from_secs(5);

/// What is known of a stage.
#[derive(Debug)]
enum State {
    /// An input is not there yet.
    Waiting,
    /// It can start.
    Ready(Box<(StageKey, Inputs)>),
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
    outputs: Vec<Option<Outputs>>,
    outcomes: Vec<Option<StageOutcome>>,
    /// Warnings about stages that have not started, for example a damaged manifest.
    early_warnings: Vec<Vec<String>>,
    shared: Arc<TaskShared>,
    sender: Sender<Message>,
    messages: Receiver<Message>,
    has_failed: bool,
    cancelled_at: Option<Instant>,
}

impl<'a> Scheduler<'a> {
    pub(crate) fn new(
        plan: &'a Arc<Plan>,
        store: &'a Store,
        options: &'a RunOptions,
        cancel: &'a CancelToken,
        observer: &'a mut dyn RunObserver,
    ) -> Self {
        let count = plan.stages.len();
        let setup = WorkerSetup {
            version: options.version.clone(),
            store: store.url().to_owned(),
            root: options.root.clone(),
            threads: options.threads,
            device: options.device.clone(),
        };
        let shared = TaskShared {
            plan: Arc::clone(plan),
            store: store.clone(),
            root: options.root.clone(),
            version: options.version.clone(),
            workers: WorkerPool::new(options.worker.clone(), setup),
            cancel: cancel.clone(),
        };
        let (sender, messages) = channel();
        Self {
            plan,
            store,
            options,
            cancel,
            observer,
            run: new_run_id(),
            keys: KeyMaker::new(&options.root),
            states: (0..count).map(|_| State::Waiting).collect(),
            outputs: vec![None; count],
            outcomes: vec![None; count],
            early_warnings: vec![Vec::new(); count],
            shared: Arc::new(shared),
            sender,
            messages,
            has_failed: false,
            cancelled_at: None,
        }
    }

    pub(crate) fn run(mut self) -> Result<RunOutcome, RunError> {
        let span = tracing::info_span!("run", run = self.run, pipeline = self.plan.name);
        let _entered = span.enter();
        let begun = Instant::now();
        self.store.sweep_scratch();
        self.store.record_start(&RunStarted {
            run: self.run.clone(),
            pipeline: self.plan.name.clone(),
            text: self.plan.text.clone(),
            started: clock::now(),
            version: self.options.version.clone(),
            stages: self
                .plan
                .stages
                .iter()
                .map(|stage| stage.name.clone())
                .collect(),
        })?;
        self.observer.observe(RunEvent::Started { run: &self.run });
        self.drive()?;
        for index in 0..self.states.len() {
            self.close_left(index)?;
        }
        let status = match (self.cancelled_at, self.has_failed) {
            (_, true) => RunStatus::Failed,
            (Some(_), false) if self.outputs.iter().any(Option::is_none) => RunStatus::Interrupted,
            _ => RunStatus::Done,
        };
        let seconds = begun.elapsed().as_secs_f64();
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

    /// Starts what can start and hears what happens, until nothing runs and nothing can start.
    fn drive(&mut self) -> Result<(), RunError> {
        loop {
            if self.cancel.is_cancelled() && self.cancelled_at.is_none() {
                self.cancelled_at = Some(Instant::now());
                self.observer.observe(RunEvent::Stopping);
            }
            if self.cancelled_at.is_none() && !self.has_failed {
                self.advance()?;
                self.start_ready();
            }
            let is_running = self
                .states
                .iter()
                .any(|state| matches!(state, State::Running { .. }));
            let is_late = self.cancelled_at.is_some_and(|at| at.elapsed() > GRACE);
            if !is_running || is_late {
                return Ok(());
            }
            let first = match self.messages.recv_timeout(TICK) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut queue: VecDeque<Message> = std::iter::once(first)
                .chain(self.messages.try_iter())
                .collect();
            while let Some(message) = queue.pop_front() {
                self.hear(message)?;
            }
        }
    }

    /// Looks up every stage whose inputs have come; one pass is enough, since the stages are in topological order.
    fn advance(&mut self) -> Result<(), RunError> {
        for index in 0..self.states.len() {
            if !matches!(self.states[index], State::Waiting) {
                continue;
            }
            let Some(inputs) = inputs_of(&self.plan.stages[index], &self.outputs) else {
                continue;
            };
            let begun = Instant::now();
            let key = match self.keys.key(&self.plan.stages[index], &inputs) {
                Ok(key) => key,
                Err(error) => {
                    self.fail(index, None, begun, error.into(), Vec::new())?;
                    return Ok(());
                }
            };
            match self.store.lookup(&key.digest)? {
                Lookup::Hit(manifest) => {
                    let warnings = manifest.warnings.clone();
                    self.complete(index, *manifest, StageStatus::Cached, begun, warnings)?;
                }
                Lookup::Miss => self.states[index] = State::Ready(Box::new((key, inputs))),
                Lookup::Broken(reason) => {
                    self.early_warnings[index]
                        .push(format!("an earlier result cannot be used: {reason}"));
                    self.states[index] = State::Ready(Box::new((key, inputs)));
                }
            }
        }
        Ok(())
    }

    fn start_ready(&mut self) {
        let mut running_keys: HashSet<Digest> = HashSet::new();
        let mut free = [
            self.options.engine_slots.max(1),
            self.options.worker_slots.max(1),
        ];
        for (index, state) in self.states.iter().enumerate() {
            if let State::Running { key, .. } = state {
                running_keys.insert(key.clone());
                let slot = slot(self.plan.stages[index].placement);
                free[slot] = free[slot].saturating_sub(1);
            }
        }
        for index in 0..self.states.len() {
            let slot = slot(self.plan.stages[index].placement);
            let State::Ready(ready) = &self.states[index] else {
                continue;
            };
            let key = ready.0.digest.clone();
            if free[slot] == 0 {
                continue;
            }
            if !running_keys.insert(key.clone()) {
                // The same work runs under another name: wait for it, then look it up.
                continue;
            }
            free[slot] -= 1;
            let warnings = std::mem::take(&mut self.early_warnings[index]);
            self.observer.observe(RunEvent::StageStarted { index });
            for warning in &warnings {
                self.observer.observe(RunEvent::Stage {
                    index,
                    event: &StageEvent::Warning(warning.clone()),
                });
            }
            let state = std::mem::replace(
                &mut self.states[index],
                State::Running {
                    key,
                    since: Instant::now(),
                    warnings,
                },
            );
            let State::Ready(ready) = state else {
                unreachable!("it was ready a moment ago")
            };
            let (key, inputs) = *ready;
            Task {
                index,
                key,
                inputs,
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
                self.release_twins(&key);
                match *result {
                    Ok(manifest) => {
                        self.complete(index, manifest, StageStatus::Done, since, warnings)
                    }
                    Err(failure) => self.fail(index, Some(key), since, failure, warnings),
                }
            }
        }
    }

    /// Stages that waited for the same work under another name look it up again.
    fn release_twins(&mut self, key: &Digest) {
        for state in &mut self.states {
            if matches!(state, State::Ready(ready) if ready.0.digest == *key) {
                *state = State::Waiting;
            }
        }
    }
}

fn slot(placement: Placement) -> usize {
    match placement {
        Placement::Engine => 0,
        Placement::Worker => 1,
    }
}
