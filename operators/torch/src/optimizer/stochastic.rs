//! Rounding to 16 bits up or down at random, so that what is rounded away is right on average: an update far below the
//! distance of two 16-bit numbers still moves a weight by the right amount over many steps.
//!
//! The random bits are a pure function of seed, step and place, so that a run that goes on from files rounds as one that never
//! stopped, on any device. By plain operations they take far more memory traffic than the update itself; on a GPU `kernel.rs` does both
//! in one pass.
//!
//! Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3; the generator is that of
//! `philox.rs`, over tensors.

use tch::{Device, Kind, Tensor};

use crate::philox::{KEY_STEPS, MULTIPLIERS, ROUNDS, high, low};

/// Elements that are rounded together; even, and bounds the temporary memory.
const PIECE: i64 = 1 << 22;
/// The bits of a 32-bit float that are not in a 16-bit one.
const LOST_BITS: i64 = 0xFFFF;
const WORD: i64 = 0xFFFF_FFFF;

/// The random bits of one buffer in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    stream: u64,
    /// Step and number of the buffer.
    counter: [u32; 2],
}

/// Calls `work` with the start of each piece of a vector, and the piece.
pub(super) fn for_each_piece(vector: &Tensor, work: impl Fn(i64, &Tensor)) {
    let length = vector.size()[0];
    let mut start = 0;
    while start < length {
        work(start, &vector.narrow(0, start, PIECE.min(length - start)));
        start += PIECE;
    }
}

impl Rounding {
    pub(super) fn new(stream: u64, step: i32, buffer: usize) -> Self {
        Self {
            stream,
            counter: [step.unsigned_abs(), low(buffer as u64)],
        }
    }

    /// Key and last half of the counters, for the kernel of a GPU.
    pub(super) fn words_of_kernel(self) -> ([u32; 2], [u32; 2]) {
        ([low(self.stream), high(self.stream)], self.counter)
    }

    /// Rounds three 32-bit vectors, which are used up, into three 16-bit ones.
    ///
    /// # Shapes
    /// - all `[count]`, of which the first element stands at `start` of its buffer; both numbers are even
    pub(super) fn store(self, start: i64, wide: &[Tensor; 3], stored: &[Tensor; 3]) {
        let noise = self.noise(start, wide[0].size()[0], wide[0].device());
        for ((wide, stored), noise) in wide.iter().zip(stored).zip(noise) {
            // The upper half of a 32-bit float is the 16-bit float below it in size; a carry from the lower half makes it the next.
            let mut bits = wide.view_dtype(Kind::Int);
            bits += noise;
            drop(bits.bitwise_and_(!LOST_BITS));
            stored.shallow_clone().copy_(wide);
        }
    }

    /// Three independent vectors of 16 random bits for each element.
    fn noise(self, start: i64, count: i64, device: Device) -> [Tensor; 3] {
        let words = self.words(start / 2, count / 2, device);
        let lower = |word: &Tensor| word.bitwise_and(LOST_BITS);
        let upper = |word: &Tensor| word.bitwise_right_shift_tensor_scalar(16);
        // A counter's four words are for two elements.
        let both = |even: Tensor, odd: Tensor| {
            Tensor::stack(&[even, odd], 1).view([-1]).to_kind(Kind::Int)
        };
        [
            both(lower(&words[0]), lower(&words[2])),
            both(upper(&words[0]), upper(&words[2])),
            both(lower(&words[1]), lower(&words[3])),
        ]
    }

    /// The four words of each of `count` counters from `start` on.
    fn words(self, start: i64, count: i64, device: Device) -> [Tensor; 4] {
        let options = (Kind::Int64, device);
        let index = Tensor::arange_start(start, start + count, options);
        let [step, buffer] = self.counter.map(|word| index.full_like(i64::from(word)));
        let mut counter = [lower_word(&index), upper_word(&index), step, buffer];
        let mut key = [low(self.stream), high(self.stream)];
        for _ in 0..ROUNDS {
            let [first, second] = [0, 1].map(|half| {
                // The product of two words has 64 bits; that its sign is one of them does not matter.
                &counter[2 * half] * i64::from(MULTIPLIERS[half])
            });
            let mixed = |product: &Tensor, other: &Tensor, key: u32| {
                let mut word = upper_word(product).bitwise_xor_tensor_(other);
                word.bitwise_xor_(i64::from(key))
            };
            counter = [
                mixed(&second, &counter[1], key[0]),
                lower_word(&second),
                mixed(&first, &counter[3], key[1]),
                lower_word(&first),
            ];
            key = [
                key[0].wrapping_add(KEY_STEPS[0]),
                key[1].wrapping_add(KEY_STEPS[1]),
            ];
        }
        counter
    }
}

fn lower_word(x: &Tensor) -> Tensor {
    x.bitwise_and(WORD)
}

fn upper_word(x: &Tensor) -> Tensor {
    x.bitwise_right_shift_tensor_scalar(32).bitwise_and_(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::philox;

    #[test]
    fn the_bits_are_those_of_the_generator() {
        let rounding = Rounding::new(0x299F_31D0_A409_3822, 7, 3);
        let start = (1 << 33) - 2;
        let words = rounding
            .words(start, 5, Device::Cpu)
            .map(|word| Vec::<i64>::try_from(word).unwrap());
        for place in 0..5 {
            let index = start as u64 + place as u64;
            let expected = philox([low(index), high(index), 7, 3], [0xA409_3822, 0x299F_31D0]);
            assert_eq!(
                words.each_ref().map(|word| word[place]),
                expected.map(i64::from)
            );
        }
    }

    #[test]
    fn rounding_is_right_on_average_and_never_far() {
        // A quarter and three quarters of the way between two 16-bit numbers, and one of them.
        let step = 2.0_f64.powi(-7);
        let values = [1.0 + 0.25 * step, -(1.0 + 0.75 * step), 1.0 + step];
        let count = 20_000;
        let options = (Kind::Float, Device::Cpu);
        let wide = values.map(|value| Tensor::full([count], value, options));
        let stored = [0; 3].map(|_| Tensor::zeros([count], (Kind::BFloat16, Device::Cpu)));
        Rounding::new(5, 1, 0).store(40, &wide, &stored);
        for (value, stored) in values.iter().zip(&stored) {
            let stored = stored.to_kind(Kind::Double);
            let mean = stored.mean(Kind::Double).double_value(&[]);
            assert!((mean - value).abs() < 0.02 * step, "{mean} {value}");
            let farthest = (stored - *value).abs().max().double_value(&[]);
            assert!(farthest < step, "{farthest}");
        }
        let again = [0; 3].map(|_| Tensor::zeros([10], (Kind::BFloat16, Device::Cpu)));
        let wide = values.map(|value| Tensor::full([10], value, options));
        Rounding::new(5, 1, 0).store(60, &wide, &again);
        for (again, stored) in again.iter().zip(&stored) {
            assert_eq!(*again, stored.narrow(0, 20, 10));
        }
    }
}
