//! A step of the optimizer on a GPU by our own kernels: one pass over memory, clipping and the copy in 16 bits included. By plain
//! operations it would read and write everything several times.

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::Update;
use super::stochastic::Rounding;
use crate::cuda::{Argument, Function, Module, compile, device_facts};

const SOURCE: &str = concat!(
    include_str!("../cuda/kernels/common.cu"),
    include_str!("kernels/adamw.cu"),
);
const THREADS: u32 = 256;
/// Elements of a thread with 32-bit and with 16-bit weights.
const WIDE_EACH: u32 = 4;
const NARROW_EACH: u32 = 8;
/// Blocks for each multiprocessor where a block goes through many elements.
const BLOCKS_EACH: u32 = 8;

/// The kernels.
#[derive(Debug)]
pub(super) struct Kernel {
    adamw: Function,
    adamw_rounding: Function,
    square_sums: Function,
    /// Blocks of the sums.
    blocks: u32,
    /// Owns the functions.
    _module: Module,
}

// SAFETY: the handles belong to the process, and starting a kernel is safe from every thread.
#[expect(unsafe_code, reason = "handles of CUDA are pointers")]
unsafe impl Send for Kernel {}

impl Kernel {
    /// Compiles them; `None` on another device.
    ///
    /// # Errors
    /// When the run-time compiler is missing or refuses.
    pub(super) fn new(device: Device) -> Result<Option<Self>, ModelError> {
        let Device::Cuda(number) = device else {
            return Ok(None);
        };
        // Makes the context of libtorch current on this thread.
        drop(Tensor::zeros([1], (Kind::Float, device)));
        let (processors, capability) = device_facts(i32::try_from(number).unwrap_or(0))?;
        let module = Module::load(&compile(SOURCE, &[], capability)?)?;
        Ok(Some(Self {
            adamw: module.function("adamw")?,
            adamw_rounding: module.function("adamw_rounding")?,
            square_sums: module.function("square_sums")?,
            blocks: BLOCKS_EACH * processors,
            _module: module,
        }))
    }

    /// The sum of squares of 32-bit numbers, in 64 bits: `[count]` -> `[]`.
    pub(super) fn square_sum(&self, values: &Tensor) -> Result<Tensor, ModelError> {
        let options = (Kind::Double, values.device());
        let partials = Tensor::empty([i64::from(self.blocks)], options);
        let arguments = [
            Argument::from(values),
            (&partials).into(),
            (values.numel() as u64).into(),
        ];
        self.square_sums
            .launch_among_operations(([self.blocks, 1], THREADS), &arguments)?;
        Ok(partials.sum(Kind::Double))
    }

    /// One step on weights and moments of 32 bits, with gradients times `shrink`. `narrowed` are the same weights in 16 bits, if the model
    /// computes with such.
    ///
    /// # Shapes
    /// - all `[count]`
    pub(super) fn apply(
        &self,
        update: &Update,
        [master, first, second]: [&Tensor; 3],
        gradient: &Tensor,
        shrink: f64,
        narrowed: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        let count = master.numel() as u64;
        let mut arguments: Vec<Argument> = vec![
            master.into(),
            first.into(),
            second.into(),
            gradient.into(),
            narrowed.into(),
            count.into(),
        ];
        arguments.extend(numbers(update, shrink));
        self.adamw
            .launch_among_operations(size(count, WIDE_EACH), &arguments)
    }

    /// One step on weights and moments of 16 bits, rounded at random.
    ///
    /// # Shapes
    /// - all `[count]`; the gradient in 32 bits
    pub(super) fn apply_rounding(
        &self,
        update: &Update,
        [master, first, second]: [&Tensor; 3],
        gradient: &Tensor,
        shrink: f64,
        rounding: Rounding,
    ) -> Result<(), ModelError> {
        let count = master.numel() as u64;
        let mut arguments: Vec<Argument> = vec![
            master.into(),
            first.into(),
            second.into(),
            gradient.into(),
            count.into(),
        ];
        arguments.extend(numbers(update, shrink));
        let ([low, high], [step, buffer]) = rounding.words_of_kernel();
        arguments.extend([low, high, step, buffer].map(Argument::from));
        self.adamw_rounding
            .launch_among_operations(size(count, NARROW_EACH), &arguments)
    }
}

