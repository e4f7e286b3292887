//! Wheels from the Python package index: the pinned list, download through pip, digest check.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::say;

/// The platform tags of x86-64 Linux with glibc 2.28 or newer; pip wants each by name.
const PLATFORMS: [&str; 12] = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_26_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_18_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_12_x86_64",
    "manylinux2010_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux1_x86_64",
];

/// One pinned wheel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wheel {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
}

impl fmt::Display for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Wheel {
    /// A line of a pip requirements file.
    fn requirement(&self) -> String {
        format!(
            "{}=={} --hash=sha256:{}\n",
            self.name, self.version, self.sha256
        )
    }

    /// Whether a file name is this wheel's. File names write `_` for the `-` of a name.
    fn has_file_name(&self, file_name: &str) -> bool {
        let start = format!("{}-{}-", self.name.replace('-', "_"), self.version);
        file_name.starts_with(&start)
            && Path::new(file_name)
                .extension()
                .is_some_and(|end| end == "whl")
    }
}

/// Reads a pinned list: `name==version --hash=sha256:digest` a line, comments with `#`.
pub(crate) fn parse_list(file: &str, text: &str) -> Result<Vec<Wheel>> {
    let mut wheels: Vec<Wheel> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line
            .split_once('#')
            .map_or(line, |(before, _)| before)
            .trim();
        if line.is_empty() {
            continue;
        }
        let wheel = parse_line(line).with_context(|| format!("{file}, line {}", index + 1))?;
        if wheels.iter().any(|other| other.name == wheel.name) {
            bail!("{file}, line {}: {} is listed twice", index + 1, wheel.name);
        }
        wheels.push(wheel);
    }
    Ok(wheels)
}

fn parse_line(line: &str) -> Result<Wheel> {
    let mut words = line.split_whitespace();
    let pin = words.next().context("expected a requirement")?;
    let Some((name, version)) = pin.split_once("==") else {
        bail!("expected `name==version`, got `{pin}`");
    };
    if name.is_empty() || version.is_empty() || version.contains(['*', ',', ';']) {
        bail!("expected one exact version as in `name==1.2.3`, got `{pin}`");
    }
    let Some(hash) = words.next() else {
        bail!("{name} has no digest: expected `--hash=sha256:` and 64 hexadecimal digits");
    };
    let sha256 = hash.strip_prefix("--hash=sha256:").unwrap_or_default();
    if sha256.len() != 64
        || !sha256
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        bail!("expected `--hash=sha256:` and 64 lower-case hexadecimal digits, got `{hash}`");
    }
    if let Some(more) = words.next() {
        bail!("expected nothing after the digest of {name}, got `{more}`");
    }
    Ok(Wheel {
        name: name.into(),
        version: version.into(),
        sha256: sha256.into(),
    })
}

/// Something that puts a wheel into a folder, under the file name that the index gives it.
pub(crate) trait Source {
    fn download(&self, wheel: &Wheel, folder: &Path) -> Result<()>;
}

/// Returns the verified file of a wheel in `folder`, from an earlier run where there is one.
///
/// A file whose digest is wrong is removed, so that the next run starts clean.
pub(crate) fn fetch(wheel: &Wheel, folder: &Path, source: &dyn Source) -> Result<PathBuf> {
    if let Some(kept) = find(wheel, folder)? {
        match verify(wheel, &kept) {
            Ok(()) => return Ok(kept),
            Err(error) => say(&format!("{error:#}; downloading it again")),
        }
    }
    say(&format!("downloading {wheel}"));
    source.download(wheel, folder)?;
    let file = find(wheel, folder)?.with_context(|| {
        format!(
            "{wheel} was downloaded, but {} has no wheel of that name",
            folder.display()
        )
    })?;
    verify(wheel, &file)?;
    Ok(file)
}

fn find(wheel: &Wheel, folder: &Path) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| wheel.has_file_name(name))
        {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn verify(wheel: &Wheel, file: &Path) -> Result<()> {
    verify_digest(file, &wheel.sha256)
}

/// Fails, and removes the file, when its digest is another.
pub(crate) fn verify_digest(file: &Path, expected: &str) -> Result<()> {
    let digest = sha256(file).with_context(|| format!("cannot read {}", file.display()))?;
    if digest == expected {
        return Ok(());
    }
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    bail!(
        "{} has the wrong digest and was removed: expected sha256 {expected}, got {digest}",
        file.display(),
    )
}

pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(format!("{:x}", hasher.finalize()))
}

