//! What a run shows while it goes on: bars on a terminal, plain lines elsewhere. All of it on standard error.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use engine_core::{Progress, StageEvent};
use engine_plan::Plan;
use engine_runtime::{RunEvent, RunObserver};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use schemas::record::{StageRecord, StageStatus};

use crate::logging::bars;
use crate::text::{count, duration};

/// A stage that runs gets a plain line of progress this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The rate of tokens is taken over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Shows a run.
pub(crate) struct Display {
    bars: Option<&'static MultiProgress>,
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
    pub(crate) fn new(plan: &Plan) -> Self {
        let names: Vec<String> = plan.stages.iter().map(|stage| stage.name.clone()).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        Self {
            bars: std::io::stderr().is_terminal().then(bars),
            kinds: plan.stages.iter().map(|stage| stage.kind).collect(),
            names,
            width,
            running: BTreeMap::new(),
        }
    }

    fn say(&self, line: &str) {
        match self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// A line about a stage: its place among all and its name in front.
    fn say_of(&self, index: usize, message: &str) {
        let total = self.names.len();
        let (place, name) = (index + 1, &self.names[index]);
        self.say(&format!(
            "[{place:>2}/{total}] {name:<width$}  {message}",
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
            self.say_of(index, &format!("started ({})", self.kinds[index]));
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
        if let Some(left) = time_left(progress, stage.begun.elapsed()) {
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
            self.say_of(
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
        match record.status {
            // The closing table lists them; a line for each would bury the stages that ran.
            StageStatus::Skipped => {}
            StageStatus::Cached if self.bars.is_some() => {}
            StageStatus::Cached => self.say_of(index, &format!("cached{rows}")),
            StageStatus::Done => self.say_of(
                index,
                &format!("done in {}{rows}", duration(record.seconds)),
            ),
            StageStatus::Failed => {
                self.say_of(index, &format!("failed after {}", duration(record.seconds)));
            }
            StageStatus::Interrupted => self.say_of(index, "interrupted"),
        }
    }
}

impl RunObserver for Display {
    fn observe(&mut self, event: RunEvent<'_>) {
        match event {
            RunEvent::Started { run } => {
                if self.bars.is_none() {
                    self.say(&format!("run {run}"));
                }
            }
            RunEvent::StageStarted { index } => self.start(index),
            RunEvent::Stage {
                index,
                event: StageEvent::Progress(progress),
            } => self.progress(index, progress),
            RunEvent::Stage {
                index,
                event: StageEvent::Warning(warning),
            } => self.say_of(index, &format!("warning: {warning}")),
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

/// Seconds that are left at the speed so far.
fn time_left(progress: &Progress, elapsed: Duration) -> Option<f64> {
    let total = progress.total?;
    if progress.done == 0 || progress.done >= total || elapsed < Duration::from_secs(2) {
        return None;
    }
    Some(elapsed.as_secs_f64() / progress.done as f64 * (total - progress.done) as f64)
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:.bold} {spinner} {wide_msg}")
        .expect("the template is sound")
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:.bold} [{bar:24}] {human_pos}/{human_len} {wide_msg}")
        .expect("the template is sound")
        .progress_chars("=> ")
}
