//! Operations of libtorch that the bindings lack, through its C interface for compiled programs (`aoti_torch`), which keeps its
//! binary form between versions.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use engine_core::error::ModelError;
use libloading::os::unix::{Library, Symbol};
use tch::Tensor;

use super::driver::Stream;

type Handle = *mut c_void;

/// The functions, found in the libraries that are open.
#[derive(Debug)]
pub(crate) struct Aten {
    create_guard: Symbol<unsafe extern "C" fn(*mut c_void, i32, *mut Handle) -> i32>,
    delete_guard: Symbol<unsafe extern "C" fn(Handle) -> i32>,
    flash: Symbol<FlashForward>,
    dense: Symbol<DenseForward>,
}

type FlashForward = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    *const Handle,
    *const Handle,
    i64,
    i64,
    f64,
    i32,
    i32,
    *const f64,
    *const i64,
    *const i64,
    *const Handle,
    *const Handle,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut Handle,
) -> i32;

type DenseForward = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    *const Handle,
    i32,
    f64,
    i32,
    i32,
    *const f64,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut Handle,
    *mut i64,
    *mut i64,
    *mut Handle,
    *mut Handle,
    *mut Handle,
) -> i32;

/// While it lives, libtorch's operations of this thread run on a stream.
#[derive(Debug)]
pub(super) struct StreamGuard {
    raw: Handle,
    aten: Arc<Aten>,
    /// A guard ends on the thread that made it.
    thread: PhantomData<*const ()>,
}

/// Sequences of different lengths that lie one after the other.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    /// `[tokens, heads, width]`
    pub(crate) queries: &'a Tensor,
    /// `[tokens, key heads, width]`
    pub(crate) keys: &'a Tensor,
    /// As the keys.
    pub(crate) values: &'a Tensor,
    /// `[sequences + 1]`, 32 bits: where each begins.
    pub(crate) query_starts: &'a Tensor,
    /// The same for keys.
    pub(crate) key_starts: &'a Tensor,
    /// Tokens of the longest.
    pub(crate) longest_query: i64,
    /// The same for keys.
    pub(crate) longest_key: i64,
}

#[expect(unsafe_code, reason = "calls the C interface of libtorch")]
impl Aten {
    /// Finds the functions.
    ///
    /// # Errors
    /// When libtorch is another version than the one that this crate is built for.
    pub(crate) fn find() -> Result<Self, ModelError> {
        let library = Library::this();
        let missing = |error: libloading::Error| {
            ModelError::Backend(format!("this libtorch lacks a function of 2.11: {error}"))
        };
        // SAFETY: the types are those of `torch/csrc/inductor/aoti_torch` of version 2.11.
        unsafe {
            Ok(Self {
                create_guard: library
                    .get(b"aoti_torch_create_cuda_stream_guard\0")
                    .map_err(missing)?,
                delete_guard: library
                    .get(b"aoti_torch_delete_cuda_stream_guard\0")
                    .map_err(missing)?,
                flash: library
                    .get(b"aoti_torch_cuda__flash_attention_forward\0")
                    .map_err(missing)?,
                dense: library
                    .get(b"aoti_torch_cuda__scaled_dot_product_cudnn_attention\0")
                    .map_err(missing)?,
            })
        }
    }

