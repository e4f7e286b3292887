//! The groups of a step: sampled, verified, scored, and filtered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_core::policy::{Completion, GenerationProgress, TokenizedPrompt};
use engine_core::{OperatorError, StageIo, seed};

use super::filter::{Buffer, Fallback, Filter, Resample, Stale, Surplus};
use super::group::{Fate, Group, Origin, Rollout};
use super::judging::{Bench, Judgement, judge_while};
use super::reward::Candidate;
use super::trainer::Trainer;
use crate::prompt_rows::PromptRow;
use crate::rollout_rows::RolloutRow;
use crate::sampling::{Asked, Requests, SamplingPlan, progress};

/// The groups of a step, before it learns.
#[derive(Default)]
pub(super) struct Collected {
    /// Those with a row of their own in this step; what waits in the buffer is there.
    pub(super) groups: Vec<Group>,
    /// Rounds of sampling.
    pub(super) rounds: u32,
    /// Groups that a full set would have had beside.
    pub(super) missing: usize,
}

/// Where the time of a step went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// Sampling, with the judging beside it.
    pub(super) generate: Duration,
    /// Waiting for verdicts after the last answer was sampled, and rewards.
    pub(super) verify: Duration,
    /// Log-probabilities of this and of the reference model.
    pub(super) logprobs: Duration,
    pub(super) update: Duration,
    pub(super) record: Duration,
}

