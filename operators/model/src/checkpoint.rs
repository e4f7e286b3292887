//! Checkpoints of training stages: taking up where an earlier run was broken off, and writing where this one is.
//!
//! Data order, seeds and learning rates follow from the step alone, so a checkpoint holds the policy's state and the few
//! figures below.

use engine_core::{OperatorError, Policy, StageIo};
use serde::{Deserialize, Serialize};

use crate::sampling::progress;

/// What a training stage carries from step to step beside the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    /// Tokens sampled or trained on so far.
    pub(crate) tokens: u64,
    /// The figure beside the progress bar.
    pub(crate) note: String,
}

/// Takes up the latest checkpoint, if there is one. Returns the steps done.
///
/// # Errors
/// When the store fails, or the files are not a state of this model.
pub(crate) fn resume(
    policy: &mut dyn Policy,
    steps: u64,
    io: &mut dyn StageIo,
) -> Result<(u64, Carried), OperatorError> {
    let Some(checkpoint) = io.resume()? else {
        return Ok((0, Carried::default()));
    };
    let carried: Carried = serde_json::from_value(checkpoint.state)
        .map_err(|error| OperatorError::Internal(format!("a checkpoint's own value: {error}")))?;
    policy.load_state(&checkpoint.folder)?;
    tracing::info!(step = checkpoint.step, "training goes on");
    tell(checkpoint.step, steps, &carried, io);
    Ok((checkpoint.step, carried))
}

/// Ends a step: tells of it, and writes a checkpoint if it is time for one and there is a step to come.
///
/// # Errors
/// When the state cannot be written or the store fails.
pub(crate) fn end_step(
    policy: &dyn Policy,
    step: u64,
    steps: u64,
    carried: &Carried,
    io: &mut dyn StageIo,
) -> Result<(), OperatorError> {
    tell(step, steps, carried, io);
    if step >= steps || !io.wants_checkpoint() {
        return Ok(());
    }
    let folder = io.scratch().join(format!("checkpoint-{step}"));
    policy.save_state(&folder)?;
    let state = serde_json::to_value(carried)
        .map_err(|error| OperatorError::Internal(format!("a checkpoint's own value: {error}")))?;
    io.checkpoint(step, &folder, state)?;
    std::fs::remove_dir_all(&folder).map_err(|source| OperatorError::File {
        message: "folder could not be removed".to_owned(),
        path: folder,
        source,
    })
}

fn tell(step: u64, steps: u64, carried: &Carried, io: &dyn StageIo) {
    io.event(progress(
        "steps",
        step,
        steps,
        carried.tokens,
        carried.note.clone(),
    ));
}
