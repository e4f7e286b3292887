//! A server instead of a loaded model: what `rollout` and `augment` share where their configuration names an endpoint.
//!
//! Every answer is a request of its own with a seed of its own, so that which rows are asked together changes nothing.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use engine_core::policy::{Completion, FinishReason};
use engine_core::{FailedRow, OperatorError, PartSize, StageEvent, StageView, seed};
use operators_endpoint::{
    Answer, Answers, Client, Endpoint, EndpointError, Finish, Part, Question, Sampling, Tally, Turn,
};
use serde_json::Value;

use crate::faults::ValueFaults;
use crate::part_sampler::{PartSampler, PartSamples};
use crate::prompt_rows::{ContentPart, PromptRow};
use crate::sampling::{Sampled, SamplingPlan, progress};

/// Prompts in a part, on average: what is lost of a server's work when this process is killed.
pub(crate) const ASKED_PART: PartSize = PartSize {
    rows: 128,
    bytes: 16 << 20,
};

/// Asks a server for the rows of one part after the other.
pub(crate) struct EndpointSampler<'a> {
    client: Client,
    sampling: Sampling,
    seed: u64,
    name: String,
    view: &'a dyn StageView,
}

/// Who answers for a part.
pub(crate) enum Answerer<'a> {
    /// A model that is loaded, for one caller at a time.
    Model(Box<Mutex<PartSampler<'a>>>),
    /// A server.
    Server(Box<EndpointSampler<'a>>),
}

impl Answerer<'_> {
    /// Answers for the rows of a part.
    ///
    /// # Errors
    /// When the model, the server or the store fails, or the run was asked to stop.
    pub(crate) fn sample(
        &self,
        rows: &[PromptRow],
        ranges: &[Range<u32>],
    ) -> Result<PartSamples, OperatorError> {
        match self {
            Self::Model(sampler) => sampler
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .sample(rows, ranges),
            Self::Server(server) => server.sample(rows, ranges),
        }
    }
}

/// A configuration with what of its endpoint counts for the content of answers.
pub(crate) fn content(config: &Value, pointer: &str) -> Value {
    let mut config = config.clone();
    if let Some(endpoint) = config.pointer_mut(pointer) {
        Endpoint::retain_content(endpoint);
    }
    config
}

/// Collects what is wrong with an endpoint's values.
pub(crate) fn check(endpoint: &Endpoint, faults: &mut ValueFaults) {
    for (key, message) in endpoint.faults() {
        faults.nested("endpoint", key, message);
    }
}

impl<'a> EndpointSampler<'a> {
    /// Prepares to ask; the first part looks whether the server is there.
    ///
    /// # Errors
    /// When the key is not in the environment.
    pub(crate) fn start(
        endpoint: &Endpoint,
        plan: &SamplingPlan,
        view: &'a dyn StageView,
    ) -> Result<Self, OperatorError> {
        let keys = &plan.keys;
        let sampling = Sampling {
            temperature: plan.temperature,
            max_tokens: plan.max_new_tokens,
            top_p: keys.top_p,
            top_k: keys.top_k,
            min_p: keys.min_p,
            repetition_penalty: keys.repetition_penalty,
            presence_penalty: keys.presence_penalty,
            frequency_penalty: keys.frequency_penalty,
            min_tokens: keys.min_new_tokens,
            stop: keys.stop.clone(),
        };
        let client = Client::new(endpoint).map_err(stage_error)?;
        // Beside the folders of stages, which go when their process does. What is committed by parts is kept anyway; this is
        // for the part that a killed process was at.
        if let Some(folder) = view.scratch().parent() {
            client.keep_answers(&folder.join("metis-flow-requests"));
        }
        Ok(Self {
            client,
            sampling,
            seed: plan.seed,
            name: endpoint.name(),
            view,
        })
    }

