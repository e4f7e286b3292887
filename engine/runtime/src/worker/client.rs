//! The engine's side: starts workers, hands them stages, watches them.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine_core::StageEvent;

use super::WorkerOptions;
use super::protocol::{FromWorker, Heard, LogTail, StageRequest, WorkerSetup};
use crate::failure::{Domain, Failure};
use crate::io::StageListener;
use crate::stage::StageDone;

/// How long the supervisor waits before it looks at the clock and at the wish to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long a worker that closed its output may take to end.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// Lines of a worker's log that are kept for an error.
const LOG_LINES: usize = 20;

/// Workers of a run. One is kept between stages, since starting one takes longer than many a stage.
#[derive(Debug)]
pub(crate) struct WorkerPool {
    options: WorkerOptions,
    setup: WorkerSetup,
    idle: Mutex<Vec<Worker>>,
}

/// What a worker made, and with what.
#[derive(Debug)]
pub(crate) struct WorkerDone {
    pub(crate) done: StageDone,
    pub(crate) backend: String,
}

impl WorkerPool {
    pub(crate) fn new(options: WorkerOptions, setup: WorkerSetup) -> Self {
        Self {
            options,
            setup,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs a stage in a worker, once.
    pub(crate) fn run(
        &self,
        request: &StageRequest,
        listener: &dyn StageListener,
    ) -> Result<WorkerDone, Failure> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut worker = match idle {
            Some(worker) if worker.is_alive() => worker,
            _ => Worker::start(&self.options, &self.setup)?,
        };
        let done = worker.run(request, &self.options, listener)?;
        let backend = worker.backend.clone().unwrap_or_default();
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(worker);
        Ok(WorkerDone { done, backend })
    }
}

#[derive(Debug)]
struct Worker {
    child: Child,
    /// Closing it asks the worker to end.
    stdin: Option<ChildStdin>,
    heard: Receiver<Heard>,
    log: LogTail,
    /// What it computes with; known once it is ready.
    backend: Option<String>,
}

impl Worker {
    fn start(options: &WorkerOptions, setup: &WorkerSetup) -> Result<Self, Failure> {
        let failed = |message: String| Failure::new(Domain::Worker, message);
        let mut child = Command::new(&options.program)
            .envs(options.environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C in the terminal is for the engine, which then ends its workers in order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                failed(format!(
                    "could not start the worker {}: {error}; it is built together with metis-flow and lies beside it",
                    options.program.display()
                ))
            })?;
        let stdin = child.stdin.take().expect("standard input is a pipe");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let log = LogTail::default();
        let heard = hear(stdout, &log);
        keep_log(stderr, &log);
        let mut worker = Self {
            child,
            stdin: Some(stdin),
            heard,
            log,
            backend: None,
        };
        // A worker that is gone already is noticed when the first answer does not come.
        let _ = worker.say(setup);
        Ok(worker)
    }

