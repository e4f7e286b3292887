//! One running stage: its thread, its events, its commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use engine_core::{Placement, StageContext, StageEvent};
use engine_plan::{Plan, Stage, StageKey};
use engine_store::{MadeBy, Manifest, Store};

use crate::cancel::CancelToken;
use crate::clock;
use crate::failure::{Domain, Failure};
use crate::io::StageListener;
use crate::keys::{Inputs, Outputs};
use crate::stage::run_stage;
use crate::worker::{OutputPort, StageRequest, WorkerPool};

/// What all stages of a run share.
#[derive(Debug)]
pub(crate) struct TaskShared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) store: Store,
    pub(crate) root: PathBuf,
    pub(crate) version: String,
    pub(crate) workers: WorkerPool,
    pub(crate) cancel: CancelToken,
}

/// What the scheduler hears.
#[derive(Debug)]
pub(crate) enum Message {
    Event {
        index: usize,
        event: StageEvent,
    },
    Finished {
        index: usize,
        result: Box<Result<Manifest, Failure>>,
    },
}

/// A stage that is to run.
pub(crate) struct Task {
    pub(crate) index: usize,
    pub(crate) key: StageKey,
    pub(crate) inputs: Inputs,
    pub(crate) shared: Arc<TaskShared>,
    pub(crate) sender: Sender<Message>,
}

impl Task {
    pub(crate) fn spawn(self) {
        std::thread::spawn(move || {
            let (index, sender) = (self.index, self.sender.clone());
            // Without a message the scheduler would wait forever.
            let result = catch_unwind(AssertUnwindSafe(|| self.run()));
            let result =
                Box::new(result.unwrap_or_else(|payload| Err(Failure::panic(payload.as_ref()))));
            // The scheduler is gone only when it has stopped waiting for us.
            let _ = sender.send(Message::Finished { index, result });
        });
    }

    fn run(self) -> Result<Manifest, Failure> {
        let shared = Arc::clone(&self.shared);
        let stage = &shared.plan.stages[self.index];
        let span = tracing::info_span!("stage", stage = stage.name, kind = stage.kind);
        let _entered = span.enter();
        let listener = Listener {
            index: self.index,
            cancel: shared.cancel.clone(),
            sender: Mutex::new(self.sender.clone()),
            warnings: Mutex::default(),
        };
        let begun = Instant::now();
        let (outputs, backend) = self.work(stage, &listener)?;
        if shared.cancel.is_cancelled() {
            // The work is done: committing it costs nothing and saves it.
            tracing::debug!("finished after the run was asked to stop");
        }
        let manifest = Manifest {
            key: self.key.digest,
            material: self.key.material,
            kind: stage.kind.to_owned(),
            version: stage.version,
            outputs,
            seconds: begun.elapsed().as_secs_f64(),
            created: clock::now(),
            warnings: listener
                .warnings
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
            made_by: MadeBy {
                version: shared.version.clone(),
                backend,
            },
        };
        let commit = shared.store.commit(&manifest)?;
        tracing::info!(
            key = manifest.key.short(),
            ours = commit.is_ours,
            seconds = manifest.seconds,
            "committed"
        );
        Ok(commit.manifest)
    }

    fn work(
        &self,
        stage: &Stage,
        listener: &Listener,
    ) -> Result<(Outputs, Option<String>), Failure> {
        let inputs = self.inputs.clone();
        match stage.placement {
            Placement::Engine => {
                let context = StageContext {
                    stage: &stage.name,
                    seed: stage.seed,
                    root: &self.shared.root,
                    backend: None,
                };
                let outputs = run_stage(
                    stage.config.as_ref(),
                    &context,
                    &self.shared.store,
                    inputs,
                    &stage.outputs,
                    listener,
                )?;
                Ok((outputs, None))
            }
            Placement::Worker if !self.shared.store.is_shared() => {
                let message = format!(
                    "a worker cannot open the store {}; use one outside this process",
                    self.shared.store.url()
                );
                Err(Failure::new(Domain::Store, message))
            }
            Placement::Worker => {
                let ports = stage
                    .outputs
                    .iter()
                    .map(|(name, port_type)| OutputPort::new(name, port_type));
                let request = StageRequest {
                    stage: stage.name.clone(),
                    kind: stage.kind.to_owned(),
                    config: stage.canonical.clone(),
                    seed: stage.seed,
                    inputs,
                    outputs: ports.collect::<Result<_, _>>()?,
                };
                let done = self.shared.workers.run(&request, listener)?;
                Ok((done.outputs, Some(done.backend)))
            }
        }
    }
}

/// Passes a stage's events on and keeps its warnings.
struct Listener {
    index: usize,
    cancel: CancelToken,
    sender: Mutex<Sender<Message>>,
    warnings: Mutex<Vec<String>>,
}

impl StageListener for Listener {
    fn event(&self, event: StageEvent) {
        if let StageEvent::Warning(warning) = &event {
            self.warnings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(warning.clone());
        }
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // The scheduler is gone only when it has stopped waiting for us.
        let _ = sender.send(Message::Event {
            index: self.index,
            event,
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
