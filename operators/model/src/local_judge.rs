//! A loaded model as the judge of a verifier.

use std::sync::Arc;

use engine_core::policy::{LoadOptions, MemoryDemand, TokenizedPrompt};
use engine_core::{ModelError, OperatorError, Policy, StageContext, StageView};
use operators_verifier::{Conversation, JudgeModel, JudgeOptions};

use crate::memory_note::tell_beside;
use crate::processor::PromptEncoder;
use crate::prompt_rows::{ContentPart, Message, PromptRow};
use crate::sampling::{Asked, SamplingPlan, load_encoder, progress, sample_prompts};
use crate::sampling_keys::SamplingKeys;

/// The input port of a model that judges.
pub(crate) const PORT: &str = "judge";

/// A model that judges.
pub struct LocalJudge {
    policy: Box<dyn Policy>,
    encoder: PromptEncoder,
    plan: SamplingPlan,
    /// Whether its cache is let go after every round of questions, because another model needs the memory.
    is_guest: bool,
}

impl LocalJudge {
    /// Loads the model of an input port.
    ///
    /// # Errors
    /// When it is not there or cannot be loaded.
    pub fn open(
        options: &JudgeOptions,
        port: &str,
        context: &StageContext<'_>,
        view: &dyn StageView,
    ) -> Result<Self, OperatorError> {
        let folder = view.model_folder(port)?;
        let encoder = load_encoder(&folder)?;
        let loading = LoadOptions {
            precision: options.precision,
            training: None,
        };
        Ok(Self {
            policy: context.backend()?.load(&folder, &loading)?,
            encoder,
            plan: SamplingPlan {
                temperature: options.temperature,
                keys: SamplingKeys::default(),
                max_new_tokens: options.max_new_tokens,
                max_concurrent: options.max_concurrent,
                seed: options.seed,
                exact_ranges: false,
            },
            is_guest: false,
        })
    }

    /// Loads the judge of a stage that trains a model, beside that model. `held` are the bytes of everything else at its peak, and
    /// `available` those that there are. While it judges, its cache stands where that of the sampler was.
    ///
    /// # Errors
    /// As [`Self::open`], and when the judge does not fit beside the rest.
    pub(crate) fn beside_training(
        options: &JudgeOptions,
        held: u64,
        available: u64,
        context: &StageContext<'_>,
        view: &dyn StageView,
    ) -> Result<Self, OperatorError> {
        let judge = Self {
            is_guest: true,
            ..Self::open(options, PORT, context, view)?
        };
        let weights = judge.policy.plan_memory(&MemoryDemand::default())?.weights;
        let advice = "take a smaller judge, set its `precision: bfloat16`, or serve it elsewhere and give its `endpoint`";
        tell_beside(("judge", weights), held, available, advice, view)?;
        Ok(judge)
    }

    /// Whether the model has room for the conversation and its answer.
    fn fits(&self, prompt: &TokenizedPrompt) -> Result<Result<(), String>, OperatorError> {
        let room = self.plan.max_new_tokens as usize;
        match self.policy.check_prompt(prompt, room) {
            Ok(()) => Ok(Ok(())),
            Err(ModelError::Input(message)) => Ok(Err(message)),
            Err(error) => Err(error.into()),
        }
    }
}

/// A conversation as a prompt of its own, whose id names its random stream.
fn prompt_row(conversation: &Conversation) -> PromptRow {
    let message = |(role, text): &(&'static str, String)| Message {
        role: (*role).to_owned(),
        content: vec![ContentPart::Text(text.clone())],
    };
    PromptRow {
        prompt_id: format!("{:016x} {}", conversation.stream, conversation.vote),
        messages: conversation.turns.iter().map(message).collect(),
        answer: None,
        solution: None,
    }
}

impl JudgeModel for LocalJudge {
    fn answer(
        &mut self,
        conversations: &[Conversation],
        view: &dyn StageView,
    ) -> Result<Vec<Result<String, String>>, OperatorError> {
        let rows: Vec<PromptRow> = conversations.iter().map(prompt_row).collect();
        let prompts = self
            .encoder
            .encode_each(&rows.iter().collect::<Vec<_>>(), view)?;
        let mut answers: Vec<Result<String, String>> = vec![Ok(String::new()); rows.len()];
        let (mut places, mut asked) = (Vec::new(), Vec::new());
        for (place, prompt) in prompts.into_iter().enumerate() {
            let prompt: Arc<TokenizedPrompt> = match prompt {
                Ok(prompt) => prompt,
                Err(OperatorError::Data(message)) => {
                    answers[place] = Err(message);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Err(message) = self.fits(&prompt)? {
                answers[place] = Err(message);
                continue;
            }
            places.push(place);
            asked.push(Asked {
                row: &rows[place],
                prompt,
            });
        }
        let total = rows.len() as u64;
        let mut tell = |reached: engine_core::policy::GenerationProgress| {
            let (done, tokens) = (reached.sequences as u64, reached.tokens as u64);
            view.event(progress("rows", done, total, tokens, "judging".to_owned()));
        };
        let sampled = sample_prompts(
            &mut *self.policy,
            self.encoder.processor(),
            &asked,
            std::slice::from_ref(&(0..1)),
            &self.plan,
            view,
            &mut tell,
        );
        if self.is_guest {
            self.policy.release_generation();
        }
        let sampled = sampled?;
        for answer in sampled.into_iter().flatten() {
            answers[places[answer.prompt]] = Ok(answer.text);
        }
        Ok(answers)
    }
}

#[cfg(test)]
#[path = "local_judge_tests.rs"]
mod tests;
