//! The libtorch back end: picks the device and loads policies.

use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::{LoadOptions, ModelBackend, ModelInfo, Policy};

use crate::allocator::keep_freed_memory;
use crate::device::{self, DeviceChoice};
use crate::guard::guarded;
use crate::init;
use crate::policy::{Place, TorchPolicy};

/// The libtorch that this crate is built against.
const LIBTORCH: &str = "libtorch 2.11.0";

/// Models on libtorch, on one device.
#[derive(Debug)]
pub struct TorchBackend {
    place: Place,
}

impl TorchBackend {
    /// Opens the device. `threads` is the number of threads of CPU work; `None` is one for each core. Results do not
    /// depend on it.
    ///
    /// # Errors
    /// When a GPU is asked for and cannot be used.
    pub fn new(choice: DeviceChoice, threads: Option<usize>) -> Result<Self, ModelError> {
        guarded(|| {
            keep_freed_memory();
            let device = choice.resolve()?;
            let threads = threads.map_or_else(available_threads, |threads| threads.max(1));
            // Batches are spread over our own threads; an operation runs on one.
            tch::set_num_threads(1);
            tracing::debug!(device = device::name(device), threads, "opened libtorch");
            Ok(Self {
                place: Place { device, threads },
            })
        })
    }
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl ModelBackend for TorchBackend {
    fn describe(&self) -> String {
        format!("{LIBTORCH} {}", device::name(self.place.device))
    }

    fn load(&self, folder: &Path, options: &LoadOptions) -> Result<Box<dyn Policy>, ModelError> {
        guarded(|| Ok(Box::new(TorchPolicy::load(folder, options, self.place)?) as Box<dyn Policy>))
    }

    fn initialise(
        &self,
        config_folder: &Path,
        seed: u64,
        folder: &Path,
    ) -> Result<ModelInfo, ModelError> {
        let (family, parameters) = guarded(|| init::initialise(config_folder, seed, folder))?;
        Ok(ModelInfo {
            family: family.name().to_owned(),
            parameters,
            device: device::name(self.place.device),
        })
    }
}