/// Downloads through `python3 -m pip`, which knows the user's index, proxy and certificates.
pub(crate) struct Pip;

impl Source for Pip {
    fn download(&self, wheel: &Wheel, folder: &Path) -> Result<()> {
        require_pip(ADVICE)?;
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, wheel.requirement())
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        // Half a gigabyte may be too much for the usual place of temporary files.
        let temporary = folder.join("tmp");
        fs::create_dir_all(&temporary)
            .with_context(|| format!("cannot create {}", temporary.display()))?;

        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "download"]);
        pip.args(["--no-deps", "--only-binary=:all:", "--require-hashes"]);
        // The wheel is the same whichever Python is installed.
        pip.args([
            "--python-version",
            "3.11",
            "--implementation",
            "cp",
            "--abi",
            "cp311",
        ]);
        for platform in PLATFORMS {
            pip.args(["--platform", platform]);
        }
        pip.arg("--dest")
            .arg(folder)
            .arg("--requirement")
            .arg(&requirements);
        pip.env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(io::stderr());
        let status = pip.status().context("cannot start python3")?;
        if !status.success() {
            bail!(
                "pip could not download {wheel} ({status}; its own words are above). What is already here stays; \
                 check the network and `python3 -m pip config list`, then run the command again"
            );
        }
        // Only left-overs; the next run does not need them, nor is hindered by them.
        drop(fs::remove_dir_all(&temporary));
        Ok(())
    }
}

/// What to do where Python or pip is missing.
const ADVICE: &str = "to download libtorch, install Python 3 with pip (Debian and Ubuntu: `apt install python3 python3-pip`) \
                      and run the command again, or set LIBTORCH to a libtorch 2.11.0 of your own";

/// Fails with the advice where `python3 -m pip` does not start.
pub(crate) fn require_pip(advice: &str) -> Result<()> {
    match Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
    {
        Err(error) => bail!("python3 cannot be started ({error}): {advice}"),
        Ok(output) if !output.status.success() => bail!("python3 has no pip: {advice}"),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_list_gives_its_wheels_in_order() {
        let text = format!(
            "# why\n\nb==1.0 --hash=sha256:{DIGEST}\n  a-x==2.1.3.4   --hash=sha256:{DIGEST} # note\n"
        );
        let wheels = parse_list("list.txt", &text).unwrap();
        assert_eq!(
            wheels.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["b 1.0", "a-x 2.1.3.4"]
        );
        assert_eq!(wheels[1].sha256, DIGEST);
        assert_eq!(
            wheels[0].requirement(),
            format!("b==1.0 --hash=sha256:{DIGEST}\n")
        );
    }

    #[test]
    fn a_wrong_line_is_named() {
        let error = |line: &str| {
            format!(
                "{:#}",
                parse_list("list.txt", &format!("# first\n{line}\n")).unwrap_err()
            )
        };
        assert_eq!(
            error("torch>=2"),
            "list.txt, line 2: expected `name==version`, got `torch>=2`"
        );
        assert!(error(&format!("torch==2.* --hash=sha256:{DIGEST}")).contains("one exact version"));
        assert!(error("torch==2.0").contains("torch has no digest"));
        assert!(error("torch==2.0 --hash=sha256:abc").contains("64 lower-case hexadecimal digits"));
        assert!(error("torch==2.0 --hash=md5:abc").contains("got `--hash=md5:abc`"));
        assert!(
            error(&format!("torch==2.0 --hash=sha256:{DIGEST} --hash=x"))
                .contains("nothing after the digest")
        );
        let twice = format!("a==1 --hash=sha256:{DIGEST}\na==2 --hash=sha256:{DIGEST}");
        assert_eq!(error(&twice), "list.txt, line 3: a is listed twice");
    }

    #[test]
    fn a_file_name_belongs_to_one_wheel() {
        let wheel = Wheel {
            name: "nvidia-cuda-cupti".into(),
            version: "13.0.85".into(),
            sha256: DIGEST.into(),
        };
        assert!(
            wheel.has_file_name("nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl")
        );
        assert!(
            !wheel.has_file_name("nvidia_cuda_cupti-13.0.8-py3-none-manylinux_2_25_x86_64.whl")
        );
        assert!(!wheel.has_file_name("nvidia_cuda_cupti-13.0.85-py3-none-any.whl.part"));
        assert!(!wheel.has_file_name("nvidia_cuda_runtime-13.0.85-py3-none-any.whl"));
    }

    #[test]
    fn a_digest_is_the_standard_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        fs::write(&file, "abc").unwrap();
        assert_eq!(
            sha256(&file).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
