//! The user's cache folder: what can be made again at any time, kept because making it takes long.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A folder inside the user's cache folder, which is made when it does not exist: under `$XDG_CACHE_HOME`, else `~/.cache`,
/// else the folder for temporary files.
pub(crate) fn cache_folder(name: &str) -> std::io::Result<PathBuf> {
    let folder = root(variable("XDG_CACHE_HOME"), variable("HOME")).join(name);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    Ok(folder)
}

fn root(cache: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    let absolute = |path: &PathBuf| path.is_absolute();
    let base = cache
        .filter(absolute)
        .or_else(|| home.filter(absolute).map(|home| home.join(".cache")));
    base.map_or_else(temporary, |base| base.join("metis-flow"))
}

/// For those who have no home: a folder of their own beside those of others.
fn temporary() -> PathBuf {
    let user = std::fs::metadata("/proc/self").map_or(0, |of| of.uid());
    std::env::temp_dir().join(format!("metis-flow-cache-{user}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "where a cache lies changes no result"
)]
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value: &OsString| !value.is_empty())
        .map(PathBuf::from)
}

/// Writes a file of a cache at one stroke, so that nobody ever reads half of it.
pub(crate) fn write_at_once(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)?;
    std::io::Write::write_all(&mut file, content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_users_settings() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            root(path("/cache"), path("/home/me")),
            Path::new("/cache/metis-flow")
        );
        for cache in [None, path("relative")] {
            assert_eq!(
                root(cache, path("/home/me")),
                Path::new("/home/me/.cache/metis-flow")
            );
        }
        assert!(root(None, None).starts_with(std::env::temp_dir()));
    }
}
