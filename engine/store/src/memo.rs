//! Digests of files outside the store, remembered between runs: a file that is as it was is not read again.
//!
//! An entry holds for a path while size, times and place on the disk of its files are what they were. Within the resolution
//! of a clock two writes may look like one, so nothing is remembered of files that changed in the last two seconds.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::Digest;
use serde::{Deserialize, Serialize};

use crate::cache_folder::{cache_folder, write_at_once};

/// Below this size, reading is no slower than remembering.
const WORTH_BYTES: u64 = 64 << 10;
/// How old the last change must be.
const SETTLED_NANOSECONDS: i128 = 2_000_000_000;

/// What tells whether a file is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) bytes: u64,
    modified: i128,
    /// When content, name or rights last changed: unlike the other time, nobody sets it back.
    changed: i128,
    inode: u64,
    device: u64,
}

impl From<&Metadata> for Stat {
    fn from(of: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            bytes: of.size(),
            modified: nanoseconds(of.mtime(), of.mtime_nsec()),
            changed: nanoseconds(of.ctime(), of.ctime_nsec()),
            inode: of.ino(),
            device: of.dev(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// For people who look into the folder.
    path: String,
    stats: Digest,
    digest: Digest,
}

/// A file or some files of a folder as they are now, and what is known of them.
#[derive(Debug)]
pub(crate) struct Memo {
    /// Absent when nothing is to be remembered.
    entry: Option<PathBuf>,
    path: PathBuf,
    stats: Digest,
}

impl Memo {
    /// What is known of files by the method `kind`. `path` names them together; each has a name below it.
    pub(crate) fn of(kind: &str, path: &Path, files: &[(&str, Stat)]) -> Self {
        Self::in_folder(cache_folder("digests").ok(), kind, path, files)
    }

    fn in_folder(folder: Option<PathBuf>, kind: &str, path: &Path, files: &[(&str, Stat)]) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut name = blake3::Hasher::new();
        name.update(kind.as_bytes());
        name.update(b"\n");
        name.update(absolute.as_os_str().as_encoded_bytes());
        let name = name.finalize().to_hex();
        let is_worth_it = files.iter().map(|(_, stat)| stat.bytes).sum::<u64>() >= WORTH_BYTES;
        Self {
            entry: folder
                .filter(|_| is_worth_it)
                .map(|folder| folder.join(format!("{name}.json"))),
            path: absolute,
            stats: Digest::of(format!("{files:?}").as_bytes()),
        }
    }

    /// The digest, if the files are as they were when it was computed.
    pub(crate) fn recall(&self) -> Option<Digest> {
        let text = std::fs::read(self.entry.as_ref()?).ok()?;
        let entry: Entry = serde_json::from_slice(&text).ok()?;
        (entry.stats == self.stats).then_some(entry.digest)
    }

    /// Remembers the digest of files that were as given when it was computed. That this fails harms nobody.
    pub(crate) fn remember(&self, files: &[(&str, Stat)], digest: &Digest) {
        let settled = now() - SETTLED_NANOSECONDS;
        let is_settled = |stat: &Stat| stat.modified < settled && stat.changed < settled;
        let Some(path) = &self.entry else { return };
        if !files.iter().all(|(_, stat)| is_settled(stat)) {
            return;
        }
        let entry = Entry {
            path: self.path.display().to_string(),
            stats: self.stats.clone(),
            digest: digest.clone(),
        };
        if let Ok(text) = serde_json::to_vec(&entry) {
            let _ = write_at_once(path, &text);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a file's age decides whether its digest is remembered, not what it is"
)]
fn now() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(bytes: u64, modified: i128) -> Stat {
        Stat {
            bytes,
            modified,
            changed: modified,
            inode: 1,
            device: 1,
        }
    }

    #[test]
    fn a_digest_is_recalled_while_nothing_changed() {
        let folder = tempfile::tempdir().unwrap();
        let memo = |kind: &str, stat: Stat| {
            let files = [("a", stat)];
            Memo::in_folder(
                Some(folder.path().to_owned()),
                kind,
                Path::new("/data/a"),
                &files,
            )
        };
        let old = stat(WORTH_BYTES, 5);
        let digest = Digest::of(b"content");
        assert_eq!(memo("bytes", old).recall(), None);
        memo("bytes", old).remember(&[("a", old)], &digest);
        assert_eq!(memo("bytes", old).recall(), Some(digest));
        assert_eq!(memo("rows", old).recall(), None);
        for other in [
            stat(WORTH_BYTES + 1, 5),
            stat(WORTH_BYTES, 6),
            Stat { inode: 2, ..old },
            Stat { device: 2, ..old },
            Stat { changed: 6, ..old },
        ] {
            assert_eq!(memo("bytes", other).recall(), None);
        }
    }

    #[test]
    fn what_changed_a_moment_ago_or_is_damaged_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let memo = |stat: Stat| {
            let files = [("a", stat)];
            Memo::in_folder(
                Some(folder.path().to_owned()),
                "bytes",
                Path::new("/a"),
                &files,
            )
        };
        let fresh = stat(WORTH_BYTES, now() - 1_000_000_000);
        memo(fresh).remember(&[("a", fresh)], &Digest::of(b"content"));
        assert_eq!(memo(fresh).recall(), None);
        let old = stat(WORTH_BYTES, 5);
        memo(old).remember(&[("a", old)], &Digest::of(b"content"));
        let entry = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        std::fs::write(entry.path(), b"{\"path\": \"half").unwrap();
        assert_eq!(memo(old).recall(), None);
    }
}
