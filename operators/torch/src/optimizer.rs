//! Gradient buffers and `AdamW` over flat buffers.
//!
//! Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization". State is in 32 bits; 16-bit weights
//! have 32-bit masters.

use engine_core::error::ModelError;
use engine_core::policy::{StepReport, TrainOptions};
use tch::{Kind, Tensor};

use crate::parameters::{Bucket, Parameters, padded};

/// Gradients in the layout of the trained buffers.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    buffers: Vec<Tensor>,
}

impl Gradients {
    /// Gathers the gradients of the trained weights, in the order of [`Parameters::trained`]. An undefined tensor is
    /// a weight that the loss did not depend on.
    pub(crate) fn collect(weights: &Parameters, gradients: &[Tensor]) -> Self {
        let mut gradients = gradients.iter();
        let collect = |bucket: &Bucket| {
            let options = (state_kind(bucket), bucket.flat.device());
            let buffer = Tensor::zeros(bucket.flat.size(), options);
            let mut offset = 0;
            for member in &bucket.members {
                let count = weights.list[*member].numel();
                let gradient = gradients
                    .next()
                    .expect("one gradient for each trained weight");
                if gradient.defined() {
                    buffer
                        .narrow(0, offset, count)
                        .copy_(&gradient.flatten(0, -1));
                }
                offset += padded(count);
            }
            buffer
        };
        Self {
            buffers: trained(weights).map(collect).collect(),
        }
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
            .map(|buffer| buffer.square().sum(Kind::Double))
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

    /// Norm of one weight's gradient, for tests.
    #[cfg(test)]
    pub(crate) fn buffers(&self) -> &[Tensor] {
        &self.buffers
    }
}

/// `AdamW` state of a model.
#[derive(Debug)]
pub(crate) struct AdamW {
    options: TrainOptions,
    /// Steps done.
    pub(crate) steps: i32,
    /// One for each trained buffer.
    pub(crate) states: Vec<State>,
}

/// What the optimizer holds for one buffer.
#[derive(Debug)]
pub(crate) struct State {
    /// The weights in 32 bits: the buffer itself, or a copy of a 16-bit one.
    pub(crate) master: Tensor,
    /// Mean of gradients.
    pub(crate) first: Tensor,
    /// Mean of squared gradients.
    pub(crate) second: Tensor,
}

impl AdamW {
    pub(crate) fn new(options: &TrainOptions, weights: &Parameters) -> Self {
        let states = trained(weights)
            .map(|bucket| {
                let master = bucket.flat.to_kind(state_kind(bucket));
                State {
                    first: master.zeros_like(),
                    second: master.zeros_like(),
                    master,
                }
            })
            .collect();
        Self {
            options: options.clone(),
            steps: 0,
            states,
        }
    }

    /// Clips `gradients` to the global norm and updates the weights.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] when the norm is not finite; nothing is changed then.
    pub(crate) fn step(
        &mut self,
        weights: &mut Parameters,
        mut gradients: Gradients,
        learning_rate: f64,
    ) -> Result<StepReport, ModelError> {
        let grad_norm = gradients.norm();
        if !grad_norm.is_finite() {
            return Err(ModelError::NonFinite(format!(
                "gradient norm is {grad_norm}"
            )));
        }
        self.steps += 1;
        let TrainOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            max_grad_norm,
            ..
        } = self.options;
        let shrink = if grad_norm > max_grad_norm {
            max_grad_norm / grad_norm
        } else {
            1.0
        };
        let (correction1, correction2) =
            (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        let buckets = weights.buckets.iter_mut().filter(|bucket| bucket.trained);
        for ((bucket, state), gradient) in buckets.zip(&mut self.states).zip(&mut gradients.buffers)
        {
            if shrink < 1.0 {
                *gradient *= shrink;
            }
            state.first = state.first.lerp_(gradient, 1.0 - beta1);
            state.second = state.second.lerp_(&gradient.square_(), 1.0 - beta2);
            let denominator = (&state.second / correction2).sqrt_().g_add_scalar_(epsilon);
            if bucket.matrices && weight_decay != 0.0 {
                state.master *= 1.0 - learning_rate * weight_decay;
            }
            let step = (&state.first / denominator).g_mul_scalar_(-learning_rate / correction1);
            state.master += step;
            state.write_back(bucket);
        }
        Ok(StepReport { grad_norm })
    }

    /// Rounds the 32-bit weights into 16-bit buffers again, after they were set from outside.
    pub(crate) fn write_back(&self, weights: &mut Parameters) {
        let buckets = weights.buckets.iter_mut().filter(|bucket| bucket.trained);
        for (bucket, state) in buckets.zip(&self.states) {
            state.write_back(bucket);
        }
    }
}

impl State {
    fn write_back(&self, bucket: &mut Bucket) {
        if bucket.flat.kind() != self.master.kind() {
            bucket.flat.copy_(&self.master);
        }
    }
}

fn trained(weights: &Parameters) -> impl Iterator<Item = &Bucket> {
    weights.buckets.iter().filter(|bucket| bucket.trained)
}

/// Type of gradients and optimizer state for a buffer.
fn state_kind(bucket: &Bucket) -> Kind {
    if bucket.flat.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
}
