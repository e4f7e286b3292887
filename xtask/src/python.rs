//! Installs the Python packages that tests use into a folder of the workspace.
//!
//! ```text
//! .tools/python/bin/python   a Python that sees the packages of tests/requirements.txt
//! .tools/python/installed    written last: that list, and which Python it is for
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::lock::lock;
use crate::say;
use crate::wheel::require_pip;

/// What tests find in the environment: the Python to start.
pub(crate) const VARIABLE: &str = "METIS_TEST_PYTHON";

/// The list of packages, relative to the workspace.
const REQUIREMENTS: &str = "tests/requirements.txt";

const ADVICE: &str = "to install what the tests need, install Python 3 with pip (Debian and Ubuntu: `apt install python3 \
                      python3-pip`) and run the command again, or set METIS_TEST_PYTHON to a Python that has the \
                      packages of tests/requirements.txt";

/// Installs what is missing and returns the Python to start. Returns at once when nothing is missing.
pub(crate) fn install(root: &Path) -> Result<PathBuf> {
    let requirements = root.join(REQUIREMENTS);
    let list = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let tools = root.join(".tools");
    let folder = tools.join("python");
    let python = folder.join("bin/python");
    if is_installed(&folder, &list) {
        return Ok(python);
    }

    require_pip(ADVICE)?;
    fs::create_dir_all(&tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let _lock = lock(&tools, "the packages of the tests")?;
    // Asked again: another one may have done it while this one waited for the lock.
    if is_installed(&folder, &list) {
        return Ok(python);
    }
    say("installing the Python packages of the tests");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    // Without pip in it: Debian keeps what that needs in a package of its own, and the pip outside does as well.
    succeed(
        Command::new("python3")
            .args(["-m", "venv", "--without-pip"])
            .arg(&folder),
        "make a Python environment",
    )?;
    let packages = site_packages(&python)?;
    succeed(
        Command::new("python3")
            .args(["-m", "pip", "--disable-pip-version-check", "install"])
            .args([
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--no-compile",
            ])
            .arg("--target")
            .arg(packages)
            .arg("--requirement")
            .arg(&requirements),
        "install the packages of tests/requirements.txt: check the network and `python3 -m pip config list`, then run \
         the command again",
    )?;
    let stamp = folder.join("installed");
    fs::write(&stamp, stamp_text(&python, &list)?)
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// Whether the packages of this list are there, for a Python that still starts.
fn is_installed(folder: &Path, list: &str) -> bool {
    let Ok(found) = fs::read_to_string(folder.join("installed")) else {
        return false;
    };
    stamp_text(&folder.join("bin/python"), list).is_ok_and(|expected| expected == found)
}

fn stamp_text(python: &Path, list: &str) -> Result<String> {
    let version = ask(python, "import sys; print(sys.version_info[:3])")?;
    Ok(format!("{version}\n{list}"))
}

fn site_packages(python: &Path) -> Result<PathBuf> {
    let path = ask(
        python,
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    )?;
    Ok(path.into())
}

/// What a line of Python prints.
fn ask(python: &Path, code: &str) -> Result<String> {
    let output = Command::new(python)
        .args(["-c", code])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    if !output.status.success() {
        bail!("{} ended with {}", python.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn succeed(command: &mut Command, what: &str) -> Result<()> {
    command.stdin(Stdio::null()).stdout(io::stderr());
    let status = command.status().context("cannot start python3")?;
    if !status.success() {
        bail!("could not {what} (python3: {status}; its own words are above)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_counts_only_with_the_list_that_it_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("bin/python");
        fs::create_dir(folder.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/echo", &python).unwrap();
        assert!(!is_installed(folder.path(), "a==1\n"));
        let text = stamp_text(&python, "a==1\n").unwrap();
        fs::write(folder.path().join("installed"), text).unwrap();
        assert!(is_installed(folder.path(), "a==1\n"));
        assert!(!is_installed(folder.path(), "a==2\n"));
        fs::remove_file(&python).unwrap();
        assert!(!is_installed(folder.path(), "a==1\n"));
    }
}
