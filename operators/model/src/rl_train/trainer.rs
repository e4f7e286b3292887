//! The loop of an `rl-train` stage: sample, verify, score, compare, update, record.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine_core::policy::{LoadOptions, MemoryDemand, WeightSet};
use engine_core::{ModelError, OperatorError, Policy, StageContext, StageIo, seed};
use operators_verifier::Verifier;
use serde::{Deserialize, Serialize};

use super::algorithms::Recipe;
use super::buffer;
use super::collect::{Clock, Collected};
use super::config::RlTrain;
use super::figures::{Observed, Updates, mean_reward};
use super::filter::Filter;
use super::group::Group;
use super::kl::Reference;
use super::record::Recorder;
use super::reward::Rewarder;
use crate::alarms::AlarmState;
use crate::checkpoint::{self, Carried};
use crate::epoch_order::EpochOrder;
use crate::local_judge::LocalJudge;
use crate::memory_note::{plan_memory, tell_beside};
use crate::metric_rows::record_step;
use crate::processor::PromptEncoder;
use crate::prompt_rows::PromptRow;
use crate::rollout::model_digest;
use crate::sampling::{check_cancelled, load_encoder};

/// Prompts tokenised together while lengths are counted.
const ROWS_PER_COUNT: usize = 256;

/// What only an RL stage carries from step to step; a part of its checkpoints. Everything random follows from the seed and these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Own {
    /// Epoch of the prompts' order, from 0.
    pub(super) epoch: u64,
    /// Prompts of this epoch that have had their turn.
    pub(super) visited: u64,
    /// Steps with updates so far.
    pub(super) policy_version: u64,
    /// Whether a step had fewer groups than it wanted, which is told once.
    pub(super) has_missed_groups: bool,
    pub(super) alarms: AlarmState,
}

/// What lives through the steps.
pub(super) struct Trainer<'a> {
    pub(super) config: &'a RlTrain,
    pub(super) recipe: Recipe,
    pub(super) rows: &'a [PromptRow],
    pub(super) encoder: PromptEncoder,
    pub(super) policy: Box<dyn Policy>,
    /// Where the configuration has a divergence from it.
    pub(super) reference: Option<Reference>,
    pub(super) verifier: Verifier,
    pub(super) rewarder: Rewarder<'a>,
    pub(super) recorder: Recorder<'a>,
    pub(super) order: EpochOrder,
    seed: u64,
    pub(super) carried: Carried<Own>,
    /// Groups that wait for a later step, oldest first.
    pub(super) buffer: Vec<Group>,
    pub(super) clock: Clock,
}

impl<'a> Trainer<'a> {
    /// Loads what the stage needs, plans its memory, and takes up the latest checkpoint. Returns the steps done as well.
    pub(super) fn open(
        config: &'a RlTrain,
        rows: &'a [PromptRow],
        context: &StageContext<'_>,
        io: &mut dyn StageIo,
    ) -> Result<(Self, u64), OperatorError> {
        let folder = io.model_folder("model")?;
        let mut encoder = load_encoder(&folder)?;
        let options = config.training_keys().load_options(context.seed);
        let mut policy = context.backend()?.load(&folder, &options)?;
        let demand = demand(config, &mut encoder, rows, &*policy, io)?;
        let plan = plan_memory(&*policy, &demand, io)?;
        let reference = config.open_reference(&folder, context, io)?;
        let mut held = plan.peak();
        if let Some(Reference::Own(reference)) = &reference {
            let weights = reference.plan_memory(&MemoryDemand::default())?.weights;
            let advice =
                "train with `lora`, whose reference model takes no memory, or leave `kl` out";
            tell_beside(
                ("reference model", weights),
                held,
                plan.available,
                advice,
                io,
            )?;
            held += weights;
        }
        let mut verifier = Verifier::open(&config.verify, context, io)?;
        if let Some(options) = config.verify.local_judge() {
            let judge = LocalJudge::beside_training(options, held, plan.available, context, io)?;
            verifier.set_model(Box::new(judge));
        }
        let (done, carried, files) =
            checkpoint::resume_with_files(&mut *policy, u64::from(config.steps), io)?;
        let carried: Carried<Own> = carried;
        let buffer = match files {
            Some(files) if config.has_buffer() => buffer::load(&files, &mut |row| {
                let prompts = encoder.encode(&[&rows[row]], io)?;
                Ok(Arc::clone(&prompts[0]))
            })?,
            _ => Vec::new(),
        };
        let trainer = Self {
            recipe: config.recipe(),
            verifier,
            rewarder: Rewarder::open(&config.score, config.verify.name(), io)?,
            recorder: Recorder {
                config,
                model: model_digest(io, "model")?,
                rows,
            },
            order: EpochOrder::new(seed::derive(context.seed, "prompts"), rows.len()),
            config,
            rows,
            encoder,
            policy,
            reference,
            seed: context.seed,
            carried,
            buffer,
            clock: Clock::default(),
        };
        Ok((trainer, done))
    }

