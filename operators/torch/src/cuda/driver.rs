//! The CUDA driver's objects that decoding needs: a stream, events, page-locked memory, modules, graphs.
//!
//! Each is made with the context of libtorch current, and destroyed by its owner.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};
use engine_core::error::ModelError;
use tch::Tensor;

/// Turns a status into an error that says what was tried.
pub(super) fn check(status: CUresult, what: &str) -> Result<(), ModelError> {
    if status == CUresult::CUDA_SUCCESS {
        Ok(())
    } else {
        Err(ModelError::Backend(format!("CUDA: {what}: {status:?}")))
    }
}

/// Address of a tensor's first element on the device.
pub(super) fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// Free and total bytes of the current device.
#[expect(unsafe_code, reason = "calls the CUDA driver")]
pub(super) fn memory() -> Result<(usize, usize), ModelError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both pointers are to live integers.
    let status = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
    check(status, "asking for free memory")?;
    Ok((free, total))
}

/// Number of multiprocessors and compute capability of a device.
#[expect(unsafe_code, reason = "calls the CUDA driver")]
pub(crate) fn device_facts(device: i32) -> Result<(u32, [i32; 2]), ModelError> {
    use sys::CUdevice_attribute as Attribute;
    let ask = |attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer.
        let status = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        check(status, "asking for a device attribute").map(|()| value)
    };
    let processors = ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((processors.unsigned_abs(), [major, minor]))
}

/// Memory of the device that libtorch's allocator does not know of, so that it is free for everybody once it is not used.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    address: u64,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl DeviceMemory {
    pub(super) fn new(bytes: usize) -> Result<Self, ModelError> {
        let mut address = 0;
        // SAFETY: the pointer is to a live address.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        check(status, &format!("allocating {} MiB", bytes >> 20))?;
        Ok(Self { address })
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `cuMemAlloc`; the driver waits for work that uses it.
        unsafe { sys::cuMemFree_v2(self.address) };
    }
}

impl From<&DeviceMemory> for Argument {
    fn from(memory: &DeviceMemory) -> Self {
        Self(memory.address)
    }
}

