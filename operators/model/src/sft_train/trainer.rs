//! The loop of an `sft-train` stage.

use std::path::{Path, PathBuf};
use std::time::Instant;

use engine_core::event::StageEvent;
use engine_core::policy::{Loss, TrainSequence, WeightSet};
use engine_core::{OperatorError, Policy, StageIo};
use serde::{Deserialize, Serialize};

use super::config::{Keep, SftTrain};
use super::evaluation::{Accuracy, Evaluator, FIGURES};
use super::sequences::Example;
use crate::advantage::token_mean_weight;
use crate::alarms::AlarmState;
use crate::checkpoint::{self, Carried, share_files};
use crate::epoch_order::EpochOrder;
use crate::metric_rows::record_step;
use crate::processor::PromptEncoder;
use crate::prompt_rows::PromptRow;
use crate::sampling::check_cancelled;
use crate::update::{Labelled, StepOutcome, StepPlan, optimizer_step};

/// Figures of each step, as the `metrics` table names them. `tokens` are those that carry loss, and `target_share` is their share
/// of all tokens of the step, among which there is no padding.
pub(super) const STEP_FIGURES: [&str; 5] = [
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "target_share",
];

/// The folder of the best model among the files of a checkpoint.
pub(super) const BEST: &str = "best";

/// The folders of what is saved.
const MODEL: &str = "model";
const ADAPTER: &str = "adapter";

/// What lives through the steps.
pub(super) struct Trainer<'a> {
    pub(super) config: &'a SftTrain,
    pub(super) encoder: PromptEncoder,
    pub(super) policy: Box<dyn Policy>,
    pub(super) order: EpochOrder,
    pub(super) examples: &'a [Example],
    /// Optimizer steps in all.
    pub(super) steps: u64,
    /// Visits of examples in all.
    pub(super) visits: u64,
    pub(super) evaluator: Option<Evaluator<'a>>,
    /// Where the model of the best evaluation is, as it was saved.
    pub(super) best: Option<PathBuf>,
    pub(super) carried: Carried<Standing>,
}

/// What is known of the steps so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Standing {
    alarms: AlarmState,
    best: Option<Best>,
    /// Evaluations since the best one.
    since_best: u32,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    step: u64,
    accuracy: Accuracy,
}

