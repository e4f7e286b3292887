//! Training with kernels whose results are the same in every run, on a GPU. On the CPU all are.
//!
//! libtorch has the switch, the bindings have not, so it is found by its name in the library. The switch is the
//! process's: it stands as the last model that was loaded for training asked. Operations without such a kernel
//! are errors that name them. Matrix products are the same in every run on one stream, which is all that training uses. Generation with our own
//! kernels does not know the switch.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use engine_core::error::ModelError;
use libloading::os::unix::{Library, Symbol};
use tch::Device;

/// The functions of libtorch's context.
#[expect(clippy::struct_field_names, reason = "they are named as in libtorch")]
struct Context {
    global_context: Symbol<unsafe extern "C" fn() -> *mut c_void>,
    set_algorithms: Symbol<unsafe extern "C" fn(*mut c_void, bool, bool)>,
    set_fill_memory: Symbol<unsafe extern "C" fn(*mut c_void, bool)>,
}

static IS_SET: AtomicBool = AtomicBool::new(false);

/// Whether such kernels are asked for.
pub(crate) fn is_set() -> bool {
    IS_SET.load(Ordering::Relaxed)
}

/// Asks for such kernels, or for the fastest ones.
///
/// # Errors
/// When libtorch is another version than the one that this crate is built for.
pub(crate) fn set(device: Device, deterministic: bool) -> Result<(), ModelError> {
    if device.is_cuda() {
        Context::find()?.set(deterministic);
        IS_SET.store(deterministic, Ordering::Relaxed);
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "calls functions of libtorch that the bindings lack"
)]
impl Context {
    fn find() -> Result<Self, ModelError> {
        let library = Library::this();
        let missing = |error: libloading::Error| {
            ModelError::Backend(format!(
                "this libtorch lacks the switch for deterministic kernels of 2.11: {error}"
            ))
        };
        // SAFETY: the types are those of `ATen/Context.h` of version 2.11; a method takes its object first.
        unsafe {
            Ok(Self {
                global_context: library.get(b"_ZN2at13globalContextEv\0").map_err(missing)?,
                set_algorithms: library
                    .get(b"_ZN2at7Context26setDeterministicAlgorithmsEbb\0")
                    .map_err(missing)?,
                set_fill_memory: library
                    .get(b"_ZN2at7Context39setDeterministicFillUninitializedMemoryEb\0")
                    .map_err(missing)?,
            })
        }
    }

    fn set(&self, deterministic: bool) {
        // SAFETY: the context lives as long as the process; no training runs while a model is loaded.
        unsafe {
            let context = (self.global_context)();
            // Memory that is written before it is read need not be filled first.
            (self.set_fill_memory)(context, false);
            // Attention takes its deterministic kernel only where there is no way out. What has none fails by name.
            let warn_only = false;
            (self.set_algorithms)(context, deterministic, warn_only);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_where_it_is_looked_for() {
        assert!(Context::find().is_ok());
        set(Device::Cpu, true).unwrap();
    }
}
