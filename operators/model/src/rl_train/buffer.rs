//! Groups that wait for a later step, as a file of a checkpoint.
//!
//! Floats are written as their bits, so that what is read is what was written. Prompts are not in it: they are the rows of the stage.

use std::path::Path;
use std::sync::Arc;

use engine_core::OperatorError;
use engine_core::policy::{Completion, FinishReason, TokenizedPrompt};
use operators_verdict::{Outcome, Reward, Verdict};
use serde::{Deserialize, Serialize};

use super::group::{Fate, Group, Origin, Rollout};
use crate::checkpoint::file_error;

/// The file in the folder of the stage's own files.
const FILE: &str = "buffer.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedGroup {
    row: usize,
    step: u64,
    round: u32,
    seed: u64,
    policy_version: u64,
    rollouts: Vec<SavedRollout>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRollout {
    sample: u32,
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<u32>,
    truncated_logprobs: Vec<u32>,
    entropies: Vec<u32>,
    finish_reason: FinishReason,
    recomputed_logprobs: Option<Vec<u32>>,
    outcome: Outcome,
    extracted: Option<String>,
    format_ok: bool,
    /// Total and parts.
    reward: Option<(u64, Vec<u64>)>,
}

/// Writes waiting groups into a folder.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn save(groups: &[Group], folder: &Path) -> Result<(), OperatorError> {
    let saved: Vec<SavedGroup> = groups.iter().map(SavedGroup::of).collect();
    let path = folder.join(FILE);
    let text = serde_json::to_vec(&saved).map_err(|error| internal(&error.to_string()))?;
    std::fs::write(&path, text).map_err(file_error("file could not be written", &path))
}

/// Reads the groups that [`save`] wrote. `prompt` gives the tokens of a row.
///
/// # Errors
/// When the file is not there or cannot be understood.
pub(super) fn load(
    folder: &Path,
    prompt: &mut dyn FnMut(usize) -> Result<Arc<TokenizedPrompt>, OperatorError>,
) -> Result<Vec<Group>, OperatorError> {
    let path = folder.join(FILE);
    let text = std::fs::read(&path).map_err(file_error("file could not be read", &path))?;
    let saved: Vec<SavedGroup> =
        serde_json::from_slice(&text).map_err(|error| internal(&error.to_string()))?;
    saved
        .into_iter()
        .map(|group| {
            let prompt = prompt(group.row)?;
            Ok(group.restore(prompt))
        })
        .collect()
}

fn internal(message: &str) -> OperatorError {
    OperatorError::Internal(format!("the buffer of a checkpoint: {message}"))
}

fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn from_bits(bits: Vec<u32>) -> Vec<f32> {
    bits.into_iter().map(f32::from_bits).collect()
}

impl SavedGroup {
    fn of(group: &Group) -> Self {
        let Origin {
            step,
            round,
            seed,
            policy_version,
        } = group.origin;
        Self {
            row: group.row,
            step,
            round,
            seed,
            policy_version,
            rollouts: group.rollouts.iter().map(SavedRollout::of).collect(),
        }
    }

    fn restore(self, prompt: Arc<TokenizedPrompt>) -> Group {
        let rollouts = self.rollouts.into_iter().map(SavedRollout::restore);
        Group {
            row: self.row,
            prompt,
            origin: Origin {
                step: self.step,
                round: self.round,
                seed: self.seed,
                policy_version: self.policy_version,
            },
            fate: Fate::Buffered,
            rollouts: rollouts.collect(),
        }
    }
}

impl SavedRollout {
    fn of(rollout: &Rollout) -> Self {
        let completion = &rollout.completion;
        Self {
            sample: rollout.sample,
            text: rollout.text.clone(),
            token_ids: completion.token_ids.clone(),
            logprobs: to_bits(&completion.logprobs),
            truncated_logprobs: to_bits(&completion.truncated_logprobs),
            entropies: to_bits(&completion.entropies),
            finish_reason: completion.finish_reason,
            recomputed_logprobs: rollout.recomputed_logprobs.as_deref().map(to_bits),
            outcome: rollout.verdict.outcome,
            extracted: rollout.verdict.extracted.clone(),
            format_ok: rollout.verdict.format_ok,
            reward: rollout.reward.as_ref().map(|reward| {
                let parts = reward.parts.iter().map(|part| part.to_bits());
                (reward.total.to_bits(), parts.collect())
            }),
        }
    }

    fn restore(self) -> Rollout {
        Rollout {
            sample: self.sample,
            completion: Completion {
                token_ids: self.token_ids,
                logprobs: from_bits(self.logprobs),
                truncated_logprobs: from_bits(self.truncated_logprobs),
                entropies: from_bits(self.entropies),
                finish_reason: self.finish_reason,
            },
            text: self.text,
            verdict: Verdict {
                outcome: self.outcome,
                extracted: self.extracted,
                format_ok: self.format_ok,
            },
            reward: self.reward.map(|(total, parts)| Reward {
                total: f64::from_bits(total),
                parts: parts.into_iter().map(f64::from_bits).collect(),
            }),
            reward_kl: None,
            recomputed_logprobs: self.recomputed_logprobs.map(from_bits),
            reference_logprobs: Vec::new(),
            advantages: Vec::new(),
        }
    }
}
