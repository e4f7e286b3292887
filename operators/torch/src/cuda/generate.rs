//! A list of requests through a batch.

use std::collections::HashMap;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, GenerationSession, GenerationWatch,
    SamplingParams, SessionLimits, SessionRequest, TokenizedPrompt,
};

use super::Gpu;
use super::batch::{Batch, Width};
use crate::guard::unguarded;
use crate::model::Model;

/// As `Policy::generate`: what a request gets does not depend on the others, to the last bit as long as `max_concurrent` is the
/// same.
///
/// # Errors
/// As `Policy::generate`.
pub(crate) fn generate(
    gpu: &mut Gpu,
    model: &Model,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    watch: &mut dyn GenerationWatch,
) -> Result<Vec<Completion>, ModelError> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let longest = requests
        .iter()
        .map(|request| request.prompt.token_ids.len())
        .max()
        .unwrap_or(0);
    let limits = SessionLimits {
        // Not fewer for a short list: the width of a step sways the low bits.
        max_concurrent: params.max_concurrent,
        max_tokens: longest + params.max_new_tokens,
    };
    let mut batch = Batch::open(gpu, model, limits, Width::Fixed)?;
    super::note_memory(model.device);
    let params = Arc::new(params.clone());
    let mut places = HashMap::new();
    for index in by_prompt(requests) {
        let id = batch.submit(SessionRequest {
            request: requests[index].clone(),
            params: Arc::clone(&params),
            top_logprobs: 0,
        })?;
        places.insert(id, index);
    }
    let mut completions = vec![Completion::default(); requests.len()];
    let mut reached = GenerationProgress::default();
    while batch.pending() > 0 {
        for token in batch.step()? {
            let index = places[&token.id];
            let completion = &mut completions[index];
            completion.token_ids.push(token.token);
            completion.logprobs.push(token.logprob);
            completion.truncated_logprobs.push(token.truncated_logprob);
            completion.entropies.push(token.entropy);
            reached.tokens += 1;
            if let Some(finish) = token.finish {
                completion.finish_reason = finish;
                reached.sequences += 1;
                unguarded(|| watch.finished(index, completion));
            }
        }
        if unguarded(|| watch.progress(reached)).is_break() {
            return Err(ModelError::Interrupted);
        }
    }
    Ok(completions)
}

/// Indices of the requests, those of a prompt one after the other, so that they share its run.
fn by_prompt(requests: &[GenerationRequest]) -> Vec<usize> {
    let mut first: HashMap<*const TokenizedPrompt, usize> = HashMap::new();
    let mut order: Vec<(usize, usize)> = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            (
                *first.entry(Arc::as_ptr(&request.prompt)).or_insert(index),
                index,
            )
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}
