//! One running stage: its thread, its events, its attempts, its commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use engine_core::operator::Family;
use engine_core::{Artifact, Digest, Placement, StageContext, StageEvent};
use engine_plan::{Plan, Stage, StageKey};
use engine_store::{Generations, MadeBy, Manifest, MapPartRef, Store};
use schemas::record::{PartCounts, PartSpan};

use crate::cancel::CancelToken;
use crate::clock;
use crate::execute::RunOptions;
use crate::failure::{Domain, Failure};
use crate::io::StageListener;
use crate::keys::{Inputs, Outputs};
use crate::retry::with_retries;
use crate::stage::{StageDone, StageJob, run_stage};
use crate::worker::{OutputPort, StageRequest, WorkerPool};

/// What all stages of a run share.
#[derive(Debug)]
pub(crate) struct TaskShared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) store: Store,
    pub(crate) options: RunOptions,
    pub(crate) workers: WorkerPool,
    pub(crate) cancel: CancelToken,
    /// Results beside the first ones, as they were when the run started.
    pub(crate) generations: Generations,
    /// The span of the run, which those of stages lie in.
    pub(crate) span: tracing::Span,
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
        result: Box<Result<TaskDone, Failure>>,
    },
}

/// What a stage made, committed.
#[derive(Debug)]
pub(crate) struct TaskDone {
    pub(crate) manifest: Manifest,
    pub(crate) counts: Option<PartCounts>,
    pub(crate) spans: Vec<PartSpan>,
    pub(crate) retries: u32,
}

/// What is known of a stage before it runs.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) key: StageKey,
    pub(crate) inputs: Inputs,
    /// The latest result under the key, which is run again for all that.
    pub(crate) standing: Option<Box<Manifest>>,
    pub(crate) is_forced: bool,
    /// The earlier result, of another key, whose parts a replay takes over.
    pub(crate) base: Option<(Digest, Vec<MapPartRef>)>,
}

/// A stage that is to run.
pub(crate) struct Task {
    pub(crate) index: usize,
    pub(crate) start: Start,
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

    fn run(self) -> Result<TaskDone, Failure> {
        let shared = Arc::clone(&self.shared);
        let stage = &shared.plan.stages[self.index];
        let span = tracing::info_span!(
            parent: &shared.span,
            "stage",
            stage = stage.name,
            kind = stage.kind,
            key = self.start.key.digest.short(),
            rows = tracing::field::Empty,
        );
        let _entered = span.enter();
        let listener = Listener {
            index: self.index,
            cancel: shared.cancel.clone(),
            sender: Mutex::new(self.sender.clone()),
            warnings: Mutex::default(),
        };
        let begun = Instant::now();
        let job = self.job(stage);
        let has_checkpoints = stage.family == Family::Train;
        if job.is_forced && has_checkpoints {
            // A forced stage begins at its beginning; attempts after that go on from where the one before was.
            shared.store.remove_checkpoints(&job.key);
        }
        let ((done, backend), retries) =
            with_retries(&shared.options.worker, &listener, |listener| {
                self.work(stage, &job, listener)
            })?;
        let warnings = listener
            .warnings
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let seconds = begun.elapsed().as_secs_f64();
        let (counts, spans) = (done.counts, done.spans);
        let manifest = Manifest {
            key: self.start.key.digest,
            material: self.start.key.material,
            kind: stage.kind.to_owned(),
            version: stage.version,
            outputs: done.outputs,
            seconds,
            created: clock::now(),
            warnings,
            made_by: MadeBy {
                version: shared.options.version.clone(),
                backend,
            },
            generation: 0,
            quarantined: counts.map_or(0, |counts| counts.quarantined),
            parts: done.parts,
            replayed_from: self.start.base.map(|(key, _)| key),
        };
        let manifest = commit(&shared, manifest, self.start.standing)?;
        if has_checkpoints {
            shared.store.remove_checkpoints(&manifest.key);
        }
        span.record("rows", manifest.outputs.values().find_map(Artifact::rows));
        Ok(TaskDone {
            manifest,
            counts,
            spans,
            retries,
        })
    }

    fn job(&self, stage: &Stage) -> StageJob {
        let base = self.start.base.as_ref();
        StageJob {
            is_forced: self.start.is_forced,
            replay: base.map(|(_, parts)| parts.clone()).unwrap_or_default(),
            ..StageJob::new(stage, &self.start.key, &self.shared.options)
        }
    }

    fn work(
        &self,
        stage: &Stage,
        job: &StageJob,
        listener: &dyn StageListener,
    ) -> Result<(StageDone, Option<String>), Failure> {
        let shared = &self.shared;
        let inputs = self.start.inputs.clone();
        match stage.placement {
            Placement::Engine => {
                let context = StageContext {
                    stage: &stage.name,
                    seed: stage.seed,
                    root: &shared.options.root,
                    backend: None,
                };
                let done = run_stage(
                    stage.config.as_ref(),
                    &context,
                    &shared.store,
                    inputs,
                    &stage.outputs,
                    job,
                    listener,
                )?;
                Ok((done, None))
            }
            Placement::Worker if !shared.store.is_shared() => {
                let message = format!(
                    "a worker cannot open the store {}; use one outside this process",
                    shared.store.url()
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
                    config: stage.canonical.clone(),
                    seed: stage.seed,
                    inputs,
                    outputs: ports.collect::<Result<_, _>>()?,
                    job: job.clone(),
                };
                let done = shared.workers.run(&request, listener)?;
                Ok((done.done, Some(done.backend)))
            }
        }
    }
}

/// Commits a result: as the first one of its key, or beside the one that stands when it differs from that.
fn commit(
    shared: &TaskShared,
    manifest: Manifest,
    standing: Option<Box<Manifest>>,
) -> Result<Manifest, Failure> {
    let latest = shared.generations.latest(&manifest.key);
    let commit = match standing {
        Some(standing) if digests(&standing.outputs) == digests(&manifest.outputs) => {
            tracing::info!(key = manifest.key.short(), "the result is as it was");
            return Ok(*standing);
        }
        Some(_) => shared
            .store
            .commit_generation(&manifest, &shared.generations)?,
        // The latest one cannot be used, or there is none.
        None => shared.store.commit(&Manifest {
            generation: latest,
            ..manifest
        })?,
    };
    tracing::info!(
        key = commit.manifest.key.short(),
        ours = commit.is_ours,
        generation = commit.manifest.generation,
        seconds = commit.manifest.seconds,
        "committed"
    );
    Ok(commit.manifest)
}

fn digests(outputs: &Outputs) -> Vec<(&String, &Digest)> {
    outputs
        .iter()
        .map(|(port, artifact)| (port, artifact.digest()))
        .collect()
}

/// Passes a stage's events on and keeps its warnings.
struct Listener {
    index: usize,
    cancel: CancelToken,
    sender: Mutex<Sender<Message>>,
    warnings: Mutex<Vec<String>>,
}

impl Listener {
    fn send(&self, event: StageEvent) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // The scheduler is gone only when it has stopped waiting for us.
        let _ = sender.send(Message::Event {
            index: self.index,
            event,
        });
    }
}

impl StageListener for Listener {
    fn event(&self, event: StageEvent) {
        if let StageEvent::Warning(warning) = &event {
            self.warnings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(warning.clone());
        }
        self.send(event);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn notice(&self, message: String) {
        self.send(StageEvent::Warning(message));
    }
}
