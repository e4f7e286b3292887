//! `exec`: a program of the user's own as a verifier.
//!
//! The program is started once and answers line by line, so that a slow start is paid once. A question is a line of JSON with
//! `row`, `prompt_id`, `question`, `gold` (null when there is none) and `text`; the answer is a line with `verdict` (`correct`,
//! `wrong`, `unparsed`, `timed-out` or `failed`) and, if there is more to say, `extracted` and `reason`. A program that hangs is
//! killed with all that it started, and a new one takes the next question.

mod talk;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine_core::{Fault, OperatorError, StageContext, StageView};
use operators_verdict::{FormatRule, Outcome};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::program::{Program, command_faults, number_faults};
use crate::question::Question;
use crate::verifier::Opinion;
use talk::{Miss, Talk};

/// Questions in a row without any answer, of a program that has never answered, after which it is not asked any more.
const HOPELESS: usize = 20;

/// A program that judges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExecOptions {
    /// The program and its arguments. It is started without a shell, in the project folder, with little of the environment:
    /// PATH, HOME, LANG, LC_ALL, LC_CTYPE and TMPDIR. It reads a line of JSON for each answer (`row`, `prompt_id`, `question`,
    /// `gold`, `text`) and writes one for it at once (`verdict`, and if it likes `extracted` and `reason`).
    pub command: Vec<String>,
    /// Files and folders that the program is made of; relative paths start at the project folder. Answers are judged again when
    /// their content changes. What of the project stands in `command` must be among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Names of further environment variables that the program gets. Their values do not count in the key and are kept nowhere,
    /// so they are for secrets and the like, not for settings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Whether a prompt must have a gold answer. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub needs_gold: bool,
    /// Seconds that the program may take for one answer; then it is killed, and the verdict is `timed-out`.
    pub timeout_seconds: u64,
    /// Seconds more for the first answer after a start. Default 60.
    #[serde(default = "start_seconds", skip_serializing_if = "is_start_seconds")]
    pub start_seconds: u64,
    /// Megabytes of memory that the program, with all processes that it starts, may have.
    pub memory_mb: u64,
    /// Copies of the program that judge at the same time. Default 1.
    #[serde(default = "one")]
    pub workers: u32,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn start_seconds() -> u64 {
    60
}

fn is_start_seconds(value: &u64) -> bool {
    *value == start_seconds()
}

fn one() -> u32 {
    1
}

impl ExecOptions {
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = command_faults(&self.command, &self.env);
        faults.extend(number_faults(&[
            ("timeout-seconds", Some(self.timeout_seconds)),
            ("memory-mb", Some(self.memory_mb)),
            ("workers", Some(u64::from(self.workers))),
        ]));
        faults
    }
}

/// The running copies of a program.
#[derive(Debug)]
pub(crate) struct Programs {
    program: Program,
    limits: Limits,
    workers: usize,
    /// Those that wait for questions. Whoever has the lock has the questions.
    idle: Mutex<Vec<Talk>>,
    has_answered: AtomicBool,
    /// Questions in a row without an answer.
    misses: AtomicUsize,
}

/// What a program may use for an answer.
#[derive(Clone, Copy, Debug)]
struct Limits {
    time: Duration,
    start: Duration,
    memory_mb: u64,
}

impl Programs {
    pub(crate) fn new(
        options: &ExecOptions,
        context: &StageContext<'_>,
    ) -> Result<Self, OperatorError> {
        Ok(Self {
            program: Program::new(&options.command, context.root, &options.env)?,
            limits: Limits {
                time: Duration::from_secs(options.timeout_seconds),
                start: Duration::from_secs(options.start_seconds),
                memory_mb: options.memory_mb,
            },
            workers: options.workers as usize,
            idle: Mutex::default(),
            has_answered: AtomicBool::new(false),
            misses: AtomicUsize::new(0),
        })
    }

