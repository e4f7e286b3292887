//! Checkpoints of training stages: taking up where an earlier run was broken off, and writing where this one is.
//!
//! Data order, seeds and learning rates follow from the step alone, so a checkpoint holds the policy's state, the few figures
//! below, and what files a stage keeps beside them.

use std::path::{Path, PathBuf};

use engine_core::{OperatorError, Policy, StageIo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sampling::progress;

/// The folder of a checkpoint that a stage's own files are in, beside the policy's.
const OWN_FILES: &str = "stage";

/// What a training stage carries from step to step beside the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried<T = ()> {
    /// Tokens sampled or trained on so far.
    pub(crate) tokens: u64,
    /// The figure beside the progress bar.
    pub(crate) note: String,
    /// What only this kind of stage carries.
    pub(crate) own: T,
}

/// Takes up the latest checkpoint, if there is one. Returns the steps done, what was carried, and the folder of the stage's own
/// files: those that [`end_step_with_files`] asked for. Read-only.
///
/// # Errors
/// When the store fails, or the files are not a state of this model.
pub(crate) fn resume_with_files<T: Default + DeserializeOwned>(
    policy: &mut dyn Policy,
    steps: u64,
    io: &mut dyn StageIo,
) -> Result<(u64, Carried<T>, Option<PathBuf>), OperatorError> {
    let Some(checkpoint) = io.resume()? else {
        return Ok((0, Carried::default(), None));
    };
    let carried: Carried<T> = serde_json::from_value(checkpoint.state)
        .map_err(|error| OperatorError::Internal(format!("a checkpoint's own value: {error}")))?;
    policy.load_state(&checkpoint.folder)?;
    tracing::info!(step = checkpoint.step, "training goes on");
    tell(checkpoint.step, steps, &carried, io);
    let files = checkpoint.folder.join(OWN_FILES);
    let files = files.is_dir().then_some(files);
    Ok((checkpoint.step, carried, files))
}

/// Ends a step: tells of it, and writes a checkpoint if it is time for one and there is a step to come. `write_files` gets a folder
/// for files of the stage's own when a checkpoint is written.
///
/// # Errors
/// When the state cannot be written or the store fails.
pub(crate) fn end_step_with_files<T: Serialize>(
    policy: &dyn Policy,
    step: u64,
    steps: u64,
    carried: &Carried<T>,
    write_files: &mut dyn FnMut(&Path) -> Result<(), OperatorError>,
    io: &mut dyn StageIo,
) -> Result<(), OperatorError> {
    tell(step, steps, carried, io);
    if step >= steps || !io.wants_checkpoint() {
        return Ok(());
    }
    save_now(policy, step, carried, write_files, io)
}

/// Writes a checkpoint, whether it is time for one or not: before a stage ends with an error that is no fault of its state.
///
/// # Errors
/// As [`end_step_with_files`].
pub(crate) fn save_now<T: Serialize>(
    policy: &dyn Policy,
    step: u64,
    carried: &Carried<T>,
    write_files: &mut dyn FnMut(&Path) -> Result<(), OperatorError>,
    io: &mut dyn StageIo,
) -> Result<(), OperatorError> {
    let folder = io.scratch().join(format!("checkpoint-{step}"));
    policy.save_state(&folder)?;
    let own = folder.join(OWN_FILES);
    std::fs::create_dir_all(&own).map_err(file_error("folder could not be made", &own))?;
    write_files(&own)?;
    let state = serde_json::to_value(carried)
        .map_err(|error| OperatorError::Internal(format!("a checkpoint's own value: {error}")))?;
    io.checkpoint(step, &folder, state)?;
    std::fs::remove_dir_all(&folder).map_err(file_error("folder could not be removed", &folder))
}

/// Puts the files of a folder into another one, by a second name where the disk allows it. Neither is to be written to
/// afterwards.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn share_files(from: &Path, to: &Path) -> Result<(), OperatorError> {
    std::fs::create_dir_all(to).map_err(file_error("folder could not be made", to))?;
    let failed = || file_error("folder could not be read", from);
    for entry in std::fs::read_dir(from).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            share_files(&source, &target)?;
        } else if std::fs::hard_link(&source, &target).is_err() {
            std::fs::copy(&source, &target)
                .map_err(file_error("file could not be copied", &source))?;
        }
    }
    Ok(())
}

pub(crate) fn file_error<'a>(
    message: &'a str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> OperatorError + 'a {
    move |source| OperatorError::File {
        message: message.to_owned(),
        path: path.to_owned(),
        source,
    }
}

fn tell<T>(step: u64, steps: u64, carried: &Carried<T>, io: &dyn StageIo) {
    io.event(progress(
        "steps",
        step,
        steps,
        carried.tokens,
        carried.note.clone(),
    ));
}