    fn is_alive(&self) -> bool {
        // Heartbeats have piled up since the last stage; only the end of the output is of interest.
        loop {
            match self.heard.try_recv() {
                Ok(Heard::Closed) | Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    return false;
                }
                Ok(Heard::Line(_)) => {}
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn say(&mut self, message: &impl serde::Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(&line).and_then(|()| stdin.flush()),
            None => Ok(()),
        }
    }

    fn run(
        &mut self,
        request: &StageRequest,
        options: &WorkerOptions,
        listener: &dyn StageListener,
    ) -> Result<StageDone, Failure> {
        // As above: a broken pipe shows as the end of the worker's output.
        let _ = self.say(request);
        let mut watch = Watch::new();
        loop {
            if listener.is_cancelled() {
                self.kill();
                return Err(Failure::interrupted());
            }
            match self.heard.recv_timeout(TICK) {
                Ok(Heard::Line(line)) => {
                    watch.last_heard = Instant::now();
                    match *line {
                        FromWorker::Ready { backend } => {
                            self.backend = Some(backend);
                            watch.last_progress = Instant::now();
                        }
                        FromWorker::Heartbeat => {}
                        FromWorker::Event(event) => {
                            watch.progress(&event);
                            listener.event(event);
                        }
                        FromWorker::Committed => {
                            watch.last_progress = Instant::now();
                            listener.committed();
                        }
                        FromWorker::Done(done) => return Ok(done),
                        FromWorker::Failed(failure) => return Err(failure),
                    }
                }
                Ok(Heard::Closed) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.post_mortem(&request.stage));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(fault) = watch.fault(self.backend.is_some(), options) {
                self.kill();
                let message = format!("the worker of stage `{}` {fault}", request.stage);
                return Err(Failure {
                    is_transient: true,
                    ..self.failure(message)
                });
            }
        }
    }

    /// Says how a worker ended that closed its output without an answer.
    fn post_mortem(&mut self, stage: &str) -> Failure {
        self.stdin = None;
        let deadline = Instant::now() + LAST_BREATH;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
                _ => break None,
            }
        };
        self.kill();
        // The pipe is closed now; what is in it takes the log's reader no time worth naming.
        std::thread::sleep(TICK);
        let by_signal = status.and_then(|status| status.signal());
        let message = format!("the worker of stage `{stage}` {}", describe(status));
        Failure {
            is_transient: by_signal.is_some(),
            ..self.failure(message)
        }
    }

    fn failure(&self, message: String) -> Failure {
        let log = self
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect();
        Failure {
            log,
            ..Failure::new(Domain::Worker, message)
        }
    }

    fn kill(&mut self) {
        self.stdin = None;
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// When a worker last gave signs of life.
struct Watch {
    begun: Instant,
    last_heard: Instant,
    last_progress: Instant,
    /// What was done and how many tokens, when it last told.
    known: (u64, u64),
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            last_heard: now,
            last_progress: now,
            known: (0, 0),
        }
    }

    /// A stage that tells the same over and over comes no further.
    fn progress(&mut self, event: &StageEvent) {
        if let StageEvent::Progress(progress) = event {
            let known = (progress.done, progress.tokens);
            if known != self.known {
                (self.known, self.last_progress) = (known, Instant::now());
            }
        }
    }

    /// Which limit is passed.
    fn fault(&self, is_ready: bool, options: &WorkerOptions) -> Option<String> {
        let WorkerOptions {
            start,
            silence,
            stall,
            ..
        } = options;
        if self.last_heard.elapsed() > *silence {
            Some(format!(
                "said nothing for {} s and was stopped",
                silence.as_secs_f64()
            ))
        } else if !is_ready && self.begun.elapsed() > *start {
            Some(format!(
                "was not ready after {} s and was stopped: it loads the model library and opens the device",
                start.as_secs_f64()
            ))
        } else if is_ready && self.last_progress.elapsed() > *stall {
            Some(format!(
                "lives but came no further for {} s and was stopped",
                stall.as_secs_f64()
            ))
        } else {
            None
        }
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "closed its output and did not end".to_owned();
    };
    match (status.signal(), status.code()) {
        (Some(9), _) => "was killed (signal 9; perhaps the machine ran out of memory)".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("ended without a result, with exit code {code}"),
        (None, None) => "ended without a result".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (floating-point exception)",
        11 => " (segmentation fault)",
        15 => " (terminated)",
        _ => "",
    }
}

/// Reads a worker's standard output; what is no message is kept as log.
fn hear(stdout: impl Read + Send + 'static, log: &LogTail) -> Receiver<Heard> {
    let (sender, receiver) = channel();
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { break };
            match serde_json::from_slice::<FromWorker>(&line) {
                Ok(message) => {
                    if sender.send(Heard::Line(Box::new(message))).is_err() {
                        return;
                    }
                }
                Err(_) => remember(&log, &line),
            }
        }
        // Nobody listens when the worker was dropped.
        let _ = sender.send(Heard::Closed);
    });
    receiver
}

fn keep_log(stderr: impl Read + Send + 'static, log: &LogTail) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            remember(&log, &line);
        }
    });
}

fn remember(log: &LogTail, line: &[u8]) {
    let line = String::from_utf8_lossy(line).trim_end().to_owned();
    tracing::info!(target: "metis_flow::worker", "{line}");
    let mut log: std::sync::MutexGuard<'_, VecDeque<String>> =
        log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() == LOG_LINES {
        log.pop_front();
    }
    log.push_back(line);
}
