//! Checkpoints of train stages: where a stage was, so that it goes on from there after it was broken off.
//!
//! A checkpoint lies under the key of its stage: files by content, and last, with a create-only put, the object that names
//! them. The two latest are kept, so that there is one to go on from even when the latest turns out damaged.

use std::collections::BTreeMap;
use std::path::Path;

use engine_core::artifact::FileRef;
use engine_core::{Digest, ModelFolder, PartRef};
use serde::{Deserialize, Serialize};

use crate::external::{folder_digest, folder_files};
use crate::manifest::COMMIT_ATTEMPTS;
use crate::model::object;
use crate::{Result, Store, StoreError, layout};

/// How many checkpoints of a stage are kept.
const KEPT: usize = 2;
/// How often a checkpoint that goes while it is copied is looked for anew.
const RESTORE_ATTEMPTS: usize = 10;

/// Where a stage was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCheckpoint {
    /// Key of the stage.
    pub key: Digest,
    /// Steps done.
    pub step: u64,
    /// Files that the operator wrote.
    pub folder: ModelFolder,
    /// Parts written until then, by output port.
    pub outputs: BTreeMap<String, Vec<PartRef>>,
    /// The operator's own value.
    pub state: serde_json::Value,
}

impl Store {
    /// Commits where a stage is: a copy of the files of a local folder, the parts written so far and a value of the operator's
    /// own. All but the two latest checkpoints of the stage are removed; that failing is no error.
    ///
    /// # Errors
    /// When the folder cannot be read or the store fails.
    pub fn write_checkpoint(
        &self,
        stage_key: &Digest,
        step: u64,
        folder: &Path,
        outputs: BTreeMap<String, Vec<PartRef>>,
        state: serde_json::Value,
    ) -> Result<StoredCheckpoint> {
        let checkpoint = StoredCheckpoint {
            key: stage_key.clone(),
            step,
            folder: self.import_checkpoint(stage_key, folder)?,
            outputs,
            state,
        };
        let path = layout::checkpoint(stage_key, step);
        for _ in 0..COMMIT_ATTEMPTS {
            if self.create_json(&path, &checkpoint)? {
                self.remove_old_checkpoints(stage_key);
                return Ok(checkpoint);
            }
            // The stage ran to this step before, here or in another process.
            if let Some(theirs) = self.usable_checkpoint(&path)? {
                return Ok(theirs);
            }
            self.remove(&path)?;
        }
        Err(StoreError::AlreadyExists { path })
    }

    /// The latest checkpoint of a stage whose objects are all there in full size.
    ///
    /// # Errors
    /// When the store fails.
    pub fn latest_checkpoint(&self, stage_key: &Digest) -> Result<Option<StoredCheckpoint>> {
        for path in self.checkpoint_paths(stage_key)?.iter().rev() {
            if let Some(checkpoint) = self.usable_checkpoint(path)? {
                return Ok(Some(checkpoint));
            }
        }
        Ok(None)
    }

