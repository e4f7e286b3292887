//! What the host knows of prompts and sequences of a batch.

use std::collections::VecDeque;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    FinishReason, RequestId, SamplingParams, SessionRequest, TokenizedPrompt,
};
use tch::Tensor;

use super::kernels::PAGE;
use super::memory::PARAM_WORDS;
use crate::model::position::Positions;
use crate::sampling;

/// Stop tokens that the device can forbid; as in `kernels/sample.cu`.
const MOST_STOPS: usize = 16;

/// A prompt whose keys and values are in the cache.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) source: Arc<TokenizedPrompt>,
    pub(super) positions: Positions,
    pub(super) pages: Vec<i32>,
    /// What the first token is drawn from, `[w]`; `None` until the prompt was run.
    pub(super) state: Option<Tensor>,
    /// Requests that wait for it or use it.
    pub(super) users: usize,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: RequestId,
    pub(super) request: SessionRequest,
    /// Index of its prompt.
    pub(super) prompt: usize,
}

/// A sequence in the batch.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) prompt: usize,
    pub(super) request: SessionRequest,
    pub(super) own_pages: Vec<i32>,
    /// Tokens that were drawn or are being drawn.
    pub(super) launched: usize,
    /// Tokens that the host has seen.
    pub(super) tokens: Vec<u32>,
    pub(super) finish: Option<FinishReason>,
}

impl Sequence {
    pub(super) fn params(&self) -> &SamplingParams {
        &self.request.params
    }

    /// Whether another token is to be drawn, as far as the host knows.
    pub(super) fn goes_on(&self) -> bool {
        self.finish.is_none() && self.launched < self.params().max_new_tokens
    }

    /// Takes a drawn token; says whether and why it was the last.
    pub(super) fn take(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        let params = &self.request.params;
        // The stop token itself is none of the least.
        let is_late = self.tokens.len() > params.min_new_tokens;
        let is_stop = is_late && params.stop_token_ids.contains(&token)
            || (params.stop_check.as_ref()).is_some_and(|check| (check.0)(&self.tokens));
        self.finish = if is_stop {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= params.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        self.finish
    }
}

/// Whether nothing but temperature changes the distribution.
pub(super) fn is_plain(params: &SamplingParams) -> bool {
    params.top_k == 0
        && params.top_p >= 1.0
        && params.min_p <= 0.0
        && !has_penalties(params)
        && params.allowed_token_ids.is_empty()
        && params.min_new_tokens == 0
}

pub(super) fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

/// The words of a request for the device, in the order of `Params` in `kernels/sample.cu`.
pub(super) fn param_words(request: &SessionRequest) -> [i32; PARAM_WORDS] {
    let (params, place) = (&request.params, &request.request);
    let float = |value: f64| (value as f32).to_bits().cast_signed();
    let low = |value: u64| (value as u32).cast_signed();
    let high = |value: u64| ((value >> 32) as u32).cast_signed();
    let count = params.stop_token_ids.len().min(MOST_STOPS);
    let mut words = [0; PARAM_WORDS];
    words[..15].copy_from_slice(&[
        low(place.prompt_stream),
        high(place.prompt_stream),
        low(params.seed),
        high(params.seed),
        place.sample.cast_signed(),
        float(params.temperature),
        i32::try_from(params.top_k).unwrap_or(0),
        float(params.top_p),
        float(params.min_p),
        float(params.repetition_penalty),
        float(params.presence_penalty),
        float(params.frequency_penalty),
        i32::try_from(params.min_new_tokens).unwrap_or(i32::MAX),
        i32::from(!params.allowed_token_ids.is_empty()),
        count as i32,
    ]);
    for (word, stop) in words[15..].iter_mut().zip(&params.stop_token_ids[..count]) {
        *word = stop.cast_signed();
    }
    words
}

/// Refuses what makes no sense and what the device cannot do.
pub(super) fn check_params(params: &SamplingParams, vocab: i64) -> Result<(), ModelError> {
    sampling::check(params, vocab)?;
    if params.min_new_tokens > 0 && params.stop_token_ids.len() > MOST_STOPS {
        return Err(ModelError::Input(format!(
            "min_new_tokens goes with at most {MOST_STOPS} stop tokens on a GPU; there are {}",
            params.stop_token_ids.len()
        )));
    }
    Ok(())
}

/// Pages that a request's own tokens can need: its last token is never run.
pub(super) fn own_page_count(request: &SessionRequest) -> usize {
    (request.params.max_new_tokens - 1).div_ceil(PAGE)
}

/// Requests in their order, with the prompts that they name.
pub(super) type Queue = VecDeque<Waiting>;

#[cfg(test)]
mod tests {
    use engine_core::policy::GenerationRequest;

    use super::*;

    fn request(params: SamplingParams) -> SessionRequest {
        SessionRequest {
            request: GenerationRequest {
                prompt: Arc::new(TokenizedPrompt::default()),
                prompt_stream: 0x0123_4567_89ab_cdef,
                sample: 3,
            },
            params: Arc::new(params),
            top_logprobs: 0,
        }
    }

    fn sequence(params: SamplingParams) -> Sequence {
        Sequence {
            id: 1,
            prompt: 0,
            request: request(params),
            own_pages: Vec::new(),
            launched: 1,
            tokens: Vec::new(),
            finish: None,
        }
    }

    #[test]
    fn a_sequence_ends_at_a_stop_token_that_is_not_too_early_or_at_its_length() {
        let mut ended = sequence(SamplingParams {
            max_new_tokens: 4,
            min_new_tokens: 2,
            stop_token_ids: vec![9],
            ..SamplingParams::default()
        });
        // As on the CPU: two tokens come before the one that ends.
        assert_eq!((ended.take(9), ended.take(9)), (None, None));
        assert_eq!(ended.take(9), Some(FinishReason::Stop));
        let mut long = sequence(SamplingParams {
            max_new_tokens: 2,
            ..SamplingParams::default()
        });
        assert!(long.goes_on());
        assert_eq!(
            (long.take(5), long.take(6)),
            (None, Some(FinishReason::Length))
        );
        assert!(!long.goes_on());
    }

    #[test]
    fn words_are_where_the_kernel_reads_them() {
        let params = SamplingParams {
            temperature: 0.5,
            stop_token_ids: vec![7, 8],
            seed: 5,
            ..SamplingParams::default()
        };
        let words = param_words(&request(params));
        assert_eq!(words[0], 0x89ab_cdef_u32.cast_signed());
        assert_eq!(words[1], 0x0123_4567);
        assert_eq!((words[2], words[4]), (5, 3));
        assert_eq!(f32::from_bits(words[5].cast_unsigned()), 0.5);
        assert_eq!((words[14], words[15], words[16]), (2, 7, 8));
    }
}
