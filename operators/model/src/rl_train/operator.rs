//! The loop of an `rl-train` stage.

use std::sync::Arc;
use std::time::Instant;

use engine_core::event::StageEvent;
use engine_core::operator::Family;
use engine_core::policy::{GenerationProgress, LoadOptions, TokenizedPrompt, TrainSequence};
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, Policy,
    PortType, PortTypes, Ports, StageContext, StageIo, seed,
};
use schemas::TableName;

use super::config::RlTrain;
use super::record::{Origin, Updates, mean_reward, rollout_batch, rollouts_schema, step_metrics};
use super::step::{Judged, compare_within_groups, judge, minibatches};
use crate::checkpoint::{self, Carried};
use crate::epoch_order::EpochOrder;
use crate::metric_rows::metric_rows;
use crate::optimizer::train_options;
use crate::processor::PromptEncoder;
use crate::prompt_rows::{PromptRow, read_prompts};
use crate::rollout::model_digest;
use crate::sampling::{
    Asked, Sampled, SamplingPlan, check_cancelled, interruption, load_encoder, progress,
    sample_prompts,
};
use crate::schedule::learning_rate;
use crate::update::{Labelled, StepPlan, optimizer_step};

/// Prompts named in a warning.
const NAMED_PROMPTS: usize = 8;

impl OperatorKind for RlTrain {
    const KIND: &'static str = "rl-train";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "trains a model with rewards from verified answers (GRPO)";
}

impl OperatorConfig for RlTrain {
    fn ports(&self) -> Ports {
        let prompts = InputType::columns(TableName::Prompts, &["prompt_id", "messages", "answer"]);
        let inputs = vec![
            InputPort::new("prompts", prompts),
            InputPort::new("model", InputType::Model),
        ];
        Ports::new(inputs, &["model", "metrics", "rollouts"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let rollouts = PortType::Table {
            table: TableName::Rollouts,
            schema: rollouts_schema(),
        };
        Ok(PortTypes::from([
            ("model".to_owned(), vec![PortType::Model]),
            (
                "metrics".to_owned(),
                vec![PortType::table(TableName::Metrics)],
            ),
            ("rollouts".to_owned(), vec![rollouts]),
        ]))
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let rows = self.read(io)?;
        let folder = io.model_folder("model")?;
        let training = train_options(
            &self.adamw,
            self.weight_decay,
            self.max_grad_norm,
            &self.freeze,
        );
        let options = LoadOptions {
            precision: self.precision,
            training: Some(training),
        };
        let mut policy = context.backend()?.load(&folder, &options)?;
        let steps = u64::from(self.steps);
        let (done, carried) = checkpoint::resume(&mut *policy, steps, io)?;
        let mut trainer = Trainer {
            config: self,
            encoder: load_encoder(&folder)?,
            policy,
            order: EpochOrder::new(seed::derive(context.seed, "prompts"), rows.len()),
            rows: &rows,
            model: model_digest(io, "model")?,
            seed: context.seed,
            carried,
        };
        for step in done + 1..=steps {
            check_cancelled(io)?;
            trainer.step(step, io)?;
            checkpoint::end_step(&*trainer.policy, step, steps, &trainer.carried, io)?;
        }
        let saved = io.scratch().join("model");
        trainer.policy.save(&saved)?;
        io.write_model("model", &saved)
    }
}

impl RlTrain {
    fn read(&self, io: &dyn StageIo) -> Result<Vec<PromptRow>, OperatorError> {
        let rows = read_prompts(io, "prompts")?;
        let mut unparsed = Vec::new();
        for row in &rows {
            if let Err(error) = self.verify.check_gold(row.gold()?) {
                unparsed.push(format!("{} ({error})", row.prompt_id));
            }
        }
        if !unparsed.is_empty() {
            let shown = unparsed
                .iter()
                .take(NAMED_PROMPTS)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let message = format!(
                "{} prompts have an answer that nothing can equal and are never rewarded: {shown}",
                unparsed.len()
            );
            io.event(StageEvent::Warning(message));
        }
        if rows.len() < self.prompts_per_step as usize {
            let message = format!(
                "{} prompts are fewer than `prompts-per-step: {}`",
                rows.len(),
                self.prompts_per_step
            );
            return Err(OperatorError::Data(message));
        }
        Ok(rows)
    }
}

/// What lives through the steps.
struct Trainer<'a> {
    config: &'a RlTrain,
    encoder: PromptEncoder,
    policy: Box<dyn Policy>,
    order: EpochOrder,
    rows: &'a [PromptRow],
    /// Digest of the model that training started from.
    model: String,
    seed: u64,
    carried: Carried,
}

/// One step, before it is taken.
struct StepContext<'a> {
    /// Counted from 1.
    number: u64,
    /// Seed of the sampler.
    seed: u64,
    learning_rate: f64,
    rows: &'a [&'a PromptRow],
    prompts: &'a [Arc<TokenizedPrompt>],
}

