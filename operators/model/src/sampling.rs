//! Sampling completions of prompts, with their texts: what `rollout`, `augment` and `rl-train` share.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use engine_core::event::{Progress, StageEvent};
use engine_core::policy::{
    Completion, FinishReason, GenerationProgress, GenerationRequest, SamplingParams,
    TokenizedPrompt,
};
use engine_core::{ModelError, OperatorError, Policy, StageIo, seed};
use rayon::prelude::*;

use crate::processor::{Processor, PromptEncoder};
use crate::prompt_rows::PromptRow;

/// Requests of one `generate` call, in multiples of the sequences decoded together: enough that the batch is seldom
/// less than full, few enough that results are written early.
const CONCURRENT_BATCHES_PER_CALL: usize = 4;

/// Default of `max-concurrent`.
pub(crate) fn max_concurrent() -> u32 {
    256
}

/// One completion with its origin and text.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    /// Index of the prompt among the prompts of the call.
    pub(crate) prompt: usize,
    /// Index among the samples of the prompt.
    pub(crate) sample: u32,
    /// The tokens.
    pub(crate) completion: Completion,
    /// Their text, without special tokens.
    pub(crate) text: String,
}

impl Sampled {
    /// Whether it came to an end by itself.
    pub(crate) fn is_complete(&self) -> bool {
        self.completion.finish_reason == FinishReason::Stop
    }
}

/// How to sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplingPlan {
    pub(crate) samples: u32,
    pub(crate) temperature: f64,
    pub(crate) max_new_tokens: u32,
    pub(crate) max_concurrent: u32,
    pub(crate) seed: u64,
}

impl SamplingPlan {
    fn params(&self, processor: &Processor) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            max_new_tokens: self.max_new_tokens as usize,
            stop_token_ids: processor.stop_token_ids().to_vec(),
            seed: self.seed,
            max_concurrent: self.max_concurrent as usize,
        }
    }

    /// Prompts to give to one `generate` call.
    pub(crate) fn prompts_per_call(&self) -> usize {
        (self.max_concurrent as usize * CONCURRENT_BATCHES_PER_CALL)
            .div_ceil(self.samples as usize)
            .max(1)
    }
}

/// Reads the processor of a model folder.
pub(crate) fn load_encoder(folder: &Path) -> Result<PromptEncoder, OperatorError> {
    Ok(PromptEncoder::new(Processor::load(folder)?))
}

/// Samples `plan.samples` completions of each prompt, in the order of prompts and then samples. `progress` is told about
/// once for each token position.
pub(crate) fn sample_prompts(
    policy: &mut dyn Policy,
    processor: &Processor,
    rows: &[&PromptRow],
    prompts: &[Arc<TokenizedPrompt>],
    plan: &SamplingPlan,
    io: &dyn StageIo,
    progress: &mut dyn FnMut(GenerationProgress),
) -> Result<Vec<Sampled>, OperatorError> {
    let requests: Vec<GenerationRequest> = rows
        .iter()
        .zip(prompts)
        .flat_map(|(row, prompt)| {
            let prompt_stream = seed::prompt_stream(&row.prompt_id);
            (0..plan.samples).map(move |sample| GenerationRequest {
                prompt: Arc::clone(prompt),
                prompt_stream,
                sample,
            })
        })
        .collect();
    let mut watch = |reached: GenerationProgress| {
        progress(reached);
        if io.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let completions = policy
        .generate(&requests, &plan.params(processor), &mut watch)
        .map_err(interruption)?;
    if completions.len() != requests.len() {
        let message = format!(
            "the policy returned {} completions for {} requests",
            completions.len(),
            requests.len()
        );
        return Err(OperatorError::Internal(message));
    }
    let samples = plan.samples as usize;
    let with_text = |(index, completion): (usize, Completion)| {
        let prompt = index / samples;
        let text = processor
            .decode(&completion.token_ids)
            .map_err(|message| rows[prompt].fault(&message))?;
        Ok(Sampled {
            prompt,
            sample: requests[index].sample,
            completion,
            text,
        })
    };
    completions
        .into_par_iter()
        .enumerate()
        .map(with_text)
        .collect()
}

/// A model that was broken off is an interrupted stage.
pub(crate) fn interruption(error: ModelError) -> OperatorError {
    match error {
        ModelError::Interrupted => OperatorError::Interrupted,
        other => OperatorError::Model(other),
    }
}

/// Fails when the run was asked to stop.
pub(crate) fn check_cancelled(io: &dyn StageIo) -> Result<(), OperatorError> {
    if io.is_cancelled() {
        Err(OperatorError::Interrupted)
    } else {
        Ok(())
    }
}

/// A progress event.
pub(crate) fn progress(unit: &str, done: u64, total: u64, tokens: u64, note: String) -> StageEvent {
    StageEvent::Progress(Progress {
        done,
        total: Some(total),
        unit: unit.to_owned(),
        tokens,
        note,
    })
}
