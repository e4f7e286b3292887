//! Set-up against wheels made on the spot and a source that counts downloads.

use std::cell::Cell;
use std::io::{Cursor, Write};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::FileOptions;

use super::*;

const TORCH: [&str; 11] = [
    "torch/include/ATen/ATen.h",
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch.so",
    "torch/lib/libc10_cuda.so",
    "torch/lib/libcaffe2_nvrtc.so",
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libtorch_cuda_linalg.so",
    "torch/lib/libtorch_nvshmem.so",
    "torch/nn/functional.py",
];

/// A wheel that holds the given files, each with its own name as text.
fn archive(files: &[&str]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        zip.start_file(*file, FileOptions::default()).unwrap();
        zip.write_all(file.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pin(name: &str, content: &[u8]) -> Wheel {
    let sha256 = format!("{:x}", Sha256::digest(content));
    Wheel {
        name: name.into(),
        version: "1.0".into(),
        sha256,
    }
}

/// Serves one content for every wheel.
struct Server {
    content: Vec<u8>,
    downloads: Cell<usize>,
}

impl Server {
    fn new(content: Vec<u8>) -> Self {
        Self {
            content,
            downloads: Cell::new(0),
        }
    }
}

impl Source for Server {
    fn download(&self, wheel: &Wheel, folder: &Path) -> Result<()> {
        self.downloads.set(self.downloads.get() + 1);
        fs::write(folder.join(file_name(wheel)), &self.content)?;
        Ok(())
    }
}

fn file_name(wheel: &Wheel) -> String {
    format!(
        "{}-{}-py3-none-any.whl",
        wheel.name.replace('-', "_"),
        wheel.version
    )
}

/// Puts a file where an interrupted set-up has left it.
fn keep(folder: &TempDir, wheel: &Wheel, content: &[u8]) -> PathBuf {
    let downloads = folder.path().join("downloads");
    fs::create_dir_all(&downloads).unwrap();
    let path = downloads.join(file_name(wheel));
    fs::write(&path, content).unwrap();
    path
}

/// Every file below the folder but the set-up's own.
fn listing(folder: &TempDir) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(
                    path.strip_prefix(folder.path())
                        .unwrap()
                        .display()
                        .to_string(),
                );
            }
        }
    }
    found.retain(|name| name != "lock");
    found.sort();
    found
}

#[test]
fn the_pinned_lists_can_be_read() {
    let base = wheel::parse_list("libtorch.txt", include_str!("../../libtorch.txt")).unwrap();
    let cuda =
        wheel::parse_list("libtorch-cuda.txt", include_str!("../../libtorch-cuda.txt")).unwrap();
    assert_eq!(
        base.iter()
            .map(|wheel| wheel.name.as_str())
            .collect::<Vec<_>>(),
        ["torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti"]
    );
    assert_eq!(base[0].version, VERSION);
    assert!(GENERATED.contains(&("torch/build-version", &format!("{VERSION}\n"))));
    assert!(cuda.iter().all(|wheel| wheel.name.starts_with("nvidia-")));
}

#[test]
fn only_what_the_machine_needs_is_unpacked_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let content = archive(&TORCH);
    let torch = [pin("torch", &content)];
    let server = Server::new(content);
    install_wheels(folder.path(), &torch, &[], Part::Cpu, &server).unwrap();
    assert_eq!(
        listing(&folder),
        [
            "stamps/torch",
            "torch/build-version",
            "torch/include/ATen/ATen.h",
            "torch/lib/libc10.so",
            "torch/lib/libgomp.so.1",
            "torch/lib/libtorch.so",
            "torch/lib/libtorch_cpu.so",
        ]
    );
    let script = fs::read_to_string(folder.path().join("torch/lib/libtorch.so")).unwrap();
    assert_eq!(script, "INPUT(-ltorch_cpu)\n");

    install_wheels(folder.path(), &torch, &[], Part::Cpu, &server).unwrap();
    assert_eq!(
        server.downloads.get(),
        1,
        "a second set-up has nothing to do"
    );
}

