//! libtorch's `AdamW` in one pass over memory, for a GPU: the same step as by plain operations, which would read and write
//! everything several times.
//!
//! The bindings have no operation that changes lists of tensors, so it is found by its name in the library. On the CPU a step
//! is done by plain operations, whose results older runs have.

use std::ffi::c_void;
use std::ptr;

use libloading::os::unix::{Library, Symbol};
use tch::Tensor;

use super::Update;

/// `at::_ops::_fused_adamw_::call` of libtorch 2.11.
const NAME: &[u8] =
    b"_ZN2at4_ops13_fused_adamw_4callEN3c108ArrayRefINS_6TensorEEES5_S5_S5_S5_S5_dddddbbRKSt8optionalIS4_ES9_\0";

/// `c10::ArrayRef<at::Tensor>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct List {
    first: *const c_void,
    length: usize,
}

/// `std::optional<at::Tensor>` without a tensor.
#[repr(C)]
struct NoTensor {
    pointer: *const c_void,
    is_there: bool,
}

type Call = unsafe extern "C-unwind" fn(
    List,
    List,
    List,
    List,
    List,
    List,
    f64,
    f64,
    f64,
    f64,
    f64,
    bool,
    bool,
    *const NoTensor,
    *const NoTensor,
);

/// The operation.
#[derive(Debug)]
pub(super) struct Fused(Symbol<Call>);

impl List {
    /// A list of one: the bindings' tensors are pointers to the library's.
    fn one(tensor: &Tensor) -> Self {
        Self {
            first: tensor.as_ptr().cast(),
            length: 1,
        }
    }

    const EMPTY: Self = Self {
        first: ptr::null(),
        length: 0,
    };
}

#[expect(
    unsafe_code,
    reason = "calls an operation of libtorch that the bindings lack"
)]
impl Fused {
    /// `None` where libtorch is another version than the one that this crate is built for.
    pub(super) fn find() -> Option<Self> {
        // SAFETY: the type is that of `ATen/ops/_fused_adamw_ops.h` of version 2.11, which the name spells out.
        unsafe { Library::this().get(NAME).ok().map(Self) }
    }

    /// One step, of which `steps` is the number, on weights and moments of 32 bits.
    pub(super) fn apply(
        &self,
        update: &Update,
        steps: i32,
        [master, first, second]: [&Tensor; 3],
        gradient: &Tensor,
    ) {
        let steps = Tensor::from(f64::from(steps))
            .to_kind(master.kind())
            .to_device(master.device());
        let nothing = NoTensor {
            pointer: ptr::null(),
            is_there: false,
        };
        let (has_largest_moments, is_ascent) = (false, false);
        // SAFETY: all tensors outlive the call, are of one shape, type and device, and only this thread has them.
        unsafe {
            (self.0)(
                List::one(master),
                List::one(gradient),
                List::one(first),
                List::one(second),
                List::EMPTY,
                List::one(&steps),
                update.rate,
                update.beta1,
                update.beta2,
                update.weight_decay,
                update.epsilon,
                has_largest_moments,
                is_ascent,
                &raw const nothing,
                &raw const nothing,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_fused_step_is_the_plain_one() {
        let normal = |stream: u64| {
            let mut values = vec![0.0_f32; 1000];
            crate::philox::fill_normal(stream, 1.0, &mut values);
            Tensor::from_slice(&values)
        };
        let update = Update {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            corrections: [0.9_f64, 0.99].map(|beta| 1.0 - beta.powi(3)),
            rate: 1e-2,
            weight_decay: 0.1,
        };
        let state = || [normal(1), normal(2), normal(3).square()];
        let (plain, fused) = (state(), state());
        update.apply(plain.each_ref(), &normal(4));
        let operation = Fused::find().unwrap();
        operation.apply(&update, 3, fused.each_ref(), &normal(4));
        for ((plain, fused), before) in plain.iter().zip(&fused).zip(state()) {
            let largest = |x: Tensor| x.abs().max().double_value(&[]);
            assert!(largest(plain - before) > 1e-2);
            assert!(largest(plain - fused) < 1e-6);
            assert_eq!((fused.kind(), fused.device()), (Kind::Float, Device::Cpu));
        }
    }
}
