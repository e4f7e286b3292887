//! Model folders: copied in file by file, named by their content, and handed out as local folders.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use engine_core::artifact::FileRef;
use engine_core::{Digest, ModelFolder};

use crate::cache_folder::cache_folder;
use crate::external::{file_digest, folder_digest, folder_files};
use crate::{Result, Store, StoreError, layout};

/// Larger files are copied in pieces.
const ONE_PUT_BYTES: u64 = 64 << 20;
/// Name of a folder of the cache that is not complete.
const PARTIAL: &str = "partial-";
/// How often a copy tries to get its place in the cache against other processes.
const PLACE_ATTEMPTS: usize = 8;
/// How long a model stays in the cache that nobody uses.
const KEEP_UNUSED: Duration = Duration::from_hours(30 * 24);
/// How long a copy may take.
const KEEP_PARTIAL: Duration = Duration::from_hours(24);

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
        let paths: Vec<String> = model
            .files
            .iter()
            .map(|file| object(&model, file))
            .collect();
        let sizes = self.sizes(&paths.iter().map(String::as_str).collect::<Vec<_>>())?;
        for ((file, to), size) in model.files.iter().zip(&paths).zip(sizes) {
            let from = folder.join(&file.name);
            if size == Some(file.bytes) {
                continue;
            }
            if file.bytes > ONE_PUT_BYTES {
                self.create_from_file(to, &from, file.bytes)?;
            } else {
                let bytes = std::fs::read(&from).map_err(StoreError::file("read", &from))?;
                if bytes.len() as u64 != file.bytes {
                    return Err(StoreError::Changed { path: from });
                }
                self.create_content(to, bytes)?;
            }
        }
        Ok(model)
    }

    /// A local folder with the model's files and no others: the store's own when it is on the local disk, else a copy in
    /// the user's cache folder that is kept for the next time. Read-only.
    ///
    /// # Errors
    /// When a file is missing, is not what was recorded, or the store fails.
    pub fn local_model_folder(&self, model: &ModelFolder) -> Result<PathBuf> {
        if let Some(folder) = self.local_path(&model.path) {
            for file in &model.files {
                self.check_size(&object(model, file), file.bytes)?;
            }
            if !has_strays(model, &folder)? {
                return Ok(folder);
            }
        }
        let cache = cache_folder("models")
            .map_err(StoreError::file("make the cache folder for", "models"))?;
        self.cached_model_folder(model, &cache)
    }

    fn cached_model_folder(&self, model: &ModelFolder, cache: &Path) -> Result<PathBuf> {
        let folder = cache.join(model.digest.as_str());
        if is_intact(model, &folder) {
            mark_used(&folder);
            return Ok(folder);
        }
        sweep(cache);
        let partial = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(cache)
            .map_err(StoreError::file("make a folder in", cache))?;
        self.copy_model(model, partial.path())?;
        for _ in 0..PLACE_ATTEMPTS {
            if std::fs::rename(partial.path(), &folder).is_ok() {
                // It has its final name; there is nothing left to remove.
                let _ = partial.keep();
                mark_used(&folder);
                return Ok(folder);
            }
            // Somebody else was faster, or what is there is damaged and makes room.
            if is_intact(model, &folder) {
                return Ok(folder);
            }
            let aside = tempfile::Builder::new()
                .prefix(PARTIAL)
                .tempdir_in(cache)
                .map_err(StoreError::file("make a folder in", cache))?;
            let _ = std::fs::rename(&folder, aside.path());
        }
        Err(StoreError::File {
            action: "put a model into the cache folder",
            path: folder,
            source: std::io::Error::other("others keep changing it"),
        })
    }

    /// Copies the model's files into a local folder, which is made when it does not exist. What comes from a store that is
    /// not on the local disk is checked by its digests.
    ///
    /// # Errors
    /// When a file is missing in the store or damaged, or the folder cannot be written.
    pub fn copy_model(&self, model: &ModelFolder, folder: &Path) -> Result<()> {
        for file in &model.files {
            let (from, to) = (object(model, file), folder.join(&file.name));
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(StoreError::file("make the folder", parent))?;
            }
            self.check_size(&from, file.bytes)?;
            match self.local_path(&from) {
                Some(source) => {
                    std::fs::copy(source, &to).map_err(StoreError::file("write", &to))?;
                }
                None => {
                    let failed = || StoreError::file("write", &to);
                    let mut copy = std::fs::File::create(&to).map_err(failed())?;
                    let mut hasher = blake3::Hasher::new();
                    self.read_to_file(&from, file.bytes, &mut copy, |bytes| {
                        hasher.update(bytes);
                    })?;
                    if Digest::from(hasher.finalize()) != file.digest {
                        return Err(StoreError::Corrupt {
                            path: from,
                            message: "its bytes do not have the digest that was recorded"
                                .to_owned(),
                        });
                    }
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

/// Whether a folder of the cache is the model: neither cut nor altered nor with files that are none of the model's.
fn is_intact(model: &ModelFolder, folder: &Path) -> bool {
    let is_file = |file: &FileRef| {
        let path = folder.join(&file.name);
        std::fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes)
            && file_digest(&path).is_ok_and(|(digest, _)| digest == file.digest)
    };
    folder.is_dir()
        && matches!(has_strays(model, folder), Ok(false))
        && model.files.iter().all(is_file)
}

/// Notes that a folder of the cache is in use: its age counts from the last time.
fn mark_used(folder: &Path) {
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.set_modified(now());
    }
}

/// Removes from the cache what was not used for long, and what killed processes left half done. Failing harms nobody.
fn sweep(cache: &Path) {
    let Ok(entries) = std::fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let is_partial = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PARTIAL.as_bytes());
        let keep = if is_partial {
            KEEP_PARTIAL
        } else {
            KEEP_UNUSED
        };
        let age = entry
            .metadata()
            .and_then(|of| of.modified())
            .ok()
            .and_then(|used| now().duration_since(used).ok());
        if age.is_some_and(|age| age > keep) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a copy in the cache is kept changes no result"
)]
fn now() -> SystemTime {
    SystemTime::now()
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
    fn a_copy_in_the_cache_is_checked_before_it_is_used_again() {
        let (source, cache) = (folder(), tempfile::tempdir().unwrap());
        let store = Store::open("memory://").unwrap();
        let model = store.import_model(source.path()).unwrap();
        let copy = store.cached_model_folder(&model, cache.path()).unwrap();
        let weights = copy.join("model.safetensors");
        std::fs::write(&weights, [8_u8; 1000]).unwrap();
        std::fs::write(copy.join("stray"), "").unwrap();
        assert_eq!(
            store.cached_model_folder(&model, cache.path()).unwrap(),
            copy
        );
        assert_eq!(std::fs::read(&weights).unwrap(), [7_u8; 1000]);
        assert!(!copy.join("stray").exists());
    }

    #[test]
    fn many_that_need_a_copy_at_once_all_get_it() {
        let (source, cache) = (folder(), tempfile::tempdir().unwrap());
        let store = Store::open("memory://").unwrap();
        let model = store.import_model(source.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let copy = store.cached_model_folder(&model, cache.path()).unwrap();
                    assert!(is_intact(&model, &copy));
                });
            }
        });
        let left = std::fs::read_dir(cache.path()).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn bytes_that_a_store_altered_are_refused() {
        let (source, cache) = (folder(), tempfile::tempdir().unwrap());
        let store = Store::open("memory://").unwrap();
        let model = store.import_model(source.path()).unwrap();
        let weights = format!("{}/model.safetensors", model.path);
        store.remove(&weights).unwrap();
        store.create(&weights, vec![8_u8; 1000]).unwrap();
        let error = store.cached_model_folder(&model, cache.path()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
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
