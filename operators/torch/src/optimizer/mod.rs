//! `AdamW` over flat buffers.
//!
//! State is in 32 bits, and 16-bit weights have 32-bit masters; or there are no masters and everything has 16 bits
//! (`stochastic.rs`). On a GPU a step is one pass over memory (`kernel.rs`). Beside the weights there may be a moving average of them.
//! Apart from that a step takes no memory that grows with the model: it works in the gradients' own.
//!
//! Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".

mod gradients;
mod kernel;
mod stochastic;

use engine_core::error::ModelError;
use engine_core::policy::{Masters, StepReport, TrainOptions};
use engine_core::seed;
use tch::{Kind, Tensor};

use crate::parameters::{Bucket, Parameters, views, wide_kind};
use kernel::Kernel;
use stochastic::Rounding;

pub(crate) use gradients::Gradients;

/// Elements of a buffer that are worked on together where temporary memory is needed.
const SLICE: i64 = 1 << 26;

/// `AdamW` state of a model.
#[derive(Debug)]
pub(crate) struct AdamW {
    options: TrainOptions,
    /// Steps done.
    pub(crate) steps: i32,
    /// One for each trained buffer.
    pub(crate) states: Vec<State>,
    /// A step in one pass, on a GPU.
    kernel: Option<Kernel>,
}

/// What the optimizer holds for one buffer.
#[derive(Debug)]
pub(crate) struct State {
    /// The weights as they are updated: the buffer itself, or a copy in 32 bits of a 16-bit one.
    pub(crate) master: Tensor,
    /// Mean of gradients.
    pub(crate) first: Tensor,
    /// Mean of squared gradients.
    pub(crate) second: Tensor,
    /// Moving average of the weights, in 32 bits at least.
    pub(crate) average: Option<Tensor>,
}

/// One step's numbers for one buffer.
#[derive(Clone, Copy, Debug)]
struct Update {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    /// Shares of the moments that their zero start leaves.
    corrections: [f64; 2],
    rate: f64,
    weight_decay: f64,
}

impl AdamW {
    /// A fresh optimizer.
    ///
    /// # Errors
    /// [`ModelError::Input`] for options that do not fit the weights.
    pub(crate) fn new(options: &TrainOptions, weights: &Parameters) -> Result<Self, ModelError> {
        if let Some(decay) = options
            .averaging
            .filter(|decay| !(0.0..1.0).contains(decay))
        {
            return Err(ModelError::Input(format!(
                "`averaging` has the decay {decay}; it must be 0 or more and below 1"
            )));
        }
        let has_masters = options.masters == Masters::Float32;
        if !has_masters && weights.kind != Kind::BFloat16 {
            return Err(ModelError::Input(
                "stochastic rounding is for weights of 16 bits: take `precision: bfloat16`, or masters in 32 bits".to_owned(),
            ));
        }
        if !has_masters && weights.lora.is_some() {
            return Err(ModelError::Input(
                "adapters are trained in 32 bits, which stochastic rounding is not for: take masters in 32 bits".to_owned(),
            ));
        }
        let state = |bucket: &Bucket| {
            let wide = wide_kind(bucket.flat.kind());
            let master = if has_masters {
                bucket.flat.to_kind(wide)
            } else {
                bucket.flat.shallow_clone()
            };
            State {
                first: master.zeros_like(),
                second: master.zeros_like(),
                average: options.averaging.map(|_| bucket.flat.to_kind(wide).copy()),
                master,
            }
        };
        let on_gpu = (weights.trained_buckets())
            .map(|bucket| (bucket.flat.device(), bucket.flat.kind()))
            .find(|(device, kind)| device.is_cuda() && *kind != Kind::Double);
        let kernel = match on_gpu {
            Some((device, _)) => Kernel::new(device)?,
            None => None,
        };
        Ok(Self {
            states: weights.trained_buckets().map(state).collect(),
            kernel,
            options: options.clone(),
            steps: 0,
        })
    }

    /// Clips `gradients` to the global norm and updates the weights.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] when the norm is not finite; nothing is changed then. On a GPU also when it refuses.
    pub(crate) fn step(
        &mut self,
        weights: &mut Parameters,
        mut gradients: Gradients,
        learning_rate: f64,
    ) -> Result<StepReport, ModelError> {
        let grad_norm = gradients.norm(self.kernel.as_ref())?;
        if !grad_norm.is_finite() {
            return Err(ModelError::NonFinite(format!(
                "gradient norm is {grad_norm}"
            )));
        }
        self.steps += 1;
        let limit = self.options.max_grad_norm;
        let shrink = if grad_norm > limit {
            limit / grad_norm
        } else {
            1.0
        };
        let stream = seed::derive(self.options.seed, "stochastic rounding");
        // Without any pass before it a step has no gradients.
        let buckets = weights
            .trained_buckets()
            .zip(gradients.buffers_mut())
            .enumerate();
        for (number, (bucket, gradient)) in buckets {
            let update = self.update(bucket, learning_rate);
            let rounding = Rounding::new(stream, self.steps, number);
            self.step_bucket(number, bucket, &update, (gradient, shrink), rounding)?;
            self.states[number].follow(self.options.averaging);
        }
        if self.kernel.is_some() {
            weights.merge_adapters();
        } else {
            self.write_back(weights);
        }
        Ok(StepReport { grad_norm })
    }