    /// Makes a stream current.
    pub(super) fn use_stream(
        self: &Arc<Self>,
        stream: &Stream,
        device: i32,
    ) -> Result<StreamGuard, ModelError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the stream is alive, and its owner outlives the guard.
        let status = unsafe { (self.create_guard)(stream.raw.cast(), device, &raw mut raw) };
        worked(status, "making a stream current")?;
        Ok(StreamGuard {
            raw,
            aten: Arc::clone(self),
            thread: PhantomData,
        })
    }

    /// Causal attention over packed sequences (Dao 2023, FlashAttention-2): `[tokens, heads, width]`. Where a sequence has more keys
    /// than queries, the queries are its last tokens.
    pub(super) fn flash_attention(&self, packed: &Packed<'_>) -> Result<Tensor, ModelError> {
        let [out, ..] = self.flash_forward(packed, true)?;
        Ok(out)
    }

    /// The same with what the backward pass needs: the output, the log-sum-exp of each query, `[heads, tokens]` in 32 bits, and the
    /// two states of the kernel, undefined where it has none.
    pub(crate) fn flash_forward(
        &self,
        packed: &Packed<'_>,
        causal: bool,
    ) -> Result<[Tensor; 4], ModelError> {
        let handle = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
        let (query_starts, key_starts) = (handle(packed.query_starts), handle(packed.key_starts));
        let mut results: [Handle; 5] = [ptr::null_mut(); 5];
        let [out, rest @ ..] = &mut results;
        let [logsumexp, seed, offset, mask] = rest;
        // SAFETY: a tensor of the bindings and a handle are both a pointer to `at::Tensor`; inputs are borrowed, results owned
        // by the caller.
        let status = unsafe {
            (self.flash)(
                handle(packed.queries),
                handle(packed.keys),
                handle(packed.values),
                &raw const query_starts,
                &raw const key_starts,
                packed.longest_query,
                packed.longest_key,
                0.0,
                i32::from(causal),
                0,
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                out,
                logsumexp,
                seed,
                offset,
                mask,
            )
        };
        worked(status, "attention over packed sequences")?;
        let [out, logsumexp, seed, offset, _] = results.map(taken_over);
        if out.defined() && logsumexp.defined() {
            Ok([out, logsumexp, seed, offset])
        } else {
            let message = "libtorch: attention gave no result";
            Err(ModelError::Backend(message.to_owned()))
        }
    }

    /// Causal attention over sequences of one length by cuDNN, with what the backward pass needs: the output as the queries, the log-sum-exp
    /// of each query, and the two states of the kernel.
    ///
    /// # Shapes
    /// - queries `[sequences, heads, length, width]`, keys and values `[sequences, key heads, length, width]`, of any strides
    pub(crate) fn dense_attention(
        &self,
        [queries, keys, values]: [&Tensor; 3],
    ) -> Result<[Tensor; 4], ModelError> {
        let handle = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
        let mut results: [Handle; 7] = [ptr::null_mut(); 7];
        let [out, logsumexp, query_starts, key_starts, seed, offset, mask] = &mut results;
        let (mut longest_query, mut longest_key) = (0, 0);
        let (is_causal, with_logsumexp, with_mask, dropout) = (1, 1, 0, 0.0);
        // SAFETY: as for `flash_forward`; the numbers are written to live integers.
        let status = unsafe {
            (self.dense)(
                handle(queries),
                handle(keys),
                handle(values),
                ptr::null(),
                with_logsumexp,
                dropout,
                is_causal,
                with_mask,
                ptr::null(),
                out,
                logsumexp,
                query_starts,
                key_starts,
                &raw mut longest_query,
                &raw mut longest_key,
                seed,
                offset,
                mask,
            )
        };
        worked(status, "attention over sequences of one length")?;
        let [out, logsumexp, _, _, seed, offset, _] = results.map(taken_over);
        Ok([out, logsumexp, seed, offset])
    }
}

/// The tensor of a handle that belongs to the caller; undefined where there is none.
#[expect(unsafe_code, reason = "takes over what libtorch hands out")]
fn taken_over(result: Handle) -> Tensor {
    if result.is_null() {
        Tensor::new()
    } else {
        // SAFETY: a new reference, taken over here.
        unsafe { Tensor::from_ptr(result.cast()) }
    }
}

#[expect(unsafe_code, reason = "calls the C interface of libtorch")]
impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: made by `create_guard` and deleted once.
        unsafe { (self.aten.delete_guard)(self.raw) };
    }
}

fn worked(status: i32, what: &str) -> Result<(), ModelError> {
    if status == 0 {
        Ok(())
    } else {
        Err(ModelError::Backend(format!("libtorch: {what} failed")))
    }
}
