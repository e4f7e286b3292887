//! Choice of the device, the late opening of the CUDA part of libtorch, and what is brought to the device.

use std::path::PathBuf;

use engine_core::error::ModelError;
use tch::kind::Element;
use tch::{Device, Tensor};

/// The largest piece that goes through page-locked memory, in bytes: libtorch keeps such memory for good.
const MOST_PINNED: usize = 64 << 20;

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU when there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU, even where there is a GPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens what the choice needs.
    ///
    /// # Errors
    /// When a GPU is asked for and cannot be used.
    pub(crate) fn resolve(self) -> Result<Device, ModelError> {
        let found = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Auto | Self::Cuda(_) => open_cuda_library(),
        };
        let usable = found.is_ok() && tch::Cuda::is_available();
        match self {
            Self::Auto | Self::Cpu => Ok(if usable { Device::Cuda(0) } else { Device::Cpu }),
            Self::Cuda(number) => {
                let count = if usable {
                    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
                } else {
                    0
                };
                if number < count {
                    return Ok(Device::Cuda(number));
                }
                let reason = match found {
                    Err(message) => message,
                    Ok(()) => format!("{count} CUDA devices are visible"),
                };
                Err(ModelError::Backend(format!(
                    "device cuda:{number} cannot be used: {reason}"
                )))
            }
        }
    }
}

/// The name that records use, for example `cpu` or `cuda:0`.
pub(crate) fn name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A vector on a device, see [`send`].
pub(crate) fn upload<T: Element>(values: &[T], device: Device) -> Tensor {
    send(&Tensor::from_slice(values), device)
}

/// Brings a tensor of the host to a device. On a GPU it is there when what runs next on libtorch's stream looks at it, and the host does
/// not wait for what was queued before: libtorch uses the page-locked memory again only when the copy out of it is done.
pub(crate) fn send(host: &Tensor, device: Device) -> Tensor {
    let bytes = host.numel() * host.kind().elt_size_in_bytes();
    if !device.is_cuda() || !(1..=MOST_PINNED).contains(&bytes) {
        return host.to_device(device);
    }
    match host.f_internal_pin_memory(device) {
        Ok(pinned) => pinned.to_device_(device, pinned.kind(), true, false),
        // Where the host has no more memory that may be locked.
        Err(_) => host.to_device(device),
    }
}

/// Opens `libtorch_cuda.so`, which registers the CUDA kernels with the CPU library that the program is linked to.
/// The program is not linked to it, so that it starts on machines without CUDA.
fn open_cuda_library() -> Result<(), String> {
    let mut last = String::new();
    let beside = beside_cpu_library().into_iter();
    for candidate in std::iter::once(PathBuf::from("libtorch_cuda.so")).chain(beside) {
        match open_globally(&candidate) {
            Ok(()) => return Ok(()),
            Err(message) => last = message,
        }
    }
    Err(last)
}

/// Opens the run-time compiler that comes with libtorch, so that it is found by its name. Where it is not beside libtorch, the
/// system's is used, and its absence shows when something is compiled.
pub(crate) fn open_compiler() {
    let Some(torch) = beside_cpu_library() else {
        return;
    };
    // `torch/lib/libtorch_cuda.so` -> `nvidia/cu13/lib`
    let packages = torch.ancestors().nth(3).unwrap_or(&torch);
    let found = open_globally(&packages.join("nvidia/cu13/lib/libnvrtc.so.13"));
    tracing::trace!(?found, "opened the run-time compiler");
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "opening a shared library runs its initialisers")]
fn open_globally(path: &std::path::Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is the CUDA part of the libtorch that the program is already linked to; its initialisers
    // register kernels. It is never closed, because registered kernels live as long as the process.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| error.to_string())?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn open_globally(path: &std::path::Path) -> Result<(), String> {
    Err(format!("{} is opened on Unix only", path.display()))
}

/// The path of `libtorch_cuda.so` in the folder that `libtorch_cpu.so` was loaded from, if there is one.
fn beside_cpu_library() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = PathBuf::from(&line[line.find('/')?..]).with_file_name("libtorch_cuda.so");
    path.exists().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_names_it() {
        assert_eq!(DeviceChoice::Cpu.resolve().unwrap(), Device::Cpu);
        let error = DeviceChoice::Cuda(99).resolve().unwrap_err().to_string();
        assert!(error.contains("cuda:99"), "{error}");
        assert!(["cpu", "cuda:0"].contains(&name(DeviceChoice::Auto.resolve().unwrap()).as_str()));
    }
}