    /// Judges some of the questions, in the order of their places.
    ///
    /// # Errors
    /// When the program cannot be started or never answers, or the run was asked to stop.
    pub(crate) fn judge(
        &self,
        questions: &[Question<'_>],
        asked: &[usize],
        view: &dyn StageView,
    ) -> Result<Vec<Opinion>, OperatorError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let opinions: Mutex<Vec<Option<Opinion>>> = Mutex::new(vec![None; asked.len()]);
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let work = |talk: Option<Talk>| -> Result<Option<Talk>, OperatorError> {
            let mut talk = talk;
            loop {
                let place = next.fetch_add(1, Ordering::SeqCst);
                if place >= asked.len() || failed.load(Ordering::SeqCst) {
                    return Ok(talk);
                }
                let opinion = self
                    .ask(&mut talk, place, &questions[asked[place]], view)
                    .inspect_err(|_| failed.store(true, Ordering::SeqCst))?;
                opinions.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(opinion);
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.workers.min(asked.len()))
                .map(|_| {
                    let (talk, span) = (idle.pop(), tracing::Span::current());
                    scope.spawn(move || span.in_scope(|| work(talk)))
                })
                .collect();
            let mut result: Result<(), OperatorError> = Ok(());
            for thread in threads {
                match thread.join() {
                    Ok(Ok(talk)) => idle.extend(talk),
                    Ok(Err(error)) => result = result.and(Err(error)),
                    Err(payload) => std::panic::resume_unwind(payload),
                }
            }
            result
        })?;
        let opinions = opinions
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(opinions
            .into_iter()
            .map(|opinion| opinion.expect("every question was asked"))
            .collect())
    }

    /// Asks one question. A program that does not answer it as it should is ended, and unless it had just been started the
    /// question is put to a new one: what came before may be to blame.
    fn ask(
        &self,
        talk: &mut Option<Talk>,
        row: usize,
        question: &Question<'_>,
        view: &dyn StageView,
    ) -> Result<Opinion, OperatorError> {
        let line = line(row, question);
        loop {
            if view.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            if talk.as_mut().is_some_and(Talk::is_over) {
                *talk = None;
            }
            let mut current = match talk.take() {
                Some(talk) => talk,
                None => Talk::start(&self.program).map_err(OperatorError::Data)?,
            };
            let was_fresh = current.is_fresh();
            match current.ask(row, line.clone(), &self.limits, &|| view.is_cancelled()) {
                Ok(opinion) => {
                    self.has_answered.store(true, Ordering::SeqCst);
                    self.misses.store(0, Ordering::SeqCst);
                    *talk = Some(current);
                    return Ok(opinion);
                }
                Err(Miss::Interrupted) => return Err(OperatorError::Interrupted),
                Err(miss) => {
                    current.kill();
                    if was_fresh || matches!(miss, Miss::TimedOut) {
                        return self.missed(&current, miss, question);
                    }
                }
            }
        }
    }

    /// What is said of a question that was not answered.
    fn missed(
        &self,
        talk: &Talk,
        miss: Miss,
        question: &Question<'_>,
    ) -> Result<Opinion, OperatorError> {
        let (outcome, what) = match miss {
            Miss::TimedOut => {
                let seconds = self.limits.time.as_secs();
                let what = format!("did not answer within {seconds} s and was killed");
                (Outcome::TimedOut, what)
            }
            Miss::Broken(what) => (Outcome::Failed, what),
            Miss::Interrupted => return Err(OperatorError::Interrupted),
        };
        let message = self.program.blame(&what, &talk.log());
        let misses = self.misses.fetch_add(1, Ordering::SeqCst) + 1;
        if misses >= HOPELESS && !self.has_answered.load(Ordering::SeqCst) {
            return Err(OperatorError::Data(format!(
                "{misses} answers were given to a verifier that has not judged one; it must write a line for each that it reads, and \
                 flush it at once. Prompt `{}`: {message}",
                question.prompt_id
            )));
        }
        let reason = format!("prompt `{}`: {message}", question.prompt_id);
        Ok(Opinion::new(outcome, reason))
    }
}

/// A question as a program reads it.
fn line(row: usize, question: &Question<'_>) -> String {
    let mut line = json!({
        "row": row,
        "prompt_id": question.prompt_id,
        "question": question.question,
        "gold": question.gold,
        "text": question.text,
    })
    .to_string();
    line.push('\n');
    line
}

impl Drop for Programs {
    /// Programs end by themselves when there is nothing more to read; those that do not are killed.
    fn drop(&mut self) {
        let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        Talk::end_all(std::mem::take(idle));
    }
}

#[cfg(test)]
#[path = "exec/tests.rs"]
mod tests;