    /// Updates the state of one buffer, by gradients that are to be shrunk first; their memory is used up. A GPU's kernel writes what the
    /// model computes with too.
    fn step_bucket(
        &self,
        number: usize,
        bucket: &Bucket,
        update: &Update,
        (gradient, shrink): (&mut Tensor, f64),
        rounding: Rounding,
    ) -> Result<(), ModelError> {
        let State {
            master,
            first,
            second,
            ..
        } = &self.states[number];
        let parts = [master, first, second];
        let is_rounded = master.kind() == Kind::BFloat16;
        if let Some(kernel) = &self.kernel {
            return if is_rounded {
                kernel.apply_rounding(update, parts, gradient, shrink, rounding)
            } else {
                let narrowed = (bucket.flat.kind() != master.kind()).then_some(&bucket.flat);
                kernel.apply(update, parts, gradient, shrink, narrowed)
            };
        }
        if shrink < 1.0 {
            *gradient *= shrink;
        }
        if is_rounded {
            update.apply_rounding(parts, gradient, rounding);
        } else {
            update.apply(parts, gradient);
        }
        Ok(())
    }

    fn update(&self, bucket: &Bucket, learning_rate: f64) -> Update {
        let TrainOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = self.options;
        Update {
            beta1,
            beta2,
            epsilon,
            corrections: [beta1, beta2].map(|beta| 1.0 - beta.powi(self.steps)),
            rate: learning_rate * bucket.factor,
            weight_decay: if bucket.matrices { weight_decay } else { 0.0 },
        }
    }

    /// Brings what the model computes with up to the optimizer's weights, after these have changed.
    pub(crate) fn write_back(&self, weights: &mut Parameters) {
        let buckets = weights.buckets.iter_mut().filter(|bucket| bucket.trained);
        for (bucket, state) in buckets.zip(&self.states) {
            if bucket.flat.kind() != state.master.kind() {
                bucket.flat.copy_(&state.master);
            }
        }
        weights.merge_adapters();
    }

    /// The weights' moving average in place of the weights, for reading; `None` when none is kept.
    pub(crate) fn averaged(&self, weights: &Parameters) -> Option<Parameters> {
        let mut tensors: Vec<Tensor> = weights.tensors.iter().map(Tensor::detach).collect();
        for (bucket, state) in weights.trained_buckets().zip(&self.states) {
            let flat = state.average.as_ref()?.to_kind(bucket.flat.kind());
            for (member, tensor) in views(&flat, &bucket.members, &weights.list) {
                tensors[member] = tensor;
            }
        }
        if let Some(lora) = &weights.lora {
            lora.detach_sites(&mut tensors);
            lora.merge_into(&tensors);
        }
        Some(weights.with(tensors))
    }

    /// Bytes of masters and moments, and of the average.
    pub(crate) fn bytes(&self, weights: &Parameters) -> (u64, u64) {
        let size = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        let (mut optimizer, mut average) = (0, 0);
        for (bucket, state) in weights.trained_buckets().zip(&self.states) {
            optimizer += size(&state.first) + size(&state.second);
            if state.master.kind() != bucket.flat.kind() {
                optimizer += size(&state.master);
            }
            average += state.average.as_ref().map_or(0, size);
        }
        (optimizer, average)
    }
}

impl State {
    /// Moves the average towards the weights.
    fn follow(&self, decay: Option<f64>) {
        let (Some(average), Some(decay)) = (&self.average, decay) else {
            return;
        };
        for (mut average, master) in slices(average).zip(slices(&self.master)) {
            drop(average.lerp_(&master.to_kind(average.kind()), 1.0 - decay));
        }
    }
}

impl Update {
    /// One step on a stretch of weights and moments in 32 bits at least. The gradient's memory is used up.
    fn apply(self, [master, first, second]: [&Tensor; 3], gradient: &Tensor) {
        let [mut master, mut first, mut second, mut scratch] =
            [master, first, second, gradient].map(Tensor::shallow_clone);
        let [correction1, correction2] = self.corrections;
        drop(first.lerp_(&scratch, 1.0 - self.beta1));
        drop(second.lerp_(&scratch.square_(), 1.0 - self.beta2));
        scratch.copy_(&second);
        scratch /= correction2;
        let scratch = scratch.sqrt_().g_add_scalar_(self.epsilon);
        if self.weight_decay != 0.0 {
            master *= 1.0 - self.rate * self.weight_decay;
        }
        master += first
            .div_out(&scratch, &scratch)
            .g_mul_scalar_(-self.rate / correction1);
    }

    /// One step on weights and moments of 16 bits, rounded at random.
    fn apply_rounding(self, stored: [&Tensor; 3], gradient: &Tensor, rounding: Rounding) {
        stochastic::for_each_piece(gradient, |start, gradient| {
            let stored = stored.map(|x| x.narrow(0, start, gradient.size()[0]));
            let wide = stored.each_ref().map(|x| x.to_kind(Kind::Float));
            self.apply(wide.each_ref(), gradient);
            rounding.store(start, &wide, &stored);
        });
    }
}

/// Stretches of a buffer that are small enough for temporary copies.
fn slices(buffer: &Tensor) -> impl Iterator<Item = Tensor> {
    let length = buffer.size()[0];
    let starts = (0..length).step_by(SLICE as usize);
    starts.map(move |start| buffer.narrow(0, start, SLICE.min(length - start)))
}
