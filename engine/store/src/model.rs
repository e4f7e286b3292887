//! Model folders: copied in file by file, named by their content, and handed out as local folders.

use std::path::{Path, PathBuf};

use engine_core::ModelFolder;
use engine_core::artifact::FileRef;

use crate::external::{folder_digest, folder_files};
use crate::{Result, Store, StoreError, layout};

/// Larger files are copied in pieces.
const ONE_PUT_BYTES: u64 = 64 << 20;

impl Store {
    /// Copies the files of a local folder into the store.
    ///
    /// # Errors
    /// When the folder has no files, cannot be read, or the store fails.
    pub fn import_model(&self, folder: &Path) -> Result<ModelFolder> {
        let files = folder_files(folder)?;
        if files.is_empty() {
            return Err(StoreError::Rows(format!(
                "no model in {}: the folder has no files",
                folder.display()
            )));
        }
        let digest = folder_digest(&files);
        let model = ModelFolder {
            path: layout::model(&digest),
            digest,
            files,
        };
        for file in &model.files {
            let (from, to) = (folder.join(&file.name), object(&model, file));
            if file.bytes > ONE_PUT_BYTES {
                self.create_from_file(&to, &from, file.bytes)?;
            } else if self.size(&to)? != Some(file.bytes) {
                let bytes = std::fs::read(&from).map_err(StoreError::file("read", &from))?;
                self.create_content(&to, bytes)?;
            }
        }
        Ok(model)
    }

    /// A local folder with the model's files and no others: the store's own when it is on the local disk, else a copy
    /// that is kept for the next time. Read-only.
    ///
    /// # Errors
    /// When a file is missing, has another size than recorded, or the store fails.
    pub fn local_model_folder(&self, model: &ModelFolder) -> Result<PathBuf> {
        if let Some(folder) = self.local_path(&model.path) {
            for file in &model.files {
                self.check_size(&object(model, file), file.bytes)?;
            }
            if !has_strays(model, &folder)? {
                return Ok(folder);
            }
        }
        let cache = std::env::temp_dir().join("metis-flow-models");
        let folder = cache.join(model.digest.as_str());
        if folder.is_dir() {
            return Ok(folder);
        }
        std::fs::create_dir_all(&cache).map_err(StoreError::file("make the folder", &cache))?;
        let partial = tempfile::Builder::new()
            .prefix("partial-")
            .tempdir_in(&cache)
            .map_err(StoreError::file("make a folder in", &cache))?;
        self.copy_model(model, partial.path())?;
        match std::fs::rename(partial.path(), &folder) {
            Ok(()) => {
                // It has its final name; there is nothing left to remove.
                let _ = partial.keep();
                Ok(folder)
            }
            // Somebody else was faster.
            Err(_) if folder.is_dir() => Ok(folder),
            Err(error) => Err(StoreError::file("make the folder", folder)(error)),
        }
    }

    /// Copies the model's files into a local folder, which is made when it does not exist.
    ///
    /// # Errors
    /// When a file is missing in the store or the folder cannot be written.
    pub fn copy_model(&self, model: &ModelFolder, folder: &Path) -> Result<()> {
        for file in &model.files {
            let (from, to) = (object(model, file), folder.join(&file.name));
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(StoreError::file("make the folder", parent))?;
            }
            match self.local_path(&from) {
                Some(source) => {
                    self.check_size(&from, file.bytes)?;
                    std::fs::copy(source, &to).map_err(StoreError::file("write", &to))?;
                }
                None => {
                    std::fs::write(&to, self.get(&from)?)
                        .map_err(StoreError::file("write", &to))?;
                }
            }
        }
        Ok(())
    }

    fn check_size(&self, path: &str, bytes: u64) -> Result<()> {
        match self.size(path)? {
            Some(size) if size == bytes => Ok(()),
            Some(size) => Err(StoreError::Corrupt {
                path: path.to_owned(),
                message: format!("it has {size} bytes instead of {bytes}"),
            }),
            None => Err(StoreError::NotFound {
                path: path.to_owned(),
            }),
        }
    }
}

/// Whether a folder has files that are none of the model's: what a process left behind that was killed while it wrote.
/// Whoever copies the folder would make another model of it.
fn has_strays(model: &ModelFolder, folder: &Path) -> Result<bool> {
    let failed = || StoreError::file("list", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let is_known = model
            .files
            .iter()
            .any(|file| Path::new(&file.name).iter().next() == Some(name.as_os_str()));
        if !is_known {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Path of a file of a model in the store.
pub(crate) fn object(model: &ModelFolder, file: &FileRef) -> String {
    format!("{}/{}", model.path, file.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("model.safetensors"), [7_u8; 1000]).unwrap();
        folder
    }

    #[test]
    fn a_model_goes_in_and_comes_out_of_any_store() {
        let source = folder();
        let disk = tempfile::tempdir().unwrap();
        for store in [
            Store::open("memory://").unwrap(),
            Store::open(disk.path().to_str().unwrap()).unwrap(),
        ] {
            let model = store.import_model(source.path()).unwrap();
            assert_eq!(store.import_model(source.path()).unwrap(), model);
            let local = store.local_model_folder(&model).unwrap();
            assert_eq!(
                std::fs::read(local.join("model.safetensors")).unwrap(),
                [7_u8; 1000]
            );
            let copy = tempfile::tempdir().unwrap();
            store.copy_model(&model, &copy.path().join("out")).unwrap();
            assert_eq!(
                store.import_model(&copy.path().join("out")).unwrap().digest,
                model.digest
            );
        }
    }

    #[test]
    fn a_cut_file_is_noticed() {
        let disk = tempfile::tempdir().unwrap();
        let store = Store::open(disk.path().to_str().unwrap()).unwrap();
        let model = store.import_model(folder().path()).unwrap();
        std::fs::write(
            disk.path().join(&model.path).join("model.safetensors"),
            [7_u8; 10],
        )
        .unwrap();
        let error = store.local_model_folder(&model).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn what_a_killed_process_left_behind_is_not_handed_out() {
        let disk = tempfile::tempdir().unwrap();
        let store = Store::open(disk.path().to_str().unwrap()).unwrap();
        let source = folder();
        std::fs::write(source.path().join("note"), format!("{:?}", disk.path())).unwrap();
        let model = store.import_model(source.path()).unwrap();
        let own = disk.path().join(&model.path);
        assert_eq!(
            store.local_model_folder(&model).unwrap(),
            own.canonicalize().unwrap()
        );
        std::fs::write(own.join("config.json#1"), "{").unwrap();
        let clean = store.local_model_folder(&model).unwrap();
        assert!(!clean.join("config.json#1").exists());
        assert_eq!(store.import_model(&clean).unwrap(), model);
        std::fs::remove_dir_all(clean).unwrap();
    }

    #[test]
    fn a_folder_without_files_is_no_model() {
        let store = Store::open("memory://").unwrap();
        let empty = tempfile::tempdir().unwrap();
        assert!(
            store
                .import_model(empty.path())
                .unwrap_err()
                .to_string()
                .contains("has no files")
        );
    }
}
