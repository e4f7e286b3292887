//! What changes a row's logits before its distribution is taken: penalties and forbidden tokens. And the check of the
//! parameters.

use engine_core::error::ModelError;
use engine_core::policy::SamplingParams;
use tch::{Kind, Tensor};

use super::Choice;

/// How often a row has each token that penalties look at.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    /// Token and how often the completion has it, by token; 0 for those that only the prompt has.
    entries: Vec<(u32, u32)>,
}

impl Counts {
    /// Counts for a prompt, if anything is penalised.
    pub(crate) fn new(params: &SamplingParams, prompt: &[u32]) -> Option<Self> {
        let mut entries = Vec::new();
        if params.repetition_penalty != 1.0 {
            entries.extend(prompt.iter().map(|token| (*token, 0)));
            entries.sort_unstable();
            entries.dedup();
        } else if params.presence_penalty == 0.0 && params.frequency_penalty == 0.0 {
            return None;
        }
        Some(Self { entries })
    }

    /// Counts a token of the completion.
    pub(crate) fn add(&mut self, token: u32) {
        match self.entries.binary_search_by_key(&token, |entry| entry.0) {
            Ok(place) => self.entries[place].1 += 1,
            Err(place) => self.entries.insert(place, (token, 1)),
        }
    }

    fn penalise(&self, logits: &mut [f32], params: &SamplingParams) {
        let repetition = params.repetition_penalty as f32;
        for (token, count) in &self.entries {
            let logit = &mut logits[*token as usize];
            *logit = if *logit < 0.0 {
                *logit * repetition
            } else {
                *logit / repetition
            };
            if *count > 0 {
                *logit -= (f64::from(*count) * params.frequency_penalty) as f32;
                *logit -= params.presence_penalty as f32;
            }
        }
    }
}

/// Whether a row's logits change before the temperature.
pub(super) fn adjusts(choice: &Choice<'_>) -> bool {
    let params = choice.params;
    choice.counts.is_some() || !params.allowed_token_ids.is_empty() || forbids_stop(choice)
}

fn forbids_stop(choice: &Choice<'_>) -> bool {
    choice.position < choice.params.min_new_tokens && !choice.params.stop_token_ids.is_empty()
}

/// Logits after penalties, forbidden tokens at minus infinity.
///
/// # Shapes
/// - `logits_nv`: `[n, v]`, and so is the result
pub(super) fn adjusted(logits_nv: &Tensor, choices: &[Choice<'_>], vocab: usize) -> Tensor {
    if !choices.iter().any(adjusts) {
        return logits_nv.shallow_clone();
    }
    let mut values = vec![0.0_f32; choices.len() * vocab];
    let count = values.len();
    logits_nv.to_kind(Kind::Float).copy_data(&mut values, count);
    for (logits, choice) in values.chunks_mut(vocab).zip(choices) {
        adjust(logits, choice);
    }
    Tensor::from_slice(&values).view([choices.len() as i64, vocab as i64])
}

fn adjust(logits: &mut [f32], choice: &Choice<'_>) {
    let params = choice.params;
    if let Some(counts) = choice.counts {
        counts.penalise(logits, params);
    }
    if !params.allowed_token_ids.is_empty() {
        let allowed: Vec<(usize, f32)> = params
            .allowed_token_ids
            .iter()
            .map(|token| (*token as usize, logits[*token as usize]))
            .collect();
        logits.fill(f32::NEG_INFINITY);
        for (token, logit) in allowed {
            logits[token] = logit;
        }
    }
    if forbids_stop(choice) {
        for token in &params.stop_token_ids {
            // A tokenizer can name end tokens that the model has no row for.
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Checks parameters against a vocabulary.
///
/// # Errors
/// [`ModelError::Input`] with the first value that cannot be used.
pub(crate) fn check(params: &SamplingParams, vocab: i64) -> Result<(), ModelError> {
    let fault = |message: String| Err(ModelError::Input(message));
    if params.max_new_tokens == 0 {
        return fault("max_new_tokens is 0; ask for at least one token".to_owned());
    }
    if params.min_new_tokens > params.max_new_tokens {
        return fault(format!(
            "min_new_tokens is {}, above max_new_tokens {}",
            params.min_new_tokens, params.max_new_tokens
        ));
    }
    let shares = [("top_p", params.top_p), ("min_p", params.min_p)];
    for (name, value) in shares {
        if !(0.0..=1.0).contains(&value) {
            return fault(format!("{name} is {value} and must be between 0 and 1"));
        }
    }
    if !(params.temperature.is_finite() && params.temperature >= 0.0) {
        return fault(format!(
            "temperature is {} and must be at least 0",
            params.temperature
        ));
    }
    if !(params.repetition_penalty.is_finite() && params.repetition_penalty > 0.0) {
        return fault(format!(
            "repetition_penalty is {} and must be above 0",
            params.repetition_penalty
        ));
    }
    let penalties = [
        ("presence_penalty", params.presence_penalty),
        ("frequency_penalty", params.frequency_penalty),
    ];
    for (name, value) in penalties {
        if !value.is_finite() {
            return fault(format!("{name} is {value} and must be a finite number"));
        }
    }
    let allowed = &params.allowed_token_ids;
    if let Some(token) = allowed.iter().find(|token| i64::from(**token) >= vocab) {
        return fault(format!(
            "allowed token {token} is not below vocab_size {vocab}"
        ));
    }
    let is_stop = |token: &u32| params.stop_token_ids.contains(token);
    if params.min_new_tokens > 0 && !allowed.is_empty() && allowed.iter().all(is_stop) {
        return fault(format!(
            "min_new_tokens is {}, but all allowed tokens end the completion",
            params.min_new_tokens
        ));
    }
    Ok(())
}