impl<'a> Trainer<'a> {
    /// Sample, verify, score, compare, update, record.
    fn step(&mut self, number: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let started = Instant::now();
        let rows = self.prompts_of(number);
        let prompts = self.encoder.encode(&rows, io)?;
        let step = StepContext {
            number,
            seed: seed::derive(self.seed, &format!("step {number}")),
            learning_rate: self.learning_rate(number),
            rows: &rows,
            prompts: &prompts,
        };
        let mut judged = self.sample_and_judge(&step, io)?;
        let groups = compare_within_groups(&mut judged, self.config.samples as usize);
        let sampled = Instant::now();
        let updates = self.update(&step, &judged, io)?;
        tracing::debug!(
            step = number,
            sample_ms = (sampled - started).as_millis(),
            update_ms = sampled.elapsed().as_millis(),
            groups_kept = groups.kept,
            "rl step"
        );
        let origin = Origin {
            step: number,
            model: &self.model,
            seed: step.seed,
        };
        io.write("rollouts", rollout_batch(origin, &rows, &prompts, &judged)?)?;
        let figures = step_metrics(&judged, groups, &updates, step.learning_rate);
        io.write("metrics", metric_rows(number, &figures)?)?;
        self.carried.note = mean_reward(&judged)
            .map(|reward| format!("reward {reward:.2}"))
            .unwrap_or_default();
        Ok(())
    }

    /// The prompts of a step: the next ones of the epoch's order. What is left at the end of an epoch is skipped, so
    /// that no prompt occurs twice in a step.
    fn prompts_of(&mut self, step: u64) -> Vec<&'a PromptRow> {
        let count = self.config.prompts_per_step as usize;
        let steps_per_epoch = (self.rows.len() / count) as u64;
        let start = ((step - 1) % steps_per_epoch) as usize * count;
        let order = self.order.epoch((step - 1) / steps_per_epoch);
        let rows: &'a [PromptRow] = self.rows;
        order[start..start + count]
            .iter()
            .map(|index| &rows[*index])
            .collect()
    }

    fn sample_and_judge(
        &mut self,
        step: &StepContext<'_>,
        io: &dyn StageIo,
    ) -> Result<Vec<Judged>, OperatorError> {
        let config = self.config;
        let plan = SamplingPlan {
            temperature: config.temperature,
            keys: config.keys(),
            max_new_tokens: config.max_new_tokens,
            max_concurrent: config.max_concurrent,
            seed: step.seed,
            exact_ranges: false,
        };
        let (carried, total) = (self.carried.clone(), u64::from(config.steps));
        let mut tell = |reached: GenerationProgress| {
            io.event(progress(
                "steps",
                step.number - 1,
                total,
                carried.tokens + reached.tokens as u64,
                carried.note.clone(),
            ));
        };
        let asked: Vec<Asked<'_>> = step
            .rows
            .iter()
            .zip(step.prompts)
            .map(|(row, prompt)| Asked {
                row,
                prompt: Arc::clone(prompt),
            })
            .collect();
        let samples = 0..config.samples;
        let sampled: Vec<Sampled> = sample_prompts(
            &mut *self.policy,
            self.encoder.processor(),
            &asked,
            std::slice::from_ref(&samples),
            &plan,
            io,
            &mut tell,
        )?
        .into_iter()
        .flatten()
        .collect();
        self.carried.tokens += sampled
            .iter()
            .map(|rollout| rollout.completion.token_ids.len() as u64)
            .sum::<u64>();
        let judged = judge(step.rows, sampled, &config.verify, &config.score)?;
        let unusable = judged
            .iter()
            .filter(|rollout| rollout.reward.is_none())
            .count();
        if unusable as f64 > config.max_unusable * judged.len() as f64 {
            return Err(OperatorError::Data(format!(
                "step {}: {unusable} of {} answers have no usable verdict, more than `max-unusable: {}` allows",
                step.number,
                judged.len(),
                config.max_unusable
            )));
        }
        Ok(judged)
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let config = self.config;
        let (warmup, steps) = (u64::from(config.warmup_steps), u64::from(config.steps));
        learning_rate(
            config.schedule,
            config.learning_rate,
            warmup,
            steps,
            step - 1,
        )
    }

    /// Learns from the rollouts that have an advantage; without any, the weights stay as they are.
    fn update(
        &mut self,
        step: &StepContext<'_>,
        judged: &[Judged],
        io: &dyn StageIo,
    ) -> Result<Updates, OperatorError> {
        let config = self.config;
        let mut batches = minibatches(
            judged,
            step.rows,
            step.prompts,
            config.updates_per_rollout as usize,
            step.seed,
        );
        if config.temperature != 1.0 || config.min_new_tokens > 0 {
            // The sampler's probabilities are those of changed logits; ratios need the ones that are trained.
            for batch in &mut batches {
                self.recompute_logprobs(batch)?;
            }
        }
        let mut updates = Updates::default();
        for batch in batches {
            let plan = StepPlan {
                step: step.number,
                loss: config.loss(),
                learning_rate: step.learning_rate,
            };
            let outcome = optimizer_step(&mut *self.policy, batch, &plan, io)?;
            updates.count += 1;
            updates.report.add(&outcome.report);
            updates.grad_norm = updates.grad_norm.max(outcome.grad_norm);
        }
        Ok(updates)
    }

    fn recompute_logprobs(&mut self, batch: &mut [Labelled]) -> Result<(), OperatorError> {
        let sequences: Vec<TrainSequence> = batch
            .iter()
            .map(|labelled| labelled.sequence.clone())
            .collect();
        let logprobs = self.policy.logprobs(&sequences).map_err(interruption)?;
        for (labelled, logprobs) in batch.iter_mut().zip(logprobs) {
            labelled.sequence.sampler_logprobs = logprobs;
        }
        Ok(())
    }
}
