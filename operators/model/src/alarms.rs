//! Alarms of training stages: bounds of metrics that a pipeline declares, and what happens when they are broken.
//!
//! They cannot change what a stage that comes to its end gives, so they are no part of its key: after a stop, a changed alarm goes
//! on from the checkpoint that the stop left.

use std::collections::BTreeMap;

use engine_core::event::StageEvent;
use engine_core::{OperatorError, StageView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;

/// Values that a message shows.
const SHOWN_VALUES: usize = 8;

/// A bound of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Alarm {
    /// Name of the metric, as in the `metrics` table.
    pub metric: String,
    /// It goes off above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// It goes off below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Steps in a row that must break the bound; a step without the metric neither counts nor breaks the row. Default 1.
    #[serde(rename = "for", default = "one")]
    pub steps: u32,
    /// What then happens.
    pub then: Action,
}

/// What an alarm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A warning in the run's record, once for each row of steps.
    Warn,
    /// The stage ends with an error after the step. What it recorded is kept, and it can go on from there.
    Stop,
}

fn one() -> u32 {
    1
}

impl Alarm {
    /// The bound in words; alarms with the same words are the same alarm.
    fn words(&self) -> String {
        match (self.above, self.below) {
            (Some(above), _) => format!("`{}` above {above}", self.metric),
            (None, below) => format!("`{}` below {}", self.metric, below.unwrap_or_default()),
        }
    }

    fn is_broken_by(&self, value: f64) -> bool {
        self.above.is_some_and(|bound| value > bound)
            || self.below.is_some_and(|bound| value < bound)
    }
}

/// Collects what is wrong with alarms. `metrics` are the names that the stage has.
pub(crate) fn check(alarms: &[Alarm], metrics: &[String], faults: &mut ValueFaults) {
    for (place, alarm) in alarms.iter().enumerate() {
        let name = &alarm.metric;
        let mut fault = |key: &str, message: String| {
            faults.within("alarms", |faults| {
                faults.nested(&place.to_string(), key, message);
            });
        };
        if !metrics.contains(name) {
            let message = format!(
                "no metric `{name}` for an alarm; this stage has {}",
                metrics.join(", ")
            );
            fault("metric", message);
        }
        let bounds = [("above", alarm.above), ("below", alarm.below)];
        let given: Vec<(&str, f64)> = (bounds.into_iter())
            .filter_map(|(key, bound)| Some((key, bound?)))
            .collect();
        match given[..] {
            [(_, bound)] if bound.is_finite() => {}
            [(key, bound)] => {
                let message = format!("the bound {bound} of the alarm on `{name}` is no number");
                fault(key, message);
            }
            [] => fault(
                "metric",
                format!("the alarm on `{name}` has no bound: give it `above` or `below`"),
            ),
            _ => fault(
                "below",
                format!(
                    "the alarm on `{name}` has both `above` and `below`: write two alarms for two bounds"
                ),
            ),
        }
        if alarm.steps == 0 {
            fault(
                "for",
                format!("`for` of the alarm on `{name}` is 0 and must be at least 1"),
            );
        }
    }
}

/// How far alarms are; a part of a stage's checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AlarmState {
    /// Alarms, in words, whose bound is broken.
    broken: BTreeMap<String, Streak>,
    /// Warnings so far: a run that goes on from a checkpoint has them too.
    warned: Vec<String>,
}

/// Steps in a row that broke a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Streak {
    steps: u32,
    last_step: u64,
    /// The last values as text.
    values: Vec<String>,
}

impl Streak {
    fn add(&mut self, step: u64, value: f64) {
        self.steps += 1;
        self.last_step = step;
        self.values.push(format!("{value:.4}"));
        if self.values.len() > SHOWN_VALUES {
            self.values.remove(0);
        }
    }

    fn tell(&self, words: &str) -> String {
        let steps = match self.steps {
            1 => format!("at step {}", self.last_step),
            steps => format!("for {steps} steps, up to step {}", self.last_step),
        };
        let more = if self.values.len() < self.steps as usize {
            "..., "
        } else {
            ""
        };
        format!("alarm: {words} {steps}: {more}{}", self.values.join(", "))
    }
}

