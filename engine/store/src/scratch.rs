//! Folders for temporary files of a stage, on the store's own disk where it has one.
//!
//! A folder is removed when its stage ends. A process that is killed leaves its folders behind; their names say which
//! process of which machine made them, so that a later run can remove them.

use std::path::{Path, PathBuf};

use crate::{Result, Store, StoreError};

impl Store {
    /// A folder for temporary files of one stage.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let parent = self.scratch_root();
        std::fs::create_dir_all(&parent)
            .map_err(StoreError::file("make the scratch folder", &parent))?;
        let prefix = format!("{}{}-", owner_prefix(), std::process::id());
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&parent)
            .map_err(StoreError::file("make a scratch folder in", parent))
    }

    /// Removes what killed processes of this machine left behind. Nothing depends on it, so that failing is no error.
    pub fn sweep_scratch(&self) {
        let Ok(entries) = std::fs::read_dir(self.scratch_root()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| {
                name.strip_prefix(&owner_prefix())?
                    .split('-')
                    .next()?
                    .parse::<u32>()
                    .ok()
            });
            if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
            {
                // Somebody else may be sweeping too.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn scratch_root(&self) -> PathBuf {
        self.local_root()
            .map_or_else(std::env::temp_dir, |root| root.join("scratch"))
    }
}

/// `stage-<machine>-`, without dashes inside the name of the machine.
fn owner_prefix() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("stage-{host}-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_processes_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let ours = store.scratch().unwrap();
        // Larger than any process number that Linux gives.
        let dead = folder
            .path()
            .join("scratch")
            .join(format!("{}4999999-x", owner_prefix()));
        let foreign = folder.path().join("scratch/stage-othermachine-4999999-x");
        std::fs::create_dir_all(dead.join("model")).unwrap();
        std::fs::create_dir_all(&foreign).unwrap();
        store.sweep_scratch();
        assert!(ours.path().is_dir() && foreign.is_dir() && !dead.exists());
    }
}