impl Trainer<'_> {
    /// Takes all steps behind the first `done`, or those up to an early stop.
    pub(super) fn train(&mut self, done: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        self.carried.own.alarms.take_up(&self.config.alarms, io)?;
        let mut step = done;
        while step < self.steps && !self.is_stopped(step, io) {
            step += 1;
            check_cancelled(io)?;
            self.step(step, io)?;
            self.end_step(step, io)?;
        }
        Ok(())
    }

    /// Whether the last evaluations say that more steps do not help.
    fn is_stopped(&self, step: u64, io: &dyn StageIo) -> bool {
        let Standing {
            best, since_best, ..
        } = &self.carried.own;
        let (Some(limit), Some(best)) = (self.config.stop_after, best) else {
            return false;
        };
        if *since_best < limit {
            return false;
        }
        io.event(StageEvent::Note(format!(
            "stopped after step {step}: no evaluation was better than that of step {} ({:.1} %)",
            best.step,
            best.accuracy.share() * 100.0
        )));
        true
    }

    /// Learns from the next examples, evaluates if it is time, and records the step.
    fn step(&mut self, step: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let started = Instant::now();
        let (outcome, learning_rate, tokens) = self.learn(step, io)?;
        let seconds = started.elapsed().as_secs_f64();
        let targets = outcome.report.tokens as f64;
        let figures = [
            outcome.report.loss,
            learning_rate,
            outcome.grad_norm,
            targets,
            targets / tokens.max(1) as f64,
        ];
        let mut figures: Vec<(&str, f64)> = STEP_FIGURES.into_iter().zip(figures).collect();
        let gib = f64::from(1_u32 << 30);
        let mut live = vec![
            ("time/update_s", seconds),
            ("tokens_per_s", tokens as f64 / seconds),
            ("memory_peak_gib", self.policy.peak_memory() as f64 / gib),
        ];
        self.carried.tokens += outcome.report.tokens as u64;
        self.carried.note = format!("loss {:.3}", outcome.report.loss);
        if let Some(evaluated) = self.evaluate(step, io)? {
            figures.extend(FIGURES.into_iter().zip(evaluated));
            live.push(("time/evaluate_s", started.elapsed().as_secs_f64() - seconds));
        }
        record_step(step, &figures, &live, io)?;
        let alarms = &self.config.alarms;
        self.carried.own.alarms.observe(alarms, step, &figures, io);
        Ok(())
    }

    fn learn(
        &mut self,
        step: u64,
        io: &dyn StageIo,
    ) -> Result<(StepOutcome, f64, usize), OperatorError> {
        let per_step = u64::from(self.config.sequences_per_step);
        let start = (step - 1) * per_step;
        let examples = self.examples;
        let batch: Vec<&Example> = (start..self.visits.min(start + per_step))
            .map(|position| &examples[self.order.at(position)])
            .collect();
        let tokens = batch.iter().map(|example| example.tokens()).sum();
        let labelled = labelled(&batch, &mut self.encoder, io)?;
        let plan = StepPlan {
            step,
            loss: Loss::CrossEntropy,
            learning_rate: self.config.learning_rate(self.steps).at(step - 1),
        };
        let outcome = optimizer_step(&mut *self.policy, labelled, &plan, io)?;
        Ok((outcome, plan.learning_rate, tokens))
    }

    /// Evaluates if it is time, and keeps the model if it is the best so far.
    fn evaluate(
        &mut self,
        step: u64,
        io: &mut dyn StageIo,
    ) -> Result<Option<[f64; FIGURES.len()]>, OperatorError> {
        let steps = self.steps;
        if !self
            .evaluator
            .as_ref()
            .is_some_and(|evaluator| evaluator.is_due(step, steps))
        {
            return Ok(None);
        }
        self.use_weights(WeightSet::Averaged)?;
        let Some(evaluator) = &self.evaluator else {
            return Ok(None);
        };
        let (accuracy, figures) = evaluator.evaluate(&mut *self.policy, &self.encoder, step, io)?;
        self.use_weights(WeightSet::Current)?;
        let note = format!(", accuracy {:.1} %", accuracy.share() * 100.0);
        self.carried.note.push_str(&note);
        let standing = &mut self.carried.own;
        let is_better = standing
            .best
            .is_none_or(|best| accuracy.is_better_than(best.accuracy));
        if is_better {
            standing.best = Some(Best { step, accuracy });
            standing.since_best = 0;
            if self.config.keep == Keep::Best {
                self.keep_best(step, io)?;
            }
        } else {
            standing.since_best += 1;
        }
        Ok(Some(figures))
    }

    fn keep_best(&mut self, step: u64, io: &dyn StageIo) -> Result<(), OperatorError> {
        let folder = io.scratch().join(format!("best-{step}"));
        self.save(&folder)?;
        if let Some(before) = self.best.replace(folder) {
            // What is left of it is removed with the scratch folder.
            let _ = std::fs::remove_dir_all(before);
        }
        Ok(())
    }

    /// Writes a checkpoint if it is time for one, and ends the stage where an alarm says so.
    fn end_step(&mut self, step: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let best = self.best.clone();
        let mut write_files = |folder: &Path| match &best {
            Some(best) => share_files(best, &folder.join(BEST)),
            None => Ok(()),
        };
        let (policy, carried) = (&*self.policy, &self.carried);
        if let Some(error) = carried.own.alarms.stop(&self.config.alarms) {
            checkpoint::save_now(policy, step, carried, &mut write_files, io)?;
            return Err(error);
        }
        checkpoint::end_step_with_files(policy, step, self.steps, carried, &mut write_files, io)
    }

    /// Writes the models.
    pub(super) fn finish(mut self, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let last = io.scratch().join("last");
        self.save(&last)?;
        let kept = match (self.config.keep, self.best.take()) {
            (Keep::Last, _) => last,
            (Keep::Best, Some(best)) => {
                io.write_model("last", &last.join(MODEL))?;
                best
            }
            (Keep::Best, None) => {
                let message = "the model of the best evaluation is not there";
                return Err(OperatorError::Internal(message.to_owned()));
            }
        };
        io.write_model("model", &kept.join(MODEL))?;
        if self.config.lora.is_some() {
            io.write_model("adapter", &kept.join(ADAPTER))?;
        }
        Ok(())
    }

    /// Saves what is to be used of the weights: their average where there is one, and the adapters beside them.
    fn save(&mut self, folder: &Path) -> Result<(), OperatorError> {
        self.use_weights(WeightSet::Averaged)?;
        self.policy.save(&folder.join(MODEL))?;
        if self.config.lora.is_some() {
            self.policy.save_adapter(&folder.join(ADAPTER))?;
        }
        self.use_weights(WeightSet::Current)
    }

    /// Takes a set of weights, where there is more than one.
    fn use_weights(&mut self, weights: WeightSet) -> Result<(), OperatorError> {
        if self.config.averaging.is_some() {
            self.policy.use_weights(weights)?;
        }
        Ok(())
    }
}

/// The sequences of a step, each token weighted so that the loss is the mean over the tokens of the step that carry loss.
fn labelled(
    batch: &[&Example],
    encoder: &mut PromptEncoder,
    io: &dyn StageIo,
) -> Result<Vec<Labelled>, OperatorError> {
    let prompts: Vec<&PromptRow> = batch.iter().map(|example| &example.prompt).collect();
    let weight = token_mean_weight(batch.iter().map(|example| example.targets()).sum());
    let sequences = batch
        .iter()
        .zip(encoder.encode(&prompts, io)?)
        .map(|(example, prompt)| Labelled {
            prompt_id: example.prompt.prompt_id.clone(),
            sequence: TrainSequence {
                prompt,
                completion: example.completion.clone(),
                loss_mask: example.loss_mask.clone(),
                token_weight: weight,
                ..TrainSequence::default()
            },
        });
    Ok(sequences.collect())
}