    /// All steps that are left.
    pub(super) fn train(&mut self, done: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        self.carried.own.alarms.take_up(&self.config.alarms, io)?;
        let steps = u64::from(self.config.steps);
        for step in done + 1..=steps {
            check_cancelled(io)?;
            self.step(step, io)?;
            if let Some(error) = self.carried.own.alarms.stop(&self.config.alarms) {
                let carried = self.carried.clone();
                self.save_now(step, &carried, io)?;
                return Err(error);
            }
            checkpoint::end_step_with_files(
                &*self.policy,
                step,
                steps,
                &self.carried,
                &mut |folder| self.write_files(folder),
                io,
            )?;
        }
        Ok(())
    }

    /// Sample, verify, score; compare, update; record.
    fn step(&mut self, step: u64, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let started = Instant::now();
        self.clock = Clock::default();
        let policy_version = self.carried.own.policy_version;
        let mut collected = self.collect(step, io)?;
        let updates = self.learn(step, &mut collected.groups, io)?;

        let recording = Instant::now();
        let fresh = self.buffer.iter().filter(|group| group.origin.step == step);
        let recorded: Vec<&Group> = collected.groups.iter().chain(fresh).collect();
        io.write("rollouts", self.recorder.batch(step, &recorded)?)?;
        let figures = self.figures(step, &collected, policy_version, updates, recorded);
        self.clock.record = recording.elapsed();
        let live = self.live_figures(started, &collected, &updates, step);
        record_step(step, &figures, &live, io)?;
        let alarms = &mut self.carried.own.alarms;
        alarms.observe(&self.config.alarms, step, &figures, io);
        let sampled = collected.groups.iter().chain(&self.buffer);
        self.carried.note = mean_reward(sampled.filter(|group| group.origin.step == step))
            .map(|reward| format!("reward {reward:.2}"))
            .unwrap_or_default();
        Ok(())
    }

    fn figures(
        &self,
        step: u64,
        collected: &Collected,
        policy_version: u64,
        updates: Updates,
        recorded: Vec<&Group>,
    ) -> Vec<(String, f64)> {
        let sampled = recorded.iter().filter(|group| group.origin.step == step);
        let observed = Observed {
            filter: &self.recipe.filter,
            part_names: &self.config.score.part_names(),
            sampled: sampled.copied().collect(),
            recorded,
            buffered: self.buffer.len(),
            policy_version,
            rounds: collected.rounds,
            missing: collected.missing,
            updates,
            learning_rate: self.config.learning_rate_at(step),
        };
        observed.figures()
    }

    /// Numbers that are not the same in every run: times and memory.
    fn live_figures(
        &self,
        started: Instant,
        collected: &Collected,
        updates: &Updates,
        step: u64,
    ) -> Vec<(&'static str, f64)> {
        let clock = &self.clock;
        let all = started.elapsed().as_secs_f64();
        let groups = collected.groups.iter().chain(&self.buffer);
        let sampled = groups.filter(|group| group.origin.step == step);
        let tokens: usize = sampled
            .flat_map(|group| &group.rollouts)
            .map(super::group::Rollout::tokens)
            .sum();
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
        vec![
            ("time/generate_s", clock.generate.as_secs_f64()),
            ("time/verify_s", clock.verify.as_secs_f64()),
            ("time/logprobs_s", clock.logprobs.as_secs_f64()),
            ("time/update_s", clock.update.as_secs_f64()),
            ("time/record_s", clock.record.as_secs_f64()),
            ("time/step_s", all),
            ("tokens_per_s", rate(tokens, all)),
            (
                "generate_tokens_per_s",
                rate(tokens, clock.generate.as_secs_f64()),
            ),
            (
                "update_tokens_per_s",
                rate(updates.report.tokens, clock.update.as_secs_f64()),
            ),
            (
                "memory_peak_gib",
                self.policy.peak_memory() as f64 / f64::from(1 << 30),
            ),
        ]
    }

