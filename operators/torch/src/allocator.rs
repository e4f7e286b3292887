//! Settings of the C library's allocator that suit tensors. Those of libtorch's for GPUs are in the environment that a worker is
//! started with.
//!
//! By default glibc gives freed memory back to the system above a low threshold, so that every operation on
//! tensors of a megabyte pays for fresh zeroed pages: up to a tenth of a training step and half of a sampling step.

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
