//! Files and folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::exit::wrong;

/// A name beside the final one, until what it names is whole.
struct Draft {
    path: PathBuf,
    is_kept: bool,
}

impl Draft {
    fn beside(to: &Path) -> anyhow::Result<Self> {
        let name = to
            .file_name()
            .ok_or_else(|| wrong(format!("`{}` names no file or folder", to.display())))?;
        let draft = format!(".{}.{}.partial", name.display(), std::process::id());
        if let Some(parent) = to
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty() && !parent.exists())
        {
            return Err(wrong(format!("there is no folder `{}`", parent.display())));
        }
        Ok(Self {
            path: to.with_file_name(draft),
            is_kept: false,
        })
    }

    fn publish(mut self, to: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, to)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            // What is left of a failure is of no use; the failure itself is told.
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Has a file written under another name, and gives it its name when it is whole.
///
/// # Errors
/// When it cannot be written; a file that was there before stays as it was.
pub(crate) fn publish_file(
    to: &Path,
    write: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let draft = Draft::beside(to)?;
    write(&draft.path)?;
    let failed = || format!("could not write {}", to.display());
    draft.publish(to).with_context(failed)
}

/// [`publish_file`] for text.
///
/// # Errors
/// As [`publish_file`].
pub(crate) fn write_file(
    to: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    publish_file(to, |draft| {
        let failed = || format!("could not write {}", to.display());
        let mut out = BufWriter::new(File::create(draft).with_context(failed)?);
        write(&mut out)?;
        out.flush().with_context(failed)?;
        out.get_ref().sync_all().with_context(failed)
    })
}

/// Has a folder filled under another name, and gives it its name when it is whole.
///
/// # Errors
/// When something is there already, or the folder cannot be written.
pub(crate) fn publish_folder(
    to: &Path,
    what: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_taken = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => to.exists(),
    };
    if is_taken {
        return Err(wrong(format!(
            "`{}` exists and is no empty folder; {what} goes to a folder of its own",
            to.display()
        )));
    }
    let failed = || format!("could not write {}", to.display());
    let draft = Draft::beside(to)?;
    fs::create_dir(&draft.path).with_context(failed)?;
    fill(&draft.path)?;
    draft.publish(to).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().display().to_string());
        names.collect()
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        write_file(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let failed = write_file(&path, |out| {
            out.write_all(b"new")?;
            anyhow::bail!("no more rows")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["rows.csv"]);
        let failed = publish_folder(&folder.path().join("data"), "it", |draft| {
            fs::write(draft.join("x"), b"x")?;
            anyhow::bail!("no more rows")
        });
        assert!(failed.is_err());
        assert_eq!(names(folder.path()), ["rows.csv"]);
    }
}