    /// Puts the files of the latest checkpoint of a stage into a local folder and returns the checkpoint; nothing if there is none.
    /// The files are the reader's own: whoever else runs the stage may remove the checkpoint meanwhile.
    ///
    /// # Errors
    /// When the folder cannot be written or the store fails.
    pub fn restore_checkpoint(
        &self,
        stage_key: &Digest,
        to: &Path,
    ) -> Result<Option<StoredCheckpoint>> {
        for _ in 0..RESTORE_ATTEMPTS {
            let Some(checkpoint) = self.latest_checkpoint(stage_key)? else {
                return Ok(None);
            };
            match self.copy_checkpoint(&checkpoint, to) {
                Ok(()) => return Ok(Some(checkpoint)),
                // It went while it was copied; there is a later one, or the stage is finished.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn copy_checkpoint(&self, checkpoint: &StoredCheckpoint, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to).map_err(StoreError::file("make the folder", to))?;
        for file in &checkpoint.folder.files {
            let target = to.join(&file.name);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(StoreError::file("make the folder", parent))?;
            }
            // What an attempt before this one left.
            let _ = std::fs::remove_file(&target);
            let source = self.local_path(&object(&checkpoint.folder, file));
            // A second name for the same file costs nothing and outlives the first one.
            if source.is_none_or(|source| std::fs::hard_link(source, &target).is_err()) {
                let one = ModelFolder {
                    files: vec![file.clone()],
                    ..checkpoint.folder.clone()
                };
                self.copy_model(&one, to)?;
            }
        }
        Ok(())
    }

    /// Removes all checkpoints of a stage that is committed. What cannot be removed is left to the garbage collection.
    pub fn remove_checkpoints(&self, stage_key: &Digest) {
        self.remove_checkpoints_but(stage_key, 0);
    }

    fn remove_old_checkpoints(&self, stage_key: &Digest) {
        self.remove_checkpoints_but(stage_key, KEPT);
    }

    /// Removes all but the latest ones; nothing depends on it.
    fn remove_checkpoints_but(&self, stage_key: &Digest, kept: usize) {
        let Ok(paths) = self.checkpoint_paths(stage_key) else {
            return;
        };
        let old = paths.len().saturating_sub(kept);
        let folder_of = |path: &String| {
            self.get_json::<StoredCheckpoint>(path)
                .ok()
                .map(|checkpoint| checkpoint.folder.path)
        };
        // Checkpoints whose files are the same share them.
        let used: Vec<String> = paths[old..].iter().filter_map(folder_of).collect();
        for path in &paths[..old] {
            let folder = folder_of(path);
            if self.remove(path).is_err() {
                continue;
            }
            let unused = folder.filter(|folder| !used.contains(folder));
            let files = unused.and_then(|folder| self.list(&folder).ok());
            for file in files.into_iter().flatten() {
                // What is left is garbage like any other.
                let _ = self.remove(file.location.as_ref());
            }
        }
    }

    /// Paths of what commits the checkpoints of a stage, by step.
    fn checkpoint_paths(&self, stage_key: &Digest) -> Result<Vec<String>> {
        let folder = layout::checkpoints(stage_key);
        let mut paths: Vec<String> = self
            .list(&folder)?
            .into_iter()
            .map(|meta| meta.location.to_string())
            .filter(|path| is_checkpoint(&folder, path))
            .collect();
        paths.sort();
        Ok(paths)
    }

    fn usable_checkpoint(&self, path: &str) -> Result<Option<StoredCheckpoint>> {
        let checkpoint: StoredCheckpoint = match self.get_json(path) {
            Ok(checkpoint) => checkpoint,
            Err(StoreError::NotFound { .. } | StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let files = checkpoint.folder.files.iter();
        let files = files.map(|file| (object(&checkpoint.folder, file), file.bytes));
        let parts = checkpoint.outputs.values().flatten();
        let parts = parts.map(|part| (part.path.clone(), part.bytes));
        for (path, bytes) in files.chain(parts) {
            if self.size(&path)? != Some(bytes) {
                return Ok(None);
            }
        }
        Ok(Some(checkpoint))
    }

    /// Copies the files of a folder, which may have none.
    fn import_checkpoint(&self, stage_key: &Digest, folder: &Path) -> Result<ModelFolder> {
        let files = folder_files(folder)?;
        let digest = folder_digest(&files);
        let imported = ModelFolder {
            path: layout::checkpoint_files(stage_key, &digest),
            digest,
            files,
        };
        for file in &imported.files {
            self.import_file(&object(&imported, file), &folder.join(&file.name), file)?;
        }
        Ok(imported)
    }

    fn import_file(&self, to: &str, from: &Path, file: &FileRef) -> Result<()> {
        self.create_from_file(to, from, file.bytes)
    }
}

/// Whether an object went that was there a moment ago.
fn is_gone(error: &StoreError) -> bool {
    match error {
        StoreError::NotFound { .. } => true,
        StoreError::File { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Whether it is the object that commits a checkpoint, and none of its files.
pub(crate) fn is_checkpoint(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder)
        .and_then(|name| name.strip_prefix('/')?.strip_suffix(".json"))
        .is_some_and(|step| !step.is_empty() && step.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
