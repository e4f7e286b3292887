//! Digests of files and folders outside the store: what a stage key has in place of a path.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use engine_core::artifact::FileRef;
use engine_core::{Digest, ExternalContent};

use crate::dataset::build_reader;
use crate::memo::{Memo, Stat};
use crate::{Result, RowsHasher, StoreError};

/// Files that are digested side by side; a folder may have more files than a process gets threads.
const FILES_AT_ONCE: usize = 32;

/// Digest of what counts of a file or folder. The bytes of a file, or of the names and bytes of a folder's files; or the
/// rows of a Parquet file, or of a folder's Parquet files in the order of their names, whatever the names, compression, row
/// groups and encodings. Other files than Parquet count by their bytes in any case. Digests are remembered.
///
/// # Errors
/// When the file or folder cannot be read, or changes meanwhile.
pub fn external_digest(path: &Path, content: ExternalContent) -> Result<Digest> {
    let parquet = match content {
        ExternalContent::Bytes => Vec::new(),
        ExternalContent::Rows => parquet_files(path)?,
    };
    if !parquet.is_empty() {
        rows_digest(path, &parquet)
    } else if path.is_dir() {
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

/// Digest of a file's bytes and how many there are.
pub(crate) fn file_digest(path: &Path) -> Result<(Digest, u64)> {
    let failed = || StoreError::file("read", path);
    let file = File::open(path).map_err(failed())?;
    let stat = Stat::from(&file.metadata().map_err(failed())?);
    let memo = Memo::of("bytes", path, &[("", stat)]);
    if let Some(digest) = memo.recall() {
        return Ok((digest, stat.bytes));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).map_err(failed())?;
    check_unchanged(path, stat)?;
    let digest = hasher.finalize().into();
    memo.remember(&[("", stat)], &digest);
    Ok((digest, stat.bytes))
}

fn check_unchanged(path: &Path, before: Stat) -> Result<()> {
    let after = std::fs::metadata(path).map_err(StoreError::file("read", path))?;
    if Stat::from(&after) == before {
        return Ok(());
    }
    Err(StoreError::Changed {
        path: path.to_owned(),
    })
}

/// The Parquet files that a path names: itself, or those directly in the folder, sorted by name.
fn parquet_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        let is_parquet = starts_like_parquet(path).map_err(StoreError::file("read", path))?;
        return Ok(is_parquet.then(|| path.to_owned()).into_iter().collect());
    }
    let failed = || StoreError::file("list", path);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.starts_with(b".") && name.ends_with(b".parquet") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn starts_like_parquet(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(start == b"PAR1")
}

fn rows_digest(path: &Path, files: &[PathBuf]) -> Result<Digest> {
    let stat = |path: &PathBuf| -> Result<Stat> {
        let of = std::fs::metadata(path).map_err(StoreError::file("read", path))?;
        Ok(Stat::from(&of))
    };
    let stats = files.iter().map(stat).collect::<Result<Vec<_>>>()?;
    let names = files.iter().map(|file| file.to_str().unwrap_or_default());
    let named: Vec<(&str, Stat)> = names.zip(stats.iter().copied()).collect();
    let memo = Memo::of("rows 1", path, &named);
    if let Some(digest) = memo.recall() {
        return Ok(digest);
    }
    let mut rows = RowsHasher::default();
    let mut columns = Vec::new();
    for (file, stat) in files.iter().zip(&stats) {
        let of_file = file_rows(file, &mut columns).map_err(|error| {
            // A file that is being written reads as damaged.
            check_unchanged(file, *stat).err().unwrap_or(error)
        })?;
        rows.combine(&of_file);
        check_unchanged(file, *stat)?;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"metis-flow external rows 1\n");
    for column in &columns {
        hasher.update(&(column.len() as u64).to_le_bytes());
        hasher.update(column.as_bytes());
    }
    hasher.update(rows.digest().0.as_bytes());
    let digest = hasher.finalize().into();
    memo.remember(&named, &digest);
    Ok(digest)
}

/// Digest of a file's rows. `columns` gets the names of the first file's columns, which count where there are no rows.
fn file_rows(path: &Path, columns: &mut Vec<String>) -> Result<RowsHasher> {
    let damaged =
        |error: String| StoreError::Rows(format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(StoreError::file("read", path))?;
    let reader = build_reader(file, None).map_err(|error| damaged(error.to_string()))?;
    let schema = arrow::record_batch::RecordBatchReader::schema(&reader);
    if columns.is_empty() {
        columns.extend(schema.fields().iter().map(|field| field.name().clone()));
    }
    let mut rows = RowsHasher::try_new(&schema)?;
    for batch in reader {
        rows.update(&batch.map_err(|error| damaged(error.to_string()))?)?;
    }
    Ok(rows)
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