/// A stream of its own, which does not wait for the default stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) raw: sys::CUstream,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Stream {
    pub(super) fn new() -> Result<Self, ModelError> {
        let mut raw = ptr::null_mut();
        let flag = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a live handle.
        check(
            unsafe { sys::cuStreamCreate(&raw mut raw, flag) },
            "making a stream",
        )?;
        Ok(Self { raw })
    }

    /// Waits until everything on the stream is done.
    pub(super) fn synchronise(&self) -> Result<(), ModelError> {
        // SAFETY: the stream is alive.
        check(
            unsafe { sys::cuStreamSynchronize(self.raw) },
            "waiting for a stream",
        )
    }

    /// Copies from page-locked memory to the device; the memory must stay as it is until the copy is done.
    pub(super) fn copy_in(
        &self,
        target: u64,
        source: *const c_void,
        bytes: usize,
    ) -> Result<(), ModelError> {
        // SAFETY: callers pass an allocation of the device and one of page-locked memory of at least this size.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(target, source, bytes, self.raw) };
        check(status, "copying to the device")
    }

    /// Copies from the device to page-locked memory, which is valid once the stream has got there.
    pub(super) fn copy_out(
        &self,
        target: *mut c_void,
        source: u64,
        bytes: usize,
    ) -> Result<(), ModelError> {
        // SAFETY: as for `copy_in`.
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(target, source, bytes, self.raw) };
        check(status, "copying from the device")
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream after its owner; work on it is finished by the driver.
        unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(super) struct Event {
    raw: sys::CUevent,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Event {
    pub(super) fn new() -> Result<Self, ModelError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check(
            unsafe { sys::cuEventCreate(&raw mut raw, 0) },
            "making an event",
        )?;
        Ok(Self { raw })
    }

    pub(super) fn record(&self, stream: &Stream) -> Result<(), ModelError> {
        // SAFETY: both are alive.
        check(
            unsafe { sys::cuEventRecord(self.raw, stream.raw) },
            "recording an event",
        )
    }

    /// Waits until the stream has passed the mark. Errors of the work before it show here.
    pub(super) fn wait(&self) -> Result<(), ModelError> {
        // SAFETY: the event is alive.
        check(unsafe { sys::cuEventSynchronize(self.raw) }, "a kernel")
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing uses the event after its owner.
        unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}

/// Page-locked memory of the host, which copies run from and to without the processor.
#[derive(Debug)]
pub(super) struct Pinned {
    pointer: *mut u8,
    bytes: usize,
}

#[expect(unsafe_code, reason = "calls the CUDA driver and hands out its memory")]
impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self, ModelError> {
        let mut pointer = ptr::null_mut();
        // SAFETY: the pointer is to a live pointer.
        check(
            unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes, 0) },
            "page-locking memory",
        )?;
        Ok(Self {
            pointer: pointer.cast(),
            bytes,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of a place in it.
    pub(super) fn at(&self, offset: usize) -> *mut c_void {
        assert!(offset <= self.bytes, "within the memory");
        // SAFETY: the place is within the allocation.
        unsafe { self.pointer.add(offset) }.cast()
    }

    /// Writes words at a multiple of four bytes.
    pub(super) fn write(&mut self, offset: usize, words: &[i32]) {
        assert!(
            offset.is_multiple_of(4) && offset + size_of_val(words) <= self.bytes,
            "within the memory"
        );
        // SAFETY: the target is within the allocation, which is aligned to pages, and no reference to it exists.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), self.at(offset).cast(), words.len()) };
    }

    /// Reads words from the start.
    pub(super) fn read(&self, words: usize) -> &[u32] {
        assert!(words * 4 <= self.bytes, "within the memory");
        // SAFETY: the words are within the allocation, which was written by a copy that the caller has waited for; any bits
        // are a number.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), words) }
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `cuMemHostAlloc`; owners wait for copies before they let it go.
        unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
    }
}

/// An argument of a kernel, as the bits of its slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument(u64);

impl From<&Tensor> for Argument {
    fn from(tensor: &Tensor) -> Self {
        Self(address(tensor))
    }
}

impl From<Option<&Tensor>> for Argument {
    fn from(tensor: Option<&Tensor>) -> Self {
        Self(tensor.map_or(0, address))
    }
}

impl From<&Option<Tensor>> for Argument {
    fn from(tensor: &Option<Tensor>) -> Self {
        Self(tensor.as_ref().map_or(0, address))
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self(u64::from(value.cast_unsigned()))
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

impl From<u64> for Argument {
    fn from(address: u64) -> Self {
        Self(address)
    }
}

/// Loaded kernels.
#[derive(Debug)]
pub(crate) struct Module {
    raw: sys::CUmodule,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Module {
    /// Loads what the compiler made.
    pub(crate) fn load(image: &[u8]) -> Result<Self, ModelError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the image is a whole cubin.
        let status = unsafe { sys::cuModuleLoadData(&raw mut raw, image.as_ptr().cast()) };
        check(status, "loading kernels")?;
        Ok(Self { raw })
    }

    pub(crate) fn function(&self, name: &str) -> Result<Function, ModelError> {
        let text = CString::new(name).expect("kernels have plain names");
        let mut raw = ptr::null_mut();
        // SAFETY: the module is alive, the name ends with a zero.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut raw, self.raw, text.as_ptr()) };
        check(status, &format!("finding kernel {name}"))?;
        Ok(Function { raw })
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: functions of the module live beside it and are not called after it.
        unsafe { sys::cuModuleUnload(self.raw) };
    }
}

/// A kernel of a [`Module`] that is alive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    raw: sys::CUfunction,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Function {
    /// Starts the kernel on a stream with so many blocks of so many threads. The arguments must be those of its declaration.
    pub(super) fn launch(
        self,
        stream: &Stream,
        (grid, threads): ([u32; 2], u32),
        arguments: &[Argument],
    ) -> Result<(), ModelError> {
        self.launch_on(stream.raw, (grid, threads), arguments)
    }

    /// The same on the stream that libtorch's operations run on unless they are told otherwise.
    pub(crate) fn launch_among_operations(
        self,
        size: ([u32; 2], u32),
        arguments: &[Argument],
    ) -> Result<(), ModelError> {
        self.launch_on(ptr::null_mut(), size, arguments)
    }

    fn launch_on(
        self,
        stream: sys::CUstream,
        (grid, threads): ([u32; 2], u32),
        arguments: &[Argument],
    ) -> Result<(), ModelError> {
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| ptr::from_ref(&argument.0).cast_mut().cast())
            .collect();
        // SAFETY: the driver copies the arguments before it returns; a slot of eight bytes holds every type that is used.
        let status = unsafe {
            sys::cuLaunchKernel(
                self.raw,
                grid[0],
                grid[1],
                1,
                threads,
                1,
                1,
                0,
                stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(status, "starting a kernel")
    }
}

/// Recorded work that is started as a whole.
#[derive(Debug)]
pub(super) struct Graph {
    raw: sys::CUgraphExec,
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Graph {
    /// Records what `work` puts on the stream. Nothing in it may allocate memory or wait.
    pub(super) fn record(
        stream: &Stream,
        work: impl FnOnce() -> Result<(), ModelError>,
    ) -> Result<Self, ModelError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and captures nothing yet.
        check(
            unsafe { sys::cuStreamBeginCapture_v2(stream.raw, mode) },
            "beginning a graph",
        )?;
        let worked = work();
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is capturing; this ends it also where the work failed.
        let status = unsafe { sys::cuStreamEndCapture(stream.raw, &raw mut graph) };
        worked?;
        check(status, "ending a graph")?;
        let mut raw = ptr::null_mut();
        // SAFETY: the graph was just made; it is not needed once it is instantiated.
        let status = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, graph, 0) };
        unsafe { sys::cuGraphDestroy(graph) };
        check(status, "instantiating a graph")?;
        Ok(Self { raw })
    }

    pub(super) fn launch(&self, stream: &Stream) -> Result<(), ModelError> {
        // SAFETY: both are alive.
        check(
            unsafe { sys::cuGraphLaunch(self.raw, stream.raw) },
            "starting a graph",
        )
    }
}

#[expect(unsafe_code, reason = "calls the CUDA driver")]
impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: a graph that still runs is freed by the driver when it has ended.
        unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}
