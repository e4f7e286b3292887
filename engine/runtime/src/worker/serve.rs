//! The worker's side: reads requests, runs stages, reports.

use std::io::{BufRead as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_core::{ModelBackend, ModelError, OperatorError, Registry, StageContext, StageEvent};
use engine_store::Store;

use super::protocol::{FromWorker, StageRequest, WorkerSetup};
use crate::failure::{Domain, Failure};
use crate::io::StageListener;
use crate::stage::{StageDone, run_stage};

const HEARTBEAT: Duration = Duration::from_secs(2);

/// Serves the engine on standard input and output until the input closes. `version` is that of the worker's program.
///
/// # Errors
/// When the set-up or a request is not understood: the other side is no engine of this version.
pub fn serve(
    version: &str,
    registry: &Registry,
    make_backend: impl FnOnce(&WorkerSetup) -> Result<Box<dyn ModelBackend>, ModelError>,
) -> Result<(), String> {
    let is_busy = Arc::new(AtomicBool::new(false));
    let lines = listen(&is_busy);
    let Ok(first) = lines.recv() else {
        return Ok(());
    };
    let setup: WorkerSetup = serde_json::from_str(&first)
        .map_err(|error| format!("the first line is no set-up of a worker: {error}"))?;
    let voice = Arc::new(Voice::default());
    keep_beating(&voice);
    is_busy.store(true, Ordering::SeqCst);
    let (backend, store) = match start(version, &setup, make_backend) {
        Ok(started) => started,
        Err(failure) => {
            voice.say(&FromWorker::Failed(failure));
            return Ok(());
        }
    };
    voice.say(&FromWorker::Ready {
        backend: backend.describe(),
    });
    loop {
        is_busy.store(false, Ordering::SeqCst);
        let Ok(line) = lines.recv() else {
            return Ok(());
        };
        is_busy.store(true, Ordering::SeqCst);
        let request: StageRequest =
            serde_json::from_str(&line).map_err(|error| format!("not a request: {error}"))?;
        let answer = match run(
            registry,
            backend.as_ref(),
            &store,
            &setup,
            request,
            voice.as_ref(),
        ) {
            Ok(done) => FromWorker::Done(done),
            Err(failure) => FromWorker::Failed(failure),
        };
        voice.say(&answer);
    }
}

fn start(
    version: &str,
    setup: &WorkerSetup,
    make_backend: impl FnOnce(&WorkerSetup) -> Result<Box<dyn ModelBackend>, ModelError>,
) -> Result<(Box<dyn ModelBackend>, Store), Failure> {
    if version != setup.version {
        let message = format!(
            "the worker is version {version} and the engine {}; build both together",
            setup.version
        );
        return Err(Failure::new(Domain::Worker, message));
    }
    crate::limit_threads(setup.threads);
    let store = Store::open(&setup.store)?;
    let backend = make_backend(setup).map_err(|error| Failure::of(Domain::Model, &error))?;
    Ok((backend, store))
}

fn run(
    registry: &Registry,
    backend: &dyn ModelBackend,
    store: &Store,
    setup: &WorkerSetup,
    request: StageRequest,
    listener: &dyn StageListener,
) -> Result<StageDone, Failure> {
    let unknown = |message: String| Failure::from(OperatorError::Internal(message));
    let (kind, version) = (&request.job.kind, request.job.version);
    let entry = registry
        .get(kind)
        .ok_or_else(|| unknown(format!("the worker knows no operator `{kind}`")))?;
    if entry.version != version {
        let message = format!(
            "the worker is another build than the engine: operator `{kind}` has version {} there and {version} here; build both together",
            entry.version
        );
        return Err(Failure::new(Domain::Worker, message));
    }
    let config = (entry.from_json)(request.config)
        .map_err(|error| unknown(format!("configuration: {error}")))?;
    let outputs = request
        .outputs
        .iter()
        .map(super::OutputPort::decode)
        .collect::<Result<Vec<_>, _>>()?;
    let span = tracing::info_span!(
        "stage",
        stage = request.stage,
        kind,
        key = request.job.key.short()
    );
    let _entered = span.enter();
    let context = StageContext {
        stage: &request.stage,
        seed: request.seed,
        root: &setup.root,
        backend: Some(backend),
    };
    run_stage(
        config.as_ref(),
        &context,
        store,
        request.inputs,
        &outputs,
        &request.job,
        listener,
    )
}

/// Lines of standard input. When it closes, the engine is gone or done with us: an idle worker ends, a busy one at once,
/// whatever its threads compute.
fn listen(is_busy: &Arc<AtomicBool>) -> Receiver<String> {
    let (sender, receiver): (Sender<String>, _) = channel();
    let is_busy = Arc::clone(is_busy);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
        if is_busy.load(Ordering::SeqCst) {
            // No destructors: other threads are inside the model library.
            std::process::abort();
        }
    });
    receiver
}

fn keep_beating(voice: &Arc<Voice>) {
    let voice = Arc::clone(voice);
    std::thread::spawn(move || {
        loop {
            voice.say(&FromWorker::Heartbeat);
            std::thread::sleep(HEARTBEAT);
        }
    });
}

/// Standard output, one line at a time.
#[derive(Debug, Default)]
struct Voice(Mutex<()>);

impl Voice {
    fn say(&self, message: &FromWorker) {
        let mut line = serde_json::to_vec(message).expect("messages are plain data");
        line.push(b'\n');
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        // An engine that does not listen has closed our input too, and that ends this process.
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

impl StageListener for Voice {
    fn event(&self, event: StageEvent) {
        self.say(&FromWorker::Event(event));
    }

    /// A worker is stopped by ending the process.
    fn is_cancelled(&self) -> bool {
        false
    }

    fn committed(&self) {
        self.say(&FromWorker::Committed);
    }
}