impl AlarmState {
    /// Takes up a checkpoint: tells the warnings of earlier steps again.
    ///
    /// # Errors
    /// When an alarm that stops was going off there.
    pub(crate) fn take_up(
        &self,
        alarms: &[Alarm],
        view: &dyn StageView,
    ) -> Result<(), OperatorError> {
        for warning in &self.warned {
            view.event(StageEvent::Warning(warning.clone()));
        }
        match self.stop(alarms) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Looks at the numbers of a step and tells what it has to. Afterwards [`Self::stop`] says whether the stage is to end.
    pub(crate) fn observe<Name: AsRef<str>>(
        &mut self,
        alarms: &[Alarm],
        step: u64,
        figures: &[(Name, f64)],
        view: &dyn StageView,
    ) {
        for alarm in alarms {
            let named = |(name, _): &&(Name, f64)| name.as_ref() == alarm.metric;
            let Some((_, value)) = figures.iter().find(named) else {
                continue;
            };
            let words = alarm.words();
            if !alarm.is_broken_by(*value) {
                self.broken.remove(&words);
                continue;
            }
            let streak = self.broken.entry(words.clone()).or_default();
            // Two alarms may share a bound and differ in what they do.
            if streak.last_step != step {
                streak.add(step, *value);
            }
            if alarm.then == Action::Warn && streak.steps == alarm.steps {
                let warning = streak.tell(&words);
                self.warn(warning, view);
            }
        }
    }

    /// Warns, now and when the stage goes on from a checkpoint.
    pub(crate) fn warn(&mut self, warning: String, view: &dyn StageView) {
        view.event(StageEvent::Warning(warning.clone()));
        self.warned.push(warning);
    }

    /// The error that the stage ends with, if an alarm says so.
    pub(crate) fn stop(&self, alarms: &[Alarm]) -> Option<OperatorError> {
        let stops = alarms.iter().filter(|alarm| alarm.then == Action::Stop);
        stops.into_iter().find_map(|alarm| {
            let words = alarm.words();
            let streak = self.broken.get(&words)?;
            (streak.steps >= alarm.steps).then(|| {
                OperatorError::Data(format!(
                    "{}; to go on from here, change or remove the alarm and run again",
                    streak.tell(&words)
                ))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::MemoryIo;

    fn alarm(above: Option<f64>, below: Option<f64>, steps: u32, then: Action) -> Alarm {
        Alarm {
            metric: "entropy".to_owned(),
            above,
            below,
            steps,
            then,
        }
    }

    fn observe(state: &mut AlarmState, alarms: &[Alarm], io: &MemoryIo, values: &[Option<f64>]) {
        for (step, value) in values.iter().enumerate() {
            let figures: Vec<(&str, f64)> =
                value.map(|value| ("entropy", value)).into_iter().collect();
            state.observe(alarms, step as u64 + 1, &figures, io);
        }
    }

    #[test]
    fn it_goes_off_once_for_each_row_of_steps_that_is_long_enough() {
        let alarms = [alarm(None, Some(0.5), 2, Action::Warn)];
        let (mut state, io) = (AlarmState::default(), MemoryIo::new());
        let values = [0.4, 0.6, 0.4, 0.3, 0.2, 0.7, 0.1, 0.1].map(Some);
        observe(&mut state, &alarms, &io, &values);
        assert_eq!(
            io.warnings(),
            [
                "alarm: `entropy` below 0.5 for 2 steps, up to step 4: 0.4000, 0.3000",
                "alarm: `entropy` below 0.5 for 2 steps, up to step 8: 0.1000, 0.1000"
            ]
        );
        assert!(state.stop(&alarms).is_none());
        // A run that goes on from a checkpoint has the same warnings.
        let again = MemoryIo::new();
        state.take_up(&alarms, &again).unwrap();
        assert_eq!(again.warnings(), io.warnings());
    }

    #[test]
    fn a_step_without_the_metric_neither_counts_nor_breaks_the_row() {
        let alarms = [alarm(Some(0.5), None, 2, Action::Stop)];
        let (mut state, io) = (AlarmState::default(), MemoryIo::new());
        observe(&mut state, &alarms, &io, &[Some(0.6), None]);
        assert!(state.stop(&alarms).is_none());
        observe(&mut state, &alarms, &io, &[None, None, Some(0.9)]);
        let error = state.stop(&alarms).unwrap().to_string();
        assert!(
            error.contains("`entropy` above 0.5 for 2 steps, up to step 3: 0.6000, 0.9000"),
            "{error}"
        );
        assert!(state.take_up(&alarms, &io).is_err());
        // Loosened, it lets the stage go on.
        let loose = [alarm(Some(0.5), None, 3, Action::Stop)];
        assert!(state.take_up(&loose, &io).is_ok());
    }

    #[test]
    fn a_bound_itself_is_not_broken() {
        let alarms = [alarm(None, Some(0.5), 1, Action::Stop)];
        let (mut state, io) = (AlarmState::default(), MemoryIo::new());
        observe(&mut state, &alarms, &io, &[Some(0.5)]);
        assert!(state.stop(&alarms).is_none());
    }

    #[test]
    fn unknown_metrics_and_wrong_bounds_are_refused_with_the_list() {
        let metrics = ["entropy".to_owned(), "loss".to_owned()];
        let mut faults = ValueFaults::default();
        let unknown = Alarm {
            metric: "entropie".to_owned(),
            ..alarm(Some(1.0), None, 1, Action::Warn)
        };
        let wrong = [
            unknown,
            alarm(None, None, 1, Action::Warn),
            alarm(Some(1.0), Some(0.0), 1, Action::Warn),
            alarm(Some(f64::NAN), None, 0, Action::Warn),
            alarm(Some(1.0), None, 1, Action::Warn),
        ];
        check(&wrong, &metrics, &mut faults);
        let faults = faults.or(&[], ()).unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(messages.len(), 5, "{messages:?}");
        assert!(messages[0].contains("entropie") && messages[0].contains("entropy, loss"));
        assert!(messages[1].contains("no bound"));
        assert!(messages[2].contains("both `above` and `below`"));
        let paths: Vec<String> = faults.iter().map(|fault| fault.path.join("/")).collect();
        assert_eq!(
            (paths[0].as_str(), paths[2].as_str()),
            ("alarms/0/metric", "alarms/2/below")
        );
        assert!(messages[3].contains("no number") && messages[4].contains("at least 1"));
    }
}
