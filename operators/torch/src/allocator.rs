//! Settings of allocators that suit tensors.
//!
//! By default libtorch takes memory of a GPU in blocks that never join: in training a tenth of it is lost between them (measured: 55 GiB
//! instead of 47 for a model of 3 billion weights). On the CPU, by default glibc gives freed memory back to the system above a low threshold, so that every operation on
//! tensors of a megabyte pays for fresh zeroed pages: up to a tenth of a training step and half of a sampling step.

/// Where a user sets libtorch's allocator for GPUs, and what is set where nobody has.
const GPU_VARIABLES: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];
const GPU_SETTINGS: &str = "expandable_segments:True";

/// Lets blocks of GPU memory grow and join, unless the user has other settings. For the time before any is taken.
#[expect(
    clippy::disallowed_methods,
    reason = "the settings of libtorch that users know are in the environment; no result depends on them"
)]
pub(crate) fn join_gpu_memory() {
    let is_set = |name: &&str| std::env::var_os(name).is_some();
    if GPU_VARIABLES.iter().any(is_set) {
        return;
    }
    if let Err(error) = libtorch::set(GPU_SETTINGS) {
        tracing::warn!(%error, "the allocator of GPU memory keeps its own settings: training takes more memory than it must");
    }
}

/// The allocator's settings in libtorch: the bindings have no way to them.
mod libtorch {
    use std::ffi::c_void;
    use std::ptr;

    use libloading::os::unix::{Library, Symbol};

    const INSTANCE: &[u8] = b"_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig8instanceEv\0";
    const PARSE: &[u8] = b"_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig9parseArgsERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE\0";

    /// `std::string` of the GNU library: short texts are in it, longer ones elsewhere. Only read by what it is given to.
    #[repr(C)]
    struct Text {
        first: *const u8,
        length: usize,
        capacity: usize,
        unused: usize,
    }

    #[expect(
        unsafe_code,
        reason = "calls functions of libtorch that the bindings lack"
    )]
    pub(super) fn set(settings: &'static str) -> Result<(), libloading::Error> {
        let library = Library::this();
        let text = Text {
            first: settings.as_ptr(),
            length: settings.len(),
            capacity: settings.len(),
            unused: 0,
        };
        // SAFETY: the types are those of `c10/core/AllocatorConfig.h` of version 2.11; a method takes its object first. The text is
        // longer than what fits into the string itself, outlives the call, and is not changed.
        unsafe {
            let instance: Symbol<unsafe extern "C" fn() -> *mut c_void> = library.get(INSTANCE)?;
            let parse: Symbol<unsafe extern "C-unwind" fn(*mut c_void, *const Text)> =
                library.get(PARSE)?;
            parse(instance(), ptr::from_ref(&text));
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn the_settings_are_where_they_are_looked_for() {
            super::set(super::super::GPU_SETTINGS).unwrap();
        }
    }
}

/// Keeps freed memory for the next tensor. Does nothing on systems without glibc.
pub(crate) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    // Values of `malloc.h`, which are part of the library's binary interface.
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_TOP_PAD: c_int = -2;
    const M_MMAP_THRESHOLD: c_int = -3;

    /// Freed memory at the end of the heap that is kept.
    const TRIM: c_int = 1 << 30;
    /// What the heap grows by at least.
    const PAD: c_int = 1 << 26;
    /// The largest block that the library lets come from the heap.
    const MAP: c_int = 1 << 25;

    #[expect(unsafe_code, reason = "a function of the C library")]
    pub(super) fn set() {
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        for (parameter, value) in [
            (M_TRIM_THRESHOLD, TRIM),
            (M_TOP_PAD, PAD),
            (M_MMAP_THRESHOLD, MAP),
        ] {
            // SAFETY: sets a tuning value under the allocator's own lock; a refused value has no effect.
            let accepted = unsafe { mallopt(parameter, value) };
            tracing::trace!(parameter, value, accepted, "allocator setting");
        }
    }
}
