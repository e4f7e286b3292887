//! The libtorch back end: picks the device and loads policies.

use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::{LoadOptions, ModelBackend, ModelInfo, Policy};
use tch::Device;

use crate::allocator::keep_freed_memory;
use crate::config::FAMILY;
use crate::device::{self, DeviceChoice};
use crate::guard::guarded;
use crate::init;
use crate::policy::TorchPolicy;

/// The libtorch that this crate is built against.
const LIBTORCH: &str = "libtorch 2.11.0";

/// Models on libtorch, on one device.
#[derive(Debug)]
pub struct TorchBackend {
    device: Device,
}

impl TorchBackend {
    /// Opens the device. `threads` bounds the threads of CPU work; `None` leaves libtorch's default, one per core.
    ///
    /// # Errors
    /// When a GPU is asked for and cannot be used.
    pub fn new(choice: DeviceChoice, threads: Option<usize>) -> Result<Self, ModelError> {
        guarded(|| {
            keep_freed_memory();
            let device = choice.resolve()?;
            if let Some(threads) = threads {
                tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
            }
            tracing::debug!(
                device = device::name(device),
                threads = tch::get_num_threads(),
                "opened libtorch"
            );
            Ok(Self { device })
        })
    }
}

impl ModelBackend for TorchBackend {
    fn describe(&self) -> String {
        format!("{LIBTORCH} {}", device::name(self.device))
    }

    fn load(&self, folder: &Path, options: &LoadOptions) -> Result<Box<dyn Policy>, ModelError> {
        guarded(
            || Ok(Box::new(TorchPolicy::load(folder, options, self.device)?) as Box<dyn Policy>),
        )
    }

    fn initialise(
        &self,
        config_folder: &Path,
        seed: u64,
        folder: &Path,
    ) -> Result<ModelInfo, ModelError> {
        let parameters = guarded(|| init::initialise(config_folder, seed, folder))?;
        Ok(ModelInfo {
            family: FAMILY.to_owned(),
            parameters,
            device: device::name(self.device),
        })
    }
}
