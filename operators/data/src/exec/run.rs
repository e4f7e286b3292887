//! One process for one part: started, fed, listened to, and ended in any case.
//!
//! Standard input and output each have a thread, so that no full pipe can stop the others, and the caller's thread only
//! watches: the clock, the memory, the wish to stop, the end of the process.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use operators_verifier::program::{LAST_BREATH, Process, Program, Started, failure};

use super::stream::{FeedError, Written, feed, read};

/// How often the clock, the memory and the wish to stop are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often the end of a process that has closed its output is looked for.
const END_TICK: Duration = Duration::from_millis(1);

/// What a program may use for a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) memory_mb: u64,
    pub(super) output_mb: u64,
}

/// A program that can be run on parts.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) program: Program,
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

impl Runner {
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
        let started = self.program.start().map_err(ProgramError::Failed)?;
        let mut part = Part::new(started, rows, &self.limits);
        let result = part.watch(&self.limits, is_cancelled);
        part.process.end();
        result
            .and_then(|bytes| {
                let taken = read(bytes).and_then(|written| take(&written));
                taken.map_err(ProgramError::Failed)
            })
            .map_err(|error| match error {
                ProgramError::Interrupted => ProgramError::Interrupted,
                ProgramError::Failed(what) => {
                    ProgramError::Failed(self.program.blame(&what, &part.process.log()))
                }
            })
    }
}

/// A program that works on a part.
struct Part {
    process: Process,
    heard: Receiver<Heard>,
}

/// What is known of a process at the pipes; nothing yet where something still holds them.
#[derive(Default)]
struct Pipes {
    fed: Option<Result<(), FeedError>>,
    output: Option<std::io::Result<Vec<u8>>>,
}

impl Part {
    fn new(started: Started, rows: RecordBatch, limits: &Limits) -> Self {
        let (sender, heard) = channel();
        let most = limits.output_mb.saturating_mul(1 << 20);
        let fed = sender.clone();
        let (input, output) = (started.input, started.output);
        // Nobody listens any more when the process was given up.
        std::thread::spawn(move || {
            let result = feed(&rows, input);
            let _ = fed.send(Heard::Fed(result));
        });
        std::thread::spawn(move || collect(output, most, &sender));
        Self {
            process: started.process,
            heard,
        }
    }

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
                let memory = self.process.check_memory(limits.memory_mb);
                memory.map_err(ProgramError::Failed)?;
                next_look = Instant::now() + TICK;
            }
            self.listen(&mut pipes, limits)?;
            if ended.is_none() && self.process.has_ended() {
                ended = Some(Instant::now());
            }
            let is_closed = pipes.fed.is_some() && pipes.output.is_some();
            if ended.is_some_and(|ended| is_closed || ended.elapsed() > LAST_BREATH) {
                break;
            }
        }
        match self.process.end().and_then(failure) {
            Some(what) => Err(ProgramError::Failed(what)),
            None => pipes.result().map_err(ProgramError::Failed),
        }
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
