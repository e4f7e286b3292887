//! One running program and the lines that go to and fro.
//!
//! Standard input and output each have a thread, so that no full pipe can stop the others, and the caller only watches: the
//! clock, the memory, the wish to stop.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use operators_verdict::Outcome;
use serde::Deserialize;

use super::Limits;
use crate::program::{LAST_BREATH, Process, Program, failure};
use crate::verifier::Opinion;

/// How often the clock, the memory and the wish to stop are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often the end of a process is looked for that should end.
const END_TICK: Duration = Duration::from_millis(1);
/// Most bytes of an answer.
const LONGEST: u64 = 1 << 20;
/// Lines that a program may be ahead.
const AHEAD: usize = 4;
/// Characters of a reason that are kept.
const REASON: usize = 2000;
/// Characters of what is no answer that an error shows.
const SHOWN: usize = 80;

/// A running program that answers questions.
#[derive(Debug)]
pub(super) struct Talk {
    process: Process,
    /// Where questions go; none when there are no more.
    questions: Option<Sender<String>>,
    answers: Receiver<Heard>,
    /// Whether it has not answered yet.
    is_fresh: bool,
    /// When its memory was looked at.
    looked: Instant,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Miss {
    /// The run was asked to stop.
    Interrupted,
    /// It took too long.
    TimedOut,
    /// It did something wrong; goes on from "the program".
    Broken(String),
}

/// What comes from standard output.
#[derive(Debug)]
enum Heard {
    Line(Vec<u8>),
    TooLong,
}

/// An answer, as programs write it.
#[derive(Deserialize)]
struct Answer {
    verdict: String,
    extracted: Option<String>,
    reason: Option<String>,
    /// The row that it is for, where the program says it.
    row: Option<u64>,
}

impl Talk {
    pub(super) fn start(program: &Program) -> Result<Self, String> {
        let started = program.start()?;
        let (questions, inbox) = channel::<String>();
        let (sender, answers) = sync_channel(AHEAD);
        let mut input = started.input;
        std::thread::spawn(move || {
            for line in inbox {
                if input.write_all(line.as_bytes()).is_err() {
                    // It reads nothing more; what becomes of it is seen at its output.
                    return;
                }
            }
        });
        let output = started.output;
        std::thread::spawn(move || listen(output, &sender));
        Ok(Self {
            process: started.process,
            questions: Some(questions),
            answers,
            is_fresh: true,
            looked: Instant::now(),
        })
    }

    /// Whether it has not answered yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Whether it has ended since its last answer.
    pub(super) fn is_over(&mut self) -> bool {
        self.process.has_ended()
    }

    /// Asks a question and waits for the answer.
    pub(super) fn ask(
        &mut self,
        row: usize,
        line: String,
        limits: &Limits,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Opinion, Miss> {
        if let Ok(heard) = self.answers.try_recv() {
            let what = match heard {
                Heard::Line(line) => {
                    format!("wrote a line that nobody asked for: {}", shown(&line))
                }
                Heard::TooLong => "wrote a line that nobody asked for".to_owned(),
            };
            return Err(Miss::Broken(what));
        }
        // One that answers at once is not waited for, and must be looked at for all that.
        if self.looked.elapsed() > TICK {
            self.look_at_memory(limits)?;
        }
        // A thread that is gone is noticed at the output.
        if let Some(questions) = &self.questions {
            let _ = questions.send(line);
        }
        let line = self.wait(limits, is_cancelled)?;
        self.is_fresh = false;
        read(&line, row).map_err(Miss::Broken)
    }

    fn wait(&mut self, limits: &Limits, is_cancelled: &dyn Fn() -> bool) -> Result<Vec<u8>, Miss> {
        let start = Instant::now();
        let limit = if self.is_fresh {
            limits.time + limits.start
        } else {
            limits.time
        };
        loop {
            match self.answers.recv_timeout(TICK) {
                Ok(Heard::Line(line)) => return Ok(line),
                Ok(Heard::TooLong) => {
                    let what = format!("wrote a line of more than {} MB", LONGEST >> 20);
                    return Err(Miss::Broken(what));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Miss::Broken(self.ended())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if is_cancelled() {
                return Err(Miss::Interrupted);
            }
            self.look_at_memory(limits)?;
            if start.elapsed() > limit {
                return Err(Miss::TimedOut);
            }
        }
    }

    fn look_at_memory(&mut self, limits: &Limits) -> Result<(), Miss> {
        self.looked = Instant::now();
        let memory = self.process.check_memory(limits.memory_mb);
        memory.map_err(Miss::Broken)
    }

    /// What there is to say about a program that has closed its output.
    fn ended(&mut self) -> String {
        let begun = Instant::now();
        while !self.process.has_ended() && begun.elapsed() < LAST_BREATH {
            std::thread::sleep(END_TICK);
        }
        if !self.process.has_ended() {
            return "closed its standard output".to_owned();
        }
        let how = self.process.end().and_then(failure);
        how.unwrap_or_else(|| "ended".to_owned()) + " before it answered"
    }

    /// Kills it with all that it started.
    pub(super) fn kill(&mut self) {
        self.questions = None;
        self.process.end();
    }

    /// The last lines of standard error, once it is over.
    pub(super) fn log(&self) -> Vec<String> {
        self.process.log()
    }

    /// Lets programs end by themselves for a moment.
    pub(super) fn end_all(mut talks: Vec<Self>) {
        for talk in &mut talks {
            talk.questions = None;
        }
        let begun = Instant::now();
        while begun.elapsed() < LAST_BREATH && talks.iter().any(|talk| !talk.process.has_ended()) {
            std::thread::sleep(END_TICK);
        }
    }
}

/// Reads lines until the output ends or one is too long.
fn listen(output: impl Read, sender: &SyncSender<Heard>) {
    let mut reader = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(LONGEST + 1)
            .read_until(b'\n', &mut line);
        let heard = match read {
            Ok(0) | Err(_) => return,
            Ok(_) if line.len() as u64 > LONGEST => Heard::TooLong,
            Ok(_) => Heard::Line(line),
        };
        let is_over = matches!(heard, Heard::TooLong);
        // Nobody listens any more when the program was given up.
        if sender.send(heard).is_err() || is_over {
            return;
        }
    }
}

/// Reads an answer. An error goes on from "the program".
fn read(line: &[u8], row: usize) -> Result<Opinion, String> {
    let answer: Answer = serde_json::from_slice(line).map_err(|error| {
        format!(
            "wrote a line that is no verdict: {} ({error}); a line is an object with `verdict`. Print messages to standard error",
            shown(line)
        )
    })?;
    if let Some(other) = answer.row.filter(|other| *other != row as u64) {
        return Err(format!(
            "answered row {other} when it was asked for row {row}"
        ));
    }
    let outcome = Outcome::ALL
        .into_iter()
        .find(|outcome| outcome.as_str() == answer.verdict)
        .ok_or_else(|| {
            let known: Vec<&str> = Outcome::ALL.iter().map(|known| known.as_str()).collect();
            let known = known.join(", ");
            format!("wrote the verdict {:?}; there are {known}", answer.verdict)
        })?;
    let reason = answer.reason.map_or_else(
        || "the program says so".to_owned(),
        |reason| reason.chars().take(REASON).collect(),
    );
    Ok(Opinion {
        extracted: answer.extracted,
        ..Opinion::new(outcome, reason)
    })
}

/// The start of a line.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let start: String = text.trim_end().chars().take(SHOWN).collect();
    format!("{start:?}")
}