    /// What stands in the place of a model's digest.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the rows of a part. A row that the server refuses, or that is left when it dies, fails by itself.
    ///
    /// # Errors
    /// When nothing was answered because the server is gone or refuses everything, or the run was asked to stop.
    pub(crate) fn sample(
        &self,
        rows: &[PromptRow],
        ranges: &[Range<u32>],
    ) -> Result<PartSamples, OperatorError> {
        let mut places = Vec::new();
        let mut questions = Vec::new();
        let conversations: Vec<Arc<str>> = rows
            .iter()
            .map(|row| self.conversation(row))
            .collect::<Result<_, _>>()?;
        for (range, samples) in ranges.iter().enumerate() {
            for (row, prompt) in rows.iter().enumerate() {
                for sample in samples.clone() {
                    places.push((range, row, sample));
                    questions.push(Question {
                        messages: Arc::clone(&conversations[row]),
                        seed: seed::derive(self.seed, &format!("{} {sample}", prompt.prompt_id)),
                    });
                }
            }
        }
        let before = self.client.tally();
        let per_row = questions.len() / rows.len().max(1);
        let mut watch = |tally: &Tally| {
            let answers = (tally.answers + tally.known) - (before.answers + before.known);
            let done = answers / per_row.max(1) as u64;
            let tokens = tally.completion_tokens - before.completion_tokens;
            self.view.event(progress(
                "rows",
                done,
                rows.len() as u64,
                tokens,
                tally.to_string(),
            ));
            if self.view.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let answers = self
            .client
            .ask(&questions, &self.sampling, &mut watch)
            .map_err(stage_error)?;
        self.gather(rows, ranges.len(), &places, answers)
    }

    fn conversation(&self, row: &PromptRow) -> Result<Arc<str>, OperatorError> {
        let part = |part: &ContentPart| match part {
            ContentPart::Text(text) => Ok(Part::Text(text.clone())),
            ContentPart::Image(digest) => Ok(Part::Image(self.view.media(digest)?)),
        };
        let turns: Vec<Turn> = row
            .messages
            .iter()
            .map(|message| {
                let content = message.content.iter().map(part);
                Ok(Turn {
                    role: message.role.clone(),
                    content: content.collect::<Result<_, OperatorError>>()?,
                })
            })
            .collect::<Result<_, OperatorError>>()?;
        Ok(operators_endpoint::messages(&turns))
    }

    /// Sorts answers by range. A row counts when all its answers came.
    fn gather(
        &self,
        rows: &[PromptRow],
        ranges: usize,
        places: &[(usize, usize, u32)],
        answers: Answers,
    ) -> Result<PartSamples, OperatorError> {
        let mut failed: BTreeMap<usize, String> = BTreeMap::new();
        for ((_, row, _), answer) in places.iter().zip(&answers.answers) {
            if let Err(message) = answer {
                failed.entry(*row).or_insert_with(|| message.clone());
            }
        }
        if let Some(end) = answers.end {
            if failed.len() == rows.len() {
                return Err(stage_error(end));
            }
            // What was answered is kept. The whole story once is enough.
            let why = end.to_string();
            let left = failed.values_mut().filter(|message| **message == why);
            for message in left.skip(1) {
                "not answered any more".clone_into(message);
            }
        }
        let mut samples = PartSamples {
            ranges: (0..ranges).map(|_| Vec::new()).collect(),
            prompt_tokens: vec![0; rows.len()],
            failed: Vec::new(),
        };
        let all = places.iter().zip(answers.answers);
        for ((range, row, sample), answer) in all {
            let (Ok(answer), false) = (answer, failed.contains_key(row)) else {
                continue;
            };
            samples.prompt_tokens[*row] = answer.prompt_tokens as usize;
            samples.ranges[*range].push(self.sampled(*row, *sample, answer));
        }
        let failure = |(row, message): (usize, String)| FailedRow {
            row,
            error: rows[row].fault(&message).to_string(),
        };
        samples.failed = failed.into_iter().map(failure).collect();
        Ok(samples)
    }

    fn sampled(&self, prompt: usize, sample: u32, answer: Answer) -> Sampled {
        let finish_reason = match answer.finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
        };
        Sampled {
            prompt,
            sample,
            completion: Completion {
                token_ids: answer.token_ids.unwrap_or_default(),
                logprobs: answer.logprobs.unwrap_or_default(),
                finish_reason,
                ..Completion::default()
            },
            text: answer.text,
            // Servers do not say which answers ended at a stop string.
            is_cut: answer.finish == Finish::Stop && !self.sampling.stop.is_empty(),
        }
    }
}

impl Drop for EndpointSampler<'_> {
    /// All parts were asked: says what it took.
    fn drop(&mut self) {
        if let Some(account) = self.client.account() {
            self.view.event(StageEvent::Note(account));
        }
    }
}

fn stage_error(error: EndpointError) -> OperatorError {
    match error {
        EndpointError::Interrupted => OperatorError::Interrupted,
        other => OperatorError::Data(other.to_string()),
    }
}
