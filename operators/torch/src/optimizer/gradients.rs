//! Gradients of the trained weights, added up over the passes of a step.

use tch::{Kind, Tensor};

use super::slices;
use crate::parameters::{Bucket, Parameters, padded, wide_kind};

/// Gradients in the layout of the trained buffers, in 32 bits at least.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    buffers: Vec<Tensor>,
}

impl Gradients {
    /// No gradient yet, with memory for all.
    pub(crate) fn zeros(weights: &Parameters) -> Self {
        let zeros = |bucket: &Bucket| {
            let options = (wide_kind(bucket.flat.kind()), bucket.flat.device());
            Tensor::zeros(bucket.flat.size(), options)
        };
        Self {
            buffers: weights.trained_buckets().map(zeros).collect(),
        }
    }

    /// Whether there is no gradient, and no memory for one.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The gradient of one trained weight, by its place in [`Parameters::list`], as a view of what is added up.
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
            self.buffers = other.buffers;
            return;
        }
        for (mine, theirs) in self.buffers.iter_mut().zip(&other.buffers) {
            *mine += theirs;
        }
    }

    /// Length of all gradients as one vector.
    pub(crate) fn norm(&self) -> f64 {
        let squares: Vec<Tensor> = self
            .buffers
            .iter()
            .flat_map(slices)
            .map(|slice| square_sum(&slice))
            .collect();
        if squares.is_empty() {
            0.0
        } else {
            Tensor::stack(&squares, 0)
                .sum(Kind::Double)
                .double_value(&[])
                .sqrt()
        }
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

fn square_sum(x: &Tensor) -> Tensor {
    if x.device().is_cuda() {
        // In one pass, without memory for the squares.
        x.norm_scalaropt_dtype(2, Kind::Double).square()
    } else {
        x.square().sum(Kind::Double)
    }
}
