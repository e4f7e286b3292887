//! What a run shows while it goes on: bars on a terminal, plain lines elsewhere. All of it on standard error.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use engine_core::{Progress, StageEvent};
use engine_plan::Plan;
use engine_runtime::{RunEvent, RunObserver};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use schemas::record::{StageRecord, StageStatus};
use serde_json::{Value, json};

use crate::commands::remarks;
use crate::logging::{bars, is_json, json_line, use_colour};
use crate::telemetry::Traces;
use crate::tensorboard::Board;
use crate::text::{count, duration};

/// A stage that runs gets a plain line of progress this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The rate of tokens is taken over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Stages up to which each cached one gets a line.
const CACHED_LINES: usize = 60;

/// All who hear of a run.
pub(crate) struct Observers {
    pub(crate) display: Display,
    pub(crate) traces: Option<Traces>,
    pub(crate) board: Board,
}

impl RunObserver for Observers {
    fn observe(&mut self, event: RunEvent<'_>) {
        self.display.observe(event);
        self.board.observe(event);
        if let Some(traces) = &mut self.traces {
            traces.observe(event);
        }
    }
}

/// Shows a run.
pub(crate) struct Display {
    bars: Option<&'static MultiProgress>,
    is_quiet: bool,
    is_json: bool,
    names: Vec<String>,
    kinds: Vec<&'static str>,
    width: usize,
    running: BTreeMap<usize, RunningStage>,
}

struct RunningStage {
    bar: Option<ProgressBar>,
    begun: Instant,
    last_line: Instant,
    rate: TokenRate,
    /// When the first figure came, and what was done then: parts of earlier runs are no work of this one.
    first: Option<(Instant, u64)>,
}

/// Tokens a second over the last seconds.
struct TokenRate {
    since: Instant,
    tokens: u64,
    rate: Option<f64>,
}

impl TokenRate {
    fn update(&mut self, tokens: u64) -> Option<f64> {
        let elapsed = self.since.elapsed();
        if elapsed >= RATE_WINDOW || (self.rate.is_none() && elapsed >= RATE_WINDOW / 5) {
            let new = tokens.saturating_sub(self.tokens);
            self.rate = Some(new as f64 / elapsed.as_secs_f64());
            (self.since, self.tokens) = (Instant::now(), tokens);
        }
        self.rate.filter(|_| tokens > 0)
    }
}

impl Display {
    pub(crate) fn new(plan: &Plan, is_quiet: bool) -> Self {
        let names: Vec<String> = plan.stages.iter().map(|stage| stage.name.clone()).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let is_json = is_json();
        let has_bars = std::io::stderr().is_terminal() && !is_quiet && !is_json;
        Self {
            bars: has_bars.then(bars),
            is_quiet,
            is_json,
            kinds: plan.stages.iter().map(|stage| stage.kind).collect(),
            names,
            width,
            running: BTreeMap::new(),
        }
    }

    fn say(&self, line: &str) {
        if self.is_json {
            json_line("INFO", line, Value::Null);
            return;
        }
        match self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// A line about a stage that only those want who follow the run.
    fn tell(&self, index: usize, message: &str) {
        if !self.is_quiet {
            self.say_of(index, message, "INFO");
        }
    }

    /// A line about a stage: its place among all and its name in front.
    fn say_of(&self, index: usize, message: &str, level: &str) {
        let total = self.names.len();
        let (place, name) = (index + 1, &self.names[index]);
        if self.is_json {
            let fields = json!({ "stage": name, "operator": self.kinds[index] });
            json_line(level, message, fields);
            return;
        }
        self.say(&format!(
            "[{place:>digits$}/{total}] {name:<width$}  {message}",
            digits = total.to_string().len().max(2),
            width = self.width
        ));
    }

    fn start(&mut self, index: usize) {
        let now = Instant::now();
        let bar = self.bars.map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner().with_style(spinner_style()));
            bar.set_prefix(format!("{:<width$}", self.names[index], width = self.width));
            bar.set_message(self.kinds[index]);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            self.tell(index, &format!("started ({})", self.kinds[index]));
        }
        let rate = TokenRate {
            since: now,
            tokens: 0,
            rate: None,
        };
        self.running.insert(
            index,
            RunningStage {
                bar,
                begun: now,
                last_line: now,
                rate,
                first: None,
            },
        );
    }

    fn progress(&mut self, index: usize, progress: &Progress) {
        let Some(stage) = self.running.get_mut(&index) else {
            return;
        };
        let rate = stage.rate.update(progress.tokens);
        let mut details: Vec<String> = rate
            .map(|rate| format!("{} tokens/s", count(rate.round() as u64)))
            .into_iter()
            .collect();
        let (since, already) = *stage
            .first
            .get_or_insert((stage.begun, reused(progress, stage.begun)));
        if let Some(left) = time_left(progress, already, since.elapsed()) {
            details.push(format!("{} left", duration(left)));
        }
        if !progress.note.is_empty() {
            details.push(progress.note.clone());
        }
        let details = details.join(", ");
        if let Some(bar) = &stage.bar {
            match progress.total {
                Some(total) => {
                    bar.set_style(bar_style());
                    bar.set_length(total);
                    bar.set_position(progress.done);
                    bar.set_message(format!("{} {details}", progress.unit));
                }
                None => bar.set_message(format!(
                    "{} {} {details}",
                    count(progress.done),
                    progress.unit
                )),
            }
        } else if stage.last_line.elapsed() >= LINE_INTERVAL {
            stage.last_line = Instant::now();
            let done = match progress.total {
                Some(total) => format!("{}/{}", count(progress.done), count(total)),
                None => count(progress.done),
            };
            let separator = if details.is_empty() { "" } else { ", " };
            self.tell(
                index,
                &format!("{done} {}{separator}{details}", progress.unit),
            );
        }
    }

    fn end(&mut self, index: usize, record: &StageRecord) {
        if let Some(RunningStage { bar: Some(bar), .. }) = self.running.remove(&index) {
            bar.finish_and_clear();
            if let Some(bars) = self.bars {
                bars.remove(&bar);
            }
        }
        let rows = record
            .rows
            .map(|rows| format!(", {} rows", count(rows)))
            .unwrap_or_default();
        let time = duration(record.seconds);
        match record.status {
            // The closing table lists them; a line for each would bury the stages that ran.
            StageStatus::Skipped | StageStatus::NotSelected => {}
            StageStatus::Cached if self.bars.is_some() || self.names.len() > CACHED_LINES => {}
            StageStatus::Cached => self.tell(index, &format!("cached{rows}")),
            StageStatus::Done => {
                self.tell(index, &format!("done in {time}{rows}{}", remarks(record)));
            }
            StageStatus::Failed => {
                self.say_of(index, &format!("failed after {time}"), "ERROR");
            }
            StageStatus::Interrupted => self.tell(index, "interrupted"),
        }
    }
}