/// The numbers of a step in the order of the kernels.
fn numbers(update: &Update, shrink: f64) -> [Argument; 7] {
    let [correction1, correction2] = update.corrections;
    [
        shrink,
        1.0 - update.beta1,
        1.0 - update.beta2,
        1.0 / correction2,
        update.rate / correction1,
        update.epsilon,
        1.0 - update.rate * update.weight_decay,
    ]
    .map(|number| (number as f32).into())
}

/// Blocks and threads for so many elements, of which a thread has some.
fn size(count: u64, each: u32) -> ([u32; 2], u32) {
    let blocks = count.div_ceil(u64::from(each * THREADS));
    ([u32::try_from(blocks).unwrap_or(u32::MAX), 1], THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masters, moments and gradients, of which the second moment is positive.
    fn state(kind: Kind, device: Device) -> [Tensor; 4] {
        [1, 2, 3, 4].map(|stream| {
            let mut values = vec![0.0_f32; 40_000];
            crate::philox::fill_normal(stream, 1.0, &mut values);
            let x = Tensor::from_slice(&values);
            let x = if stream == 3 { x.square() } else { x };
            let kind = if stream == 4 { Kind::Float } else { kind };
            x.to_kind(kind).to_device(device)
        })
    }

    fn update() -> Update {
        Update {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            corrections: [0.9_f64, 0.99].map(|beta| 1.0 - beta.powi(3)),
            rate: 1e-2,
            weight_decay: 0.1,
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn a_step_on_a_gpu_is_the_plain_one() {
        let gpu = crate::DeviceChoice::Cuda(0).resolve().unwrap();
        let kernel = Kernel::new(gpu).unwrap().unwrap();
        let (update, shrink) = (update(), 0.5);
        let gap = |one: &Tensor, two: &Tensor| {
            let two = two.to_device(Device::Cpu).to_kind(Kind::Double);
            (one.to_kind(Kind::Double) - two)
                .abs()
                .max()
                .double_value(&[])
        };
        let [one, first, second, gradient] = state(Kind::Float, Device::Cpu);
        update.apply([&one, &first, &second], &(gradient * shrink));
        let [two, other_first, other_second, gradient] = state(Kind::Float, gpu);
        let narrowed = Tensor::zeros([40_000], (Kind::BFloat16, gpu));
        kernel
            .apply(
                &update,
                [&two, &other_first, &other_second],
                &gradient,
                shrink,
                Some(&narrowed),
            )
            .unwrap();
        for (plain, found) in [
            (&one, &two),
            (&first, &other_first),
            (&second, &other_second),
        ] {
            assert!(gap(plain, found) < 2e-6);
        }
        assert_eq!(narrowed, two.to_kind(Kind::BFloat16));

        let (sum, exact) = (
            kernel.square_sum(&gradient).unwrap().double_value(&[]),
            gradient.to_kind(Kind::Double).square().sum(Kind::Double),
        );
        assert!((sum / exact.double_value(&[]) - 1.0).abs() < 1e-12);

        // Nearly all are rounded alike: what is computed differs in the last of 32 bits.
        let rounding = Rounding::new(7, 3, 1);
        let [one, first, second, gradient] = state(Kind::BFloat16, Device::Cpu);
        update.apply_rounding([&one, &first, &second], &(gradient * shrink), rounding);
        let [two, other_first, other_second, gradient] = state(Kind::BFloat16, gpu);
        kernel
            .apply_rounding(
                &update,
                [&two, &other_first, &other_second],
                &gradient,
                shrink,
                rounding,
            )
            .unwrap();
        for (plain, found) in [
            (&one, &two),
            (&first, &other_first),
            (&second, &other_second),
        ] {
            let equal = plain.eq_tensor(&found.to_device(Device::Cpu));
            let share = equal
                .to_kind(Kind::Double)
                .mean(Kind::Double)
                .double_value(&[]);
            assert!(share > 0.999, "{share}");
            assert!(gap(plain, found) < 0.04);
        }
    }
}
