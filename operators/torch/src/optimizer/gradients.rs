//! Gradients of the trained weights, added up over the passes of a step.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::kernel::Kernel;
use super::slices;
use crate::parameters::{Bucket, Parameters, padded, wide_kind};

/// Gradients in the layout of the trained buffers, in 32 bits at least.
///
/// Memory is not cleared before the first gradient of a weight is written to it: [`Gradients::settle`] clears what got none.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    buffers: Vec<Tensor>,
    /// Whether nothing was written yet, by place in [`Parameters::list`].
    unwritten: Vec<bool>,
}

impl Gradients {
    /// No gradient yet, with memory for all.
    pub(crate) fn new(weights: &Parameters) -> Self {
        let mut unwritten = vec![false; weights.list.len()];
        let mut memory = |bucket: &Bucket| {
            let options = (wide_kind(bucket.flat.kind()), bucket.flat.device());
            let buffer = Tensor::empty(bucket.flat.size(), options);
            let mut start = 0;
            for member in &bucket.members {
                unwritten[*member] = true;
                let count = weights.list[*member].numel();
                let gap = padded(count) - count;
                drop(buffer.narrow(0, start + count, gap).zero_());
                start += padded(count);
            }
            drop(
                buffer
                    .narrow(0, start, buffer.numel() as i64 - start)
                    .zero_(),
            );
            buffer
        };
        Self {
            buffers: weights.trained_buckets().map(&mut memory).collect(),
            unwritten,
        }
    }

    /// Whether there is no gradient, and no memory for one.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Memory of the gradient of one trained weight, by its place in [`Parameters::list`], and whether nothing is in it yet, which the
    /// caller then writes.
    pub(crate) fn memory(&mut self, weights: &Parameters, index: usize) -> (Tensor, bool) {
        let is_unwritten = std::mem::replace(&mut self.unwritten[index], false);
        (self.view(weights, index), is_unwritten)
    }

    /// What a gradient of a weight is added to.
    pub(crate) fn sum(&mut self, weights: &Parameters, index: usize) -> Tensor {
        let (mut view, is_unwritten) = self.memory(weights, index);
        if is_unwritten {
            drop(view.zero_());
        }
        view
    }

    /// Clears the memory of weights without a gradient.
    pub(crate) fn settle(&mut self, weights: &Parameters) {
        for index in 0..self.unwritten.len() {
            if self.unwritten[index] {
                drop(self.sum(weights, index));
            }
        }
    }

    /// The gradient of one trained weight, by its place in [`Parameters::list`].
    pub(crate) fn view(&self, weights: &Parameters, index: usize) -> Tensor {
        let mut buffers = weights.trained_buckets().zip(&self.buffers);
        let (bucket, buffer) = buffers
            .find(|(bucket, _)| bucket.members.contains(&index))
            .expect("the weight is trained");
        let before = bucket.members.iter().take_while(|member| **member != index);
        let start = before
            .map(|member| padded(weights.list[*member].numel()))
            .sum();
        let parameter = &weights.list[index];
        buffer
            .narrow(0, start, parameter.numel())
            .view(parameter.shape.as_slice())
    }

    /// Adds another sum of gradients of the same model.
    pub(crate) fn merge(&mut self, other: Self) {
        if self.buffers.is_empty() {
            *self = other;
            return;
        }
        for (mine, theirs) in self.buffers.iter_mut().zip(&other.buffers) {
            *mine += theirs;
        }
    }

    /// Length of all gradients as one vector.
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(super) fn norm(&self, kernel: Option<&Kernel>) -> Result<f64, ModelError> {
        let sum = |x: Tensor| match kernel {
            Some(kernel) => kernel.square_sum(&x),
            None => Ok(x.square().sum(Kind::Double)),
        };
        let squares = (self.buffers.iter().flat_map(slices))
            .map(sum)
            .collect::<Result<Vec<Tensor>, _>>()?;
        Ok(if squares.is_empty() {
            0.0
        } else {
            Tensor::stack(&squares, 0)
                .sum(Kind::Double)
                .double_value(&[])
                .sqrt()
        })
    }

    /// Bytes that the gradients of these weights take.
    pub(crate) fn bytes(weights: &Parameters) -> u64 {
        let bytes = |bucket: &Bucket| {
            bucket.flat.numel() * wide_kind(bucket.flat.kind()).elt_size_in_bytes()
        };
        weights.trained_buckets().map(bytes).sum::<usize>() as u64
    }

    pub(super) fn buffers_mut(&mut self) -> &mut [Tensor] {
        &mut self.buffers
    }

    /// The buffers, for tests.
    #[cfg(test)]
    pub(crate) fn buffers(&self) -> &[Tensor] {
        &self.buffers
    }
}