impl Trainer<'_> {
    /// The groups of a step. Those with the fate `trained` are to be learnt from.
    pub(super) fn collect(
        &mut self,
        step: u64,
        io: &mut dyn StageIo,
    ) -> Result<Collected, OperatorError> {
        let filter = self.recipe.filter.clone();
        match &filter {
            Filter::None | Filter::Drop(_) => Ok(Collected {
                groups: self.round(step, 1, io)?,
                rounds: 1,
                missing: 0,
            }),
            Filter::Buffer(buffer) => self.collect_with_buffer(step, buffer, io),
            Filter::Resample(resample) => self.collect_until_full(step, resample, io),
        }
    }

    /// New groups go to the end of the buffer. If it has enough, the oldest ones are learnt from.
    fn collect_with_buffer(
        &mut self,
        step: u64,
        settings: &Buffer,
        io: &mut dyn StageIo,
    ) -> Result<Collected, OperatorError> {
        let (kept, mut groups): (Vec<Group>, Vec<Group>) = self
            .round(step, 1, io)?
            .into_iter()
            .partition(|group| group.fate == Fate::Trained);
        self.buffer.extend(kept);
        let now = self.carried.own.policy_version;
        let is_stale =
            |group: &Group| now - group.origin.policy_version > u64::from(settings.max_staleness);
        if settings.stale == Stale::Drop {
            for mut group in self.buffer.extract_if(.., |group| is_stale(group)) {
                group.fate = Fate::Stale;
                groups.push(group);
            }
        }
        let wanted = settings
            .train_groups
            .unwrap_or(self.config.prompts_per_step) as usize;
        let mut taken: Vec<Group> = if self.buffer.len() >= wanted {
            self.buffer.drain(..wanted).collect()
        } else {
            Vec::new()
        };
        for group in &mut taken {
            group.fate = Fate::Trained;
        }
        for group in &mut self.buffer {
            group.fate = Fate::Buffered;
        }
        if settings.stale == Stale::Recompute {
            let started = Instant::now();
            let stale = taken.iter_mut().filter(|group| is_stale(group));
            self.recompute(stale.collect(), io)?;
            self.clock.logprobs += started.elapsed();
        }
        taken.append(&mut groups);
        Ok(Collected {
            groups: taken,
            rounds: 1,
            missing: 0,
        })
    }

    /// Rounds of new prompts until there are groups for a full set.
    fn collect_until_full(
        &mut self,
        step: u64,
        settings: &Resample,
        io: &mut dyn StageIo,
    ) -> Result<Collected, OperatorError> {
        let before = self.carried.clone();
        let wanted = self.config.prompts_per_step as usize;
        let mut collected = Collected::default();
        let mut kept = 0;
        while kept < wanted && collected.rounds < settings.rounds {
            collected.rounds += 1;
            for mut group in self.round(step, collected.rounds, io)? {
                if group.fate == Fate::Trained {
                    kept += 1;
                    if kept > wanted && settings.surplus == Surplus::Drop {
                        group.fate = Fate::Surplus;
                    }
                }
                collected.groups.push(group);
            }
        }
        collected.missing = wanted.saturating_sub(kept);
        if collected.missing == 0 {
            return Ok(collected);
        }
        let message = format!(
            "step {step}: {kept} of {wanted} groups have an accuracy that can be learnt from after {} rounds of {} prompts",
            collected.rounds,
            self.config.prompts_per_round(&self.recipe.filter)
        );
        match settings.fallback {
            // Once: the metric `groups_missing` has it of every step.
            Fallback::Train if !self.carried.own.has_missed_groups => {
                self.carried.own.has_missed_groups = true;
                let warning = format!(
                    "{message}; it learns from these, as `fallback: train` says, and so will later steps"
                );
                self.carried.own.alarms.warn(warning, io);
            }
            Fallback::Train => {}
            Fallback::Fail => {
                // What earlier steps recorded is kept.
                self.save_now(step - 1, &before, io)?;
                return Err(OperatorError::Data(format!(
                    "{message}, and `fallback: fail` ends the stage: take out prompts that are too easy or too hard with `filter-by-pass-rate`, raise `rounds`, or set `fallback: train`"
                )));
            }
        }
        Ok(collected)
    }

    /// Samples, verifies and scores answers to the next prompts. Groups that the filter keeps have the fate `trained`.
    fn round(
        &mut self,
        step: u64,
        round: u32,
        io: &mut dyn StageIo,
    ) -> Result<Vec<Group>, OperatorError> {
        let count = self.config.prompts_per_round(&self.recipe.filter);
        let places = self.next_prompts(count);
        let rows: Vec<&PromptRow> = places.iter().map(|place| &self.rows[*place]).collect();
        let prompts = self.encoder.encode(&rows, io)?;
        let origin = Origin {
            step,
            round,
            seed: self.seed_of(step, round),
            policy_version: self.carried.own.policy_version,
        };
        let groups = self.sample(origin, &places, &prompts, io)?;
        self.check_unusable(step, &groups)?;
        Ok(groups)
    }

    /// Samples and judges side by side, then scores.
    fn sample(
        &mut self,
        origin: Origin,
        places: &[usize],
        prompts: &[Arc<TokenizedPrompt>],
        io: &dyn StageIo,
    ) -> Result<Vec<Group>, OperatorError> {
        let config = self.config;
        let rows = self.rows;
        let asked: Vec<Asked<'_>> = places
            .iter()
            .zip(prompts)
            .map(|(place, prompt)| Asked {
                row: &rows[*place],
                prompt: Arc::clone(prompt),
            })
            .collect();
        let samples = 0..config.samples;
        let processor = Arc::clone(self.encoder.processor());
        let plan = SamplingPlan {
            temperature: config.temperature,
            keys: config.keys(),
            max_new_tokens: config.max_new_tokens,
            max_concurrent: config.max_concurrent,
            seed: origin.seed,
            exact_ranges: false,
        };
        let requests = Requests::new(&asked, std::slice::from_ref(&samples), &plan, &processor);
        let bench = Bench {
            verifier: &self.verifier,
            score: &config.score,
            processor: &processor,
            stop: &config.stop,
            reads_question: config.verify.reads_question(),
        };
        let (carried, total) = (self.carried.clone(), u64::from(config.steps));
        let mut tell = |reached: GenerationProgress| {
            let tokens = carried.tokens + reached.tokens as u64;
            let note = carried.note.clone();
            io.event(progress("steps", origin.step - 1, total, tokens, note));
        };
        let started = Instant::now();
        let mut generated = started;
        let policy = &mut *self.policy;
        let (completions, judgements) = judge_while(
            &bench,
            requests.len(),
            &|index| asked[requests.place(index).0].row,
            io,
            &mut tell,
            |watch| {
                let completions = requests.generate(policy, watch)?;
                if bench.verifier.has_model() {
                    // The judge has its cache where this one was.
                    policy.release_generation();
                }
                generated = Instant::now();
                Ok(completions)
            },
        )?;
        let answers: Vec<(Completion, Judgement)> =
            completions.into_iter().zip(judgements).collect();
        let groups = self.score(origin, places, prompts, answers)?;
        self.clock.generate += generated - started;
        self.clock.verify += generated.elapsed();
        Ok(groups)
    }

    /// Groups of judged answers with their rewards. `answers` are in the order of prompts and then samples.
    fn score(
        &mut self,
        origin: Origin,
        places: &[usize],
        prompts: &[Arc<TokenizedPrompt>],
        answers: Vec<(Completion, Judgement)>,
    ) -> Result<Vec<Group>, OperatorError> {
        let samples = self.config.samples;
        let asked = places.iter().zip(prompts);
        let each = asked.flat_map(|asked| (0..samples).map(move |sample| (asked, sample)));
        let candidates: Vec<Candidate<'_>> = each
            .zip(&answers)
            .map(
                |(((place, prompt), sample), (completion, judgement))| Candidate {
                    row: *place,
                    rollout: RolloutRow {
                        prompt_id: &self.rows[*place].prompt_id,
                        sample,
                        text: &judgement.text,
                        completion,
                        prompt_tokens: prompt.token_ids.len(),
                        model: &self.recorder.model,
                        seed: origin.seed,
                    },
                    judgement,
                },
            )
            .collect();
        let rewards = self.rewarder.rewards(&candidates)?;
        let mut answers = answers.into_iter().zip(rewards);
        let mut groups = Vec::with_capacity(places.len());
        for (place, prompt) in places.iter().zip(prompts) {
            let answers = answers.by_ref().take(samples as usize).zip(0..);
            let rollouts: Vec<Rollout> = answers
                .map(|(((completion, judgement), reward), sample)| Rollout {
                    sample,
                    completion,
                    text: judgement.text,
                    verdict: judgement.verdict,
                    reward,
                    reward_kl: None,
                    recomputed_logprobs: None,
                    reference_logprobs: Vec::new(),
                    advantages: Vec::new(),
                })
                .collect();
            let tokens: usize = rollouts.iter().map(Rollout::tokens).sum();
            self.carried.tokens += tokens as u64;
            let mut group = Group {
                row: *place,
                prompt: Arc::clone(prompt),
                origin,
                fate: Fate::Trained,
                rollouts,
            };
            let recipe = &self.recipe;
            let signal = recipe.filter.signal(group.counts(), recipe.least_answers);
            group.fate = Fate::of_dropped(signal).unwrap_or(Fate::Trained);
            groups.push(group);
        }
        Ok(groups)
    }

    /// Seed of the sampler in a round.
    fn seed_of(&self, step: u64, round: u32) -> u64 {
        match round {
            1 => self.step_seed(step),
            round => seed::derive(self.step_seed(step), &format!("round {round}")),
        }
    }

    /// The next prompts of the epoch's order. What is left at the end of an epoch is skipped, so that no prompt occurs twice in a
    /// round.
    fn next_prompts(&mut self, count: usize) -> Vec<usize> {
        let place = &mut self.carried.own;
        if place.visited as usize + count > self.rows.len() {
            place.epoch += 1;
            place.visited = 0;
        }
        let start = place.visited as usize;
        place.visited += count as u64;
        self.order.epoch(place.epoch)[start..start + count].to_vec()
    }

    fn check_unusable(&self, step: u64, groups: &[Group]) -> Result<(), OperatorError> {
        let all: usize = groups.iter().map(|group| group.rollouts.len()).sum();
        let usable: usize = groups.iter().map(|group| group.counts().usable).sum();
        let unusable = all - usable;
        if unusable as f64 > self.config.max_unusable * all as f64 {
            return Err(OperatorError::Data(format!(
                "step {step}: {unusable} of {all} answers have no usable verdict, more than `max-unusable: {}` allows",
                self.config.max_unusable
            )));
        }
        Ok(())
    }
}
