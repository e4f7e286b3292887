//! Sampling completions of prompts, with their texts: what `rollout`, `augment` and `rl-train` share.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use engine_core::event::{Progress, StageEvent};
use engine_core::policy::{
    Completion, FinishReason, GenerationProgress, GenerationRequest, GenerationWatch,
    SamplingParams, TokenizedPrompt,
};
use engine_core::{ModelError, OperatorError, Policy, StageView, seed};
use rayon::prelude::*;

use crate::processor::{Processor, PromptEncoder};
use crate::prompt_rows::PromptRow;
use crate::sampling_keys::SamplingKeys;
use crate::stop_strings::{cut, stop_check};

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
    /// Their text, without special tokens, up to a stop string.
    pub(crate) text: String,
    /// Whether a stop string was cut from the text; the tokens have it.
    pub(crate) is_cut: bool,
}

impl Sampled {
    /// Whether it came to an end by itself.
    pub(crate) fn is_complete(&self) -> bool {
        self.completion.finish_reason == FinishReason::Stop
    }
}

/// How to sample.
#[derive(Clone, Debug)]
pub(crate) struct SamplingPlan {
    pub(crate) temperature: f64,
    pub(crate) keys: SamplingKeys,
    pub(crate) max_new_tokens: u32,
    pub(crate) max_concurrent: u32,
    pub(crate) seed: u64,
    /// Whether a range of samples shall give the same bits beside any others.
    pub(crate) exact_ranges: bool,
}

impl SamplingPlan {
    fn params(&self, processor: &Arc<Processor>) -> SamplingParams {
        let keys = &self.keys;
        SamplingParams {
            temperature: self.temperature,
            top_k: keys.top_k as usize,
            top_p: keys.top_p,
            min_p: keys.min_p,
            repetition_penalty: keys.repetition_penalty,
            presence_penalty: keys.presence_penalty,
            frequency_penalty: keys.frequency_penalty,
            min_new_tokens: keys.min_new_tokens as usize,
            stop_check: stop_check(processor, &keys.stop),
            max_new_tokens: self.max_new_tokens as usize,
            stop_token_ids: processor.stop_token_ids().to_vec(),
            seed: self.seed,
            max_concurrent: self.max_concurrent as usize,
            ..SamplingParams::default()
        }
    }
}

/// A prompt that is to be continued.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// The prompt.
    pub(crate) row: &'a PromptRow,
    /// The same as the model sees it.
    pub(crate) prompt: Arc<TokenizedPrompt>,
}

/// Reads the processor of a model folder.
pub(crate) fn load_encoder(folder: &Path) -> Result<PromptEncoder, OperatorError> {
    Ok(PromptEncoder::new(Processor::load(folder)?))
}

/// Completions that are asked of a policy: range by range, and in the order of prompts and then samples in a range.
#[derive(Debug)]
pub(crate) struct Requests {
    /// Prompt and sample of each.
    places: Vec<(usize, u32)>,
    requests: Vec<GenerationRequest>,
    params: SamplingParams,
}

impl Requests {
    pub(crate) fn new(
        asked: &[Asked<'_>],
        ranges: &[Range<u32>],
        plan: &SamplingPlan,
        processor: &Arc<Processor>,
    ) -> Self {
        let places: Vec<(usize, u32)> = ranges
            .iter()
            .flat_map(|range| {
                (0..asked.len())
                    .flat_map(move |prompt| range.clone().map(move |sample| (prompt, sample)))
            })
            .collect();
        let streams: Vec<u64> = asked
            .iter()
            .map(|asked| seed::prompt_stream(&asked.row.prompt_id))
            .collect();
        let requests: Vec<GenerationRequest> = places
            .iter()
            .map(|(prompt, sample)| GenerationRequest {
                prompt: Arc::clone(&asked[*prompt].prompt),
                prompt_stream: streams[*prompt],
                sample: *sample,
            })
            .collect();
        let mut params = plan.params(processor);
        if plan.exact_ranges {
            params.apart = sizes(asked, ranges);
        }
        Self {
            places,
            requests,
            params,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Prompt and sample of a request.
    pub(crate) fn place(&self, index: usize) -> (usize, u32) {
        self.places[index]
    }

    /// Their completions, in their order.
    pub(crate) fn generate(
        &self,
        policy: &mut dyn Policy,
        watch: &mut dyn GenerationWatch,
    ) -> Result<Vec<Completion>, OperatorError> {
        let completions = policy
            .generate(&self.requests, &self.params, watch)
            .map_err(interruption)?;
        if completions.len() != self.requests.len() {
            let message = format!(
                "the policy returned {} completions for {} requests",
                completions.len(),
                self.requests.len()
            );
            return Err(OperatorError::Internal(message));
        }
        Ok(completions)
    }
}

/// Completions of each range.
fn sizes(asked: &[Asked<'_>], ranges: &[Range<u32>]) -> Vec<usize> {
    ranges
        .iter()
        .map(|range| range.len() * asked.len())
        .collect()
}

/// Samples completions of each prompt, range by range, and in the order of prompts and then samples in a range. A range gives
/// the same whichever others are asked for beside it. `progress` is told about once for each token position.
pub(crate) fn sample_prompts(
    policy: &mut dyn Policy,
    processor: &Arc<Processor>,
    asked: &[Asked<'_>],
    ranges: &[Range<u32>],
    plan: &SamplingPlan,
    view: &dyn StageView,
    progress: &mut dyn FnMut(GenerationProgress),
) -> Result<Vec<Vec<Sampled>>, OperatorError> {
    let requests = Requests::new(asked, ranges, plan, processor);
    let mut watch = |reached: GenerationProgress| {
        progress(reached);
        if view.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let completions = requests.generate(policy, &mut watch)?;
    let with_text = |(index, completion): (usize, Completion)| {
        let (prompt, sample) = requests.place(index);
        let mut text = processor
            .decode(&completion.token_ids)
            .map_err(|message| asked[prompt].row.fault(&message))?;
        let is_cut = cut(&mut text, &plan.keys.stop);
        Ok(Sampled {
            prompt,
            sample,
            completion,
            text,
            is_cut,
        })
    };
    let sampled: Result<Vec<Sampled>, OperatorError> = completions
        .into_par_iter()
        .enumerate()
        .map(with_text)
        .collect();
    let mut sampled = sampled?.into_iter();
    Ok(sizes(asked, ranges)
        .into_iter()
        .map(|size| sampled.by_ref().take(size).collect())
        .collect())
}

/// A model that was broken off is an interrupted stage.
pub(crate) fn interruption(error: ModelError) -> OperatorError {
    match error {
        ModelError::Interrupted => OperatorError::Interrupted,
        other => OperatorError::Model(other),
    }
}

/// Fails when the run was asked to stop.
pub(crate) fn check_cancelled(view: &dyn StageView) -> Result<(), OperatorError> {
    if view.is_cancelled() {
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