    /// Writes the outputs of a stage that came to its end.
    pub(super) fn finish(&mut self, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        if self.config.averaging.is_some() {
            self.policy.use_weights(WeightSet::Averaged)?;
        }
        let saved = io.scratch().join("model");
        self.policy.save(&saved)?;
        io.write_model("model", &saved)?;
        if self.config.lora.is_some() {
            let saved = io.scratch().join("adapter");
            self.policy.save_adapter(&saved)?;
            io.write_model("adapter", &saved)?;
        }
        Ok(())
    }

    /// Seed of everything random in a step.
    pub(super) fn step_seed(&self, step: u64) -> u64 {
        seed::derive(self.seed, &format!("step {step}"))
    }

    /// Writes a checkpoint of the policy as it is, before the stage ends with an error; none before the first step.
    pub(super) fn save_now(
        &self,
        step: u64,
        carried: &Carried<Own>,
        io: &mut dyn StageIo,
    ) -> Result<(), OperatorError> {
        if step == 0 {
            return Ok(());
        }
        let mut write_files = |folder: &Path| self.write_files(folder);
        checkpoint::save_now(&*self.policy, step, carried, &mut write_files, io)
    }

    fn write_files(&self, folder: &Path) -> Result<(), OperatorError> {
        if self.config.has_buffer() {
            buffer::save(&self.buffer, folder)?;
        }
        Ok(())
    }
}

impl RlTrain {
    fn has_buffer(&self) -> bool {
        matches!(self.filter, Some(Filter::Buffer(_)))
    }

    /// The reference model, where the loss or the reward has a divergence from it.
    fn open_reference(
        &self,
        folder: &Path,
        context: &StageContext<'_>,
        io: &dyn StageIo,
    ) -> Result<Option<Reference>, OperatorError> {
        if self.kl.is_none() {
            return Ok(None);
        }
        let has_own = !io.inputs("reference").is_empty();
        if self.lora.is_some() && !has_own {
            return Ok(Some(Reference::Base));
        }
        let of_port = has_own.then(|| io.model_folder("reference")).transpose()?;
        if let Some(of_port) = &of_port {
            check_same_tokenizer(folder, of_port)?;
        }
        let options = LoadOptions {
            precision: self.precision,
            training: None,
        };
        let folder = of_port.as_deref().unwrap_or(folder);
        let policy = context.backend()?.load(folder, &options)?;
        Ok(Some(Reference::Own(policy)))
    }
}

/// Token ids must mean the same to both models.
fn check_same_tokenizer(trained: &Path, reference: &Path) -> Result<(), OperatorError> {
    let (trained, reference) = (load_encoder(trained)?, load_encoder(reference)?);
    let digest = |encoder: &PromptEncoder| encoder.processor().tokenizer_digest().clone();
    if digest(&trained) == digest(&reference) {
        return Ok(());
    }
    let message = "the models on the ports `model` and `reference` have different tokenizers, so the log-probabilities of their tokens cannot be compared; connect a model with the same tokenizer";
    Err(OperatorError::Data(message.to_owned()))
}

/// The work that memory is planned for. Looks at every prompt, so that one that does not fit is found before the first step.
fn demand(
    config: &RlTrain,
    encoder: &mut PromptEncoder,
    rows: &[PromptRow],
    policy: &dyn Policy,
    io: &dyn StageIo,
) -> Result<MemoryDemand, OperatorError> {
    let new_tokens = config.max_new_tokens as usize;
    let mut longest = 0;
    for rows in rows.chunks(ROWS_PER_COUNT) {
        check_cancelled(io)?;
        let rows: Vec<&PromptRow> = rows.iter().collect();
        for (row, prompt) in rows.iter().zip(encoder.encode(&rows, io)?) {
            policy
                .check_prompt(&prompt, new_tokens)
                .map_err(|error| match error {
                    ModelError::Input(message) => row.fault(&message),
                    other => other.into(),
                })?;
            longest = longest.max(prompt.token_ids.len());
        }
    }
    let prompts = config.prompts_per_round(&config.recipe().filter);
    let samples = config.samples as usize;
    Ok(MemoryDemand {
        train_tokens: longest + new_tokens,
        call_tokens: prompts * (longest + samples * new_tokens),
        generate_tokens: longest + new_tokens,
        generate_concurrent: (prompts * config.samples as usize)
            .min(config.max_concurrent as usize),
    })
}