#[test]
fn cuda_is_added_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let content = archive(
        &[
            &TORCH[..],
            &["nvidia/nccl/lib/libnccl.so.2", "nvidia/nccl/include/nccl.h"],
        ]
        .concat(),
    );
    let (torch, nccl) = (
        [pin("torch", &content)],
        [pin("nvidia-nccl-cu13", &content)],
    );
    let server = Server::new(content);
    let install = |part| install_wheels(folder.path(), &torch, &nccl, part, &server).unwrap();
    install(Part::Cpu);
    install(Part::Cuda);
    let files = listing(&folder);
    assert!(files.contains(&"torch/lib/libtorch_cuda.so".to_owned()));
    assert!(files.contains(&"nvidia/nccl/lib/libnccl.so.2".to_owned()));
    assert!(!files.contains(&"nvidia/nccl/include/nccl.h".to_owned()));
    assert_eq!(server.downloads.get(), 3);

    install(Part::Cpu);
    install(Part::Cuda);
    assert_eq!(server.downloads.get(), 3);
    fs::remove_file(folder.path().join("nvidia/nccl/lib/libnccl.so.2")).unwrap();
    install(Part::Cpu);
    assert_eq!(listing(&folder), files, "a missing library is put back");
}

#[test]
fn a_wrong_digest_is_refused_and_the_file_removed() {
    let folder = tempfile::tempdir().unwrap();
    let torch = [pin("torch", b"the real wheel")];
    let server = Server::new(archive(&TORCH));
    let error = install_wheels(folder.path(), &torch, &[], Part::Cpu, &server)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("torch-1.0-py3-none-any.whl has the wrong digest and was removed"),
        "{error}"
    );
    assert!(error.contains(&torch[0].sha256), "{error}");
    assert!(listing(&folder).is_empty(), "{:?}", listing(&folder));
}

#[test]
fn a_verified_download_is_not_downloaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let content = archive(&TORCH);
    let torch = [pin("torch", &content)];
    keep(&folder, &torch[0], &content);
    // What a set-up that was killed while it unpacked leaves.
    fs::create_dir_all(folder.path().join("unpack-torch/torch/lib")).unwrap();
    fs::write(
        folder.path().join("unpack-torch/torch/lib/libtorch_cpu.so"),
        "half",
    )
    .unwrap();

    let server = Server::new(Vec::new());
    install_wheels(folder.path(), &torch, &[], Part::Cpu, &server).unwrap();
    assert_eq!(server.downloads.get(), 0);
    assert!(!folder.path().join("unpack-torch").exists());
    let library = fs::read_to_string(folder.path().join("torch/lib/libtorch_cpu.so")).unwrap();
    assert_eq!(library, "torch/lib/libtorch_cpu.so");
}

#[test]
fn a_damaged_download_is_downloaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let content = archive(&TORCH);
    let torch = [pin("torch", &content)];
    keep(&folder, &torch[0], &content[..content.len() / 2]);
    let server = Server::new(content);
    install_wheels(folder.path(), &torch, &[], Part::Cpu, &server).unwrap();
    assert_eq!(server.downloads.get(), 1);
}

#[test]
fn another_version_replaces_the_old_files() {
    let folder = tempfile::tempdir().unwrap();
    let name = "nvidia-cufft";
    let old = archive(&[
        "nvidia/cu13/lib/libcufft.so.11",
        "nvidia_cufft-1.dist-info/License.txt",
    ]);
    let new = archive(&[
        "nvidia/cu13/lib/libcufft.so.12",
        "nvidia_cufft-2.dist-info/licenses/License.txt",
    ]);
    install_wheels(
        folder.path(),
        &[pin(name, &old)],
        &[],
        Part::Cpu,
        &Server::new(old.clone()),
    )
    .unwrap();
    install_wheels(
        folder.path(),
        &[pin(name, &new)],
        &[],
        Part::Cpu,
        &Server::new(new.clone()),
    )
    .unwrap();
    assert_eq!(
        listing(&folder),
        [
            "licenses/nvidia_cufft-2/License.txt",
            "nvidia/cu13/lib/libcufft.so.12",
            "stamps/nvidia-cufft"
        ]
    );
}

#[test]
fn a_wheel_without_its_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let content = archive(&["torch/lib/libc10.so", "torch/lib/libgomp.so.1"]);
    let torch = [pin("torch", &content)];
    let server = Server::new(content);
    let error = install_wheels(folder.path(), &torch, &[], Part::Cpu, &server).unwrap_err();
    assert!(
        format!("{error:#}").ends_with("it holds no libtorch_cpu.so"),
        "{error:#}"
    );
    assert!(!folder.path().join("stamps").exists());
}