impl RunObserver for Display {
    fn observe(&mut self, event: RunEvent<'_>) {
        match event {
            RunEvent::Started { run } => {
                if self.bars.is_none() && !self.is_quiet {
                    self.say(&format!("run {run}"));
                }
            }
            RunEvent::StageStarted { index, .. } => self.start(index),
            RunEvent::Stage {
                index,
                event: StageEvent::Progress(progress),
            } => self.progress(index, progress),
            RunEvent::Stage {
                index,
                event: StageEvent::Warning(warning),
            } => self.say_of(index, &format!("warning: {warning}"), "WARN"),
            RunEvent::Stage {
                index,
                event: StageEvent::Note(note),
            } => {
                if !self.is_quiet {
                    self.say_of(index, note, "INFO");
                }
            }
            // TensorBoard shows them; the progress line shows what counts most.
            RunEvent::Stage {
                event: StageEvent::Metrics { .. },
                ..
            } => {}
            RunEvent::StageEnded { index, record } => self.end(index, record),
            RunEvent::Stopping => self.say("stopping; once more ends at once"),
            RunEvent::Ended { .. } => {
                if let Some(bars) = self.bars {
                    // The terminal may be gone.
                    let _ = bars.clear();
                }
            }
        }
    }
}

/// What was done when the first figure came at once: it is of an earlier run.
fn reused(progress: &Progress, begun: Instant) -> u64 {
    if begun.elapsed() < Duration::from_secs(1) {
        progress.done
    } else {
        0
    }
}

/// Seconds that are left at the speed so far.
fn time_left(progress: &Progress, already: u64, elapsed: Duration) -> Option<f64> {
    let total = progress.total?;
    let done = progress.done.checked_sub(already)?;
    if done == 0 || progress.done >= total || elapsed < Duration::from_secs(2) {
        return None;
    }
    Some(elapsed.as_secs_f64() / done as f64 * (total - progress.done) as f64)
}

fn spinner_style() -> ProgressStyle {
    let template = if use_colour() {
        "{prefix:.bold} {spinner} {wide_msg}"
    } else {
        "{prefix} {spinner} {wide_msg}"
    };
    ProgressStyle::with_template(template).expect("the template is sound")
}

fn bar_style() -> ProgressStyle {
    let template = if use_colour() {
        "{prefix:.bold} [{bar:24.cyan}] {human_pos}/{human_len} {wide_msg}"
    } else {
        "{prefix} [{bar:24}] {human_pos}/{human_len} {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .expect("the template is sound")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_does_not_count_what_was_there() {
        let progress = Progress {
            done: 80,
            total: Some(100),
            ..Progress::default()
        };
        let elapsed = Duration::from_secs(10);
        assert_eq!(time_left(&progress, 70, elapsed), Some(20.0));
        assert_eq!(time_left(&progress, 0, elapsed), Some(2.5));
        assert_eq!(time_left(&progress, 80, elapsed), None);
    }
}
