//! One process for one part: started, fed, listened to, and ended in any case.
//!
//! Standard input, output and error each have a thread, so that no full pipe can stop the others, and the caller's thread
//! only watches: the clock, the memory, the wish to stop, the end of the process. The process leads a group of its own, which
//! is killed as a whole before the process is reaped: until then no other group can have its number.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::memory::resident_bytes;
use super::stream::{FeedError, Written, feed, read};

/// How often the clock, the memory and the wish to stop are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often the end of a process that has closed its output is looked for.
const END_TICK: Duration = Duration::from_millis(1);
/// How long something that the program started may hold its pipes after it has ended itself.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Lines of standard error that are kept for an error.
const LOG_LINES: usize = 20;
/// Bytes of such a line.
const LOG_WIDTH: u64 = 1000;

/// What a program may use for a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) memory_mb: u64,
    pub(super) output_mb: u64,
}

/// A program that can be run on parts.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) command: &'a [String],
    /// Where it is started; absolute.
    pub(super) folder: PathBuf,
    /// Everything that its environment has.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) limits: Limits,
}

/// Why a program gave no rows.
#[derive(Debug)]
pub(super) enum ProgramError {
    /// The run was asked to stop.
    Interrupted,
    /// It did something wrong.
    Failed(String),
}

/// What the threads at its pipes tell.
#[derive(Debug)]
enum Heard {
    Fed(Result<(), FeedError>),
    Output(std::io::Result<Vec<u8>>),
    TooMuch,
}

impl Program<'_> {
    /// Gives the program some rows and makes of its output what `take` makes. An error of `take` goes on from "the program".
    pub(super) fn run<T>(
        &self,
        rows: RecordBatch,
        is_cancelled: &dyn Fn() -> bool,
        take: impl FnOnce(&Written) -> Result<T, String>,
    ) -> Result<T, ProgramError> {
        if is_cancelled() {
            return Err(ProgramError::Interrupted);
        }
        let mut process = self.start(rows)?;
        let result = process.watch(&self.limits, is_cancelled);
        process.end();
        result
            .and_then(|bytes| {
                let taken = read(bytes).and_then(|written| take(&written));
                taken.map_err(ProgramError::Failed)
            })
            .map_err(|error| match error {
                ProgramError::Interrupted => ProgramError::Interrupted,
                ProgramError::Failed(what) => {
                    ProgramError::Failed(self.blame(&what, &process.log()))
                }
            })
    }

    fn start(&self, rows: RecordBatch) -> Result<Process, ProgramError> {
        let (name, arguments) = self
            .command
            .split_first()
            .expect("a command without a program is a fault of the plan");
        // A name is looked for in PATH, a path starts at the project folder.
        let program = if name.contains('/') {
            self.folder.join(name)
        } else {
            Path::new(name).to_owned()
        };
        let mut child = Command::new(&program)
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for the engine, which ends its programs in order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                ProgramError::Failed(format!(
                    "the program `{}` could not be started: {error}; is `{name}` installed, executable, and in PATH?",
                    self.command.join(" ")
                ))
            })?;
        let stdin = child.stdin.take().expect("standard input is a pipe");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let (sender, heard) = channel();
        let (log_sender, log) = channel();
        let most = self.limits.output_mb.saturating_mul(1 << 20);
        let fed = sender.clone();
        // Nobody listens any more when the process was given up.
        std::thread::spawn(move || {
            let result = feed(&rows, stdin);
            let _ = fed.send(Heard::Fed(result));
        });
        std::thread::spawn(move || collect(stdout, most, &sender));
        let span = tracing::Span::current();
        std::thread::spawn(move || span.in_scope(|| keep_log(stderr, &log_sender)));
        Ok(Process {
            child,
            heard,
            log,
            is_over: false,
        })
    }

    fn blame(&self, what: &str, log: &[String]) -> String {
        let mut message = format!("the program `{}` {what}", self.command.join(" "));
        if !log.is_empty() {
            message.push_str("\nits last lines on standard error:");
            for line in log {
                let _ = write!(message, "\n  {line}");
            }
        }
        message
    }
}

/// A running program.
struct Process {
    child: Child,
    heard: Receiver<Heard>,
    log: Receiver<Vec<String>>,
    is_over: bool,
}

/// What is known of a process at the pipes; nothing yet where something still holds them.
#[derive(Default)]
struct Pipes {
    fed: Option<Result<(), FeedError>>,
    output: Option<std::io::Result<Vec<u8>>>,
}

