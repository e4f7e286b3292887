//! Digests of files and folders outside the store: what a stage key has in place of a path.

use std::path::{Path, PathBuf};

use engine_core::Digest;
use engine_core::artifact::FileRef;

use crate::{Result, StoreError};

/// Files that are digested side by side; a folder may have more files than a process gets threads.
const FILES_AT_ONCE: usize = 32;

/// Digest of a file's bytes, or of the names and bytes of a folder's files.
///
/// # Errors
/// When the file or folder cannot be read.
pub fn external_digest(path: &Path) -> Result<Digest> {
    if path.is_dir() {
        Ok(folder_digest(&folder_files(path)?))
    } else {
        Ok(file_digest(path)?.0)
    }
}

/// Digest over the names and contents of files.
pub(crate) fn folder_digest(files: &[FileRef]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"metis-flow folder 1\n");
    for file in files {
        hasher.update(&(file.name.len() as u64).to_le_bytes());
        hasher.update(file.name.as_bytes());
        hasher.update(file.digest.as_str().as_bytes());
    }
    hasher.finalize().into()
}

/// The files of a folder and the folders in it, sorted by name; hidden ones are left out. Files are digested side by side.
pub(crate) fn folder_files(folder: &Path) -> Result<Vec<FileRef>> {
    let mut names = Vec::new();
    collect(folder, "", &mut names)?;
    names.sort();
    let side_by_side = |names: &[(String, PathBuf)]| -> Vec<Result<(Digest, u64)>> {
        std::thread::scope(|scope| {
            let running: Vec<_> = names
                .iter()
                .map(|(_, path)| scope.spawn(move || file_digest(path)))
                .collect();
            running
                .into_iter()
                .map(|thread| thread.join().expect("digesting a file does not panic"))
                .collect()
        })
    };
    let digests: Vec<_> = names.chunks(FILES_AT_ONCE).flat_map(side_by_side).collect();
    names
        .into_iter()
        .zip(digests)
        .map(|((name, _), digest)| {
            digest.map(|(digest, bytes)| FileRef {
                name,
                digest,
                bytes,
            })
        })
        .collect()
}

fn collect(folder: &Path, prefix: &str, names: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let failed = || StoreError::file("list", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if path.is_dir() {
            collect(&path, &format!("{name}/"), names)?;
        } else {
            names.push((name, path));
        }
    }
    Ok(())
}

fn file_digest(path: &Path) -> Result<(Digest, u64)> {
    let failed = || StoreError::file("read", path);
    let mut file = std::fs::File::open(path).map_err(failed())?;
    let mut hasher = blake3::Hasher::new();
    let bytes = std::io::copy(&mut file, &mut HashWriter(&mut hasher)).map_err(failed())?;
    Ok((hasher.finalize().into(), bytes))
}

struct HashWriter<'a>(&'a mut blake3::Hasher);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_folder_does_not_count_but_its_files_do() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, config: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.join("nested")).unwrap();
            std::fs::write(path.join("config.json"), config).unwrap();
            std::fs::write(path.join("nested/weights"), "weights").unwrap();
            std::fs::write(path.join(".hidden"), name).unwrap();
            external_digest(&path).unwrap()
        };
        let (first, moved, changed) = (
            make("first", "{}"),
            make("moved", "{}"),
            make("changed", "{ }"),
        );
        assert_eq!(first, moved);
        assert_ne!(first, changed);
        std::fs::rename(
            folder.path().join("moved/config.json"),
            folder.path().join("moved/other.json"),
        )
        .unwrap();
        assert_ne!(
            external_digest(&folder.path().join("moved")).unwrap(),
            first
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = external_digest(Path::new("/no/such/file"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("/no/such/file"), "{message}");
    }
}