impl Process {
    /// Waits until the program has ended by itself and gives what it wrote.
    fn watch(
        &mut self,
        limits: &Limits,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, ProgramError> {
        let start = Instant::now();
        let mut pipes = Pipes::default();
        let mut ended: Option<Instant> = None;
        let mut next_look = start + TICK;
        loop {
            if is_cancelled() {
                return Err(ProgramError::Interrupted);
            }
            if start.elapsed() > limits.time {
                return Err(ProgramError::Failed(format!(
                    "did not end within {} s and was killed; `timeout-seconds` says how long it may take for a part",
                    limits.time.as_secs()
                )));
            }
            if Instant::now() >= next_look {
                self.look_at_memory(limits)?;
                next_look = Instant::now() + TICK;
            }
            self.listen(&mut pipes, limits)?;
            if ended.is_none() && self.has_ended() {
                ended = Some(Instant::now());
            }
            let is_closed = pipes.fed.is_some() && pipes.output.is_some();
            if ended.is_some_and(|ended| is_closed || ended.elapsed() > LAST_BREATH) {
                break;
            }
        }
        let status = self.end();
        match status.and_then(failure) {
            Some(what) => Err(ProgramError::Failed(what)),
            None => pipes.result().map_err(ProgramError::Failed),
        }
    }

    fn look_at_memory(&self, limits: &Limits) -> Result<(), ProgramError> {
        let used = resident_bytes(self.child.id());
        if used > limits.memory_mb.saturating_mul(1 << 20) {
            return Err(ProgramError::Failed(format!(
                "used {} MB of memory and was killed; `memory-mb` allows {}",
                used >> 20,
                limits.memory_mb
            )));
        }
        Ok(())
    }

    /// Waits for a moment for what the threads at the pipes tell.
    fn listen(&self, pipes: &mut Pipes, limits: &Limits) -> Result<(), ProgramError> {
        if pipes.fed.is_some() && pipes.output.is_some() {
            std::thread::sleep(END_TICK);
            return Ok(());
        }
        match self.heard.recv_timeout(TICK) {
            Ok(Heard::Fed(result)) => pipes.fed = Some(result),
            Ok(Heard::Output(bytes)) => pipes.output = Some(bytes),
            Ok(Heard::TooMuch) => {
                return Err(ProgramError::Failed(format!(
                    "wrote more than {} MB and was killed; `output-mb` says how much it may write for a part",
                    limits.output_mb
                )));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // A thread that panicked.
            Err(RecvTimeoutError::Disconnected) => {
                let what = "could not be listened to".to_owned();
                return Err(ProgramError::Failed(what));
            }
        }
        Ok(())
    }

    /// Whether the process has ended; it is not reaped yet.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error means that there is no such child: nothing to wait for.
        !matches!(
            waitid(WaitId::Pid(Pid::from_child(&self.child)), options),
            Ok(None)
        )
    }

    /// Kills what is left of the group and reaps the process.
    fn end(&mut self) -> Option<ExitStatus> {
        if !self.is_over {
            self.is_over = true;
            // The group is empty when all of it has ended.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        self.child.wait().ok()
    }

    /// The last lines of standard error, once the process is over.
    fn log(&self) -> Vec<String> {
        self.log.recv_timeout(LAST_BREATH).unwrap_or_default()
    }
}

impl Pipes {
    /// What a program wrote that has ended well.
    fn result(self) -> Result<Vec<u8>, String> {
        match self.fed {
            None | Some(Err(FeedError::Closed)) => {
                return Err("ended before it had read all rows".to_owned());
            }
            Some(Err(FeedError::Other(error))) => {
                return Err(format!("could not be given its rows: {error}"));
            }
            Some(Ok(())) => {}
        }
        match self.output {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(format!("could not be listened to: {error}")),
            None => Err(
                "ended, and something that it started still held its standard output open; let it wait for its processes"
                    .to_owned(),
            ),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was wrong with the end of a process, if anything.
fn failure(status: ExitStatus) -> Option<String> {
    match (status.signal(), status.code()) {
        (_, Some(0)) => None,
        (_, Some(code)) => Some(format!("ended with exit code {code}")),
        (Some(9), _) => {
            Some("was killed (signal 9; perhaps the machine ran out of memory)".to_owned())
        }
        (Some(signal), _) => Some(format!("was ended by signal {signal}")),
        (None, None) => Some("ended without saying how".to_owned()),
    }
}

/// Reads standard output to its end, or to one byte more than it may have.
fn collect(stdout: impl Read, most: u64, sender: &Sender<Heard>) {
    let mut bytes = Vec::new();
    let result = stdout.take(most.saturating_add(1)).read_to_end(&mut bytes);
    let heard = match result {
        Ok(_) if bytes.len() as u64 > most => Heard::TooMuch,
        Ok(_) => Heard::Output(Ok(bytes)),
        Err(error) => Heard::Output(Err(error)),
    };
    // Nobody listens any more when the process was given up.
    let _ = sender.send(heard);
}

/// Passes standard error on to the log and keeps its last lines.
fn keep_log(stderr: impl Read, sender: &Sender<Vec<String>>) {
    let mut lines = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        // A line without an end is taken in pieces, not into memory as a whole.
        match reader.by_ref().take(LOG_WIDTH).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::info!(target: "metis_flow::exec", "{line}");
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    let _ = sender.send(lines.into());
}
