//! What does not change while a model is trained.

use serde::{Deserialize, Serialize};

/// What does not change from one optimizer step to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Parameters whose name starts with one of these are not trained, for example `visual.`.
    pub freeze: Vec<String>,
    /// Factors of the learning rate by prefix of the parameter's name; the longest prefix that fits counts, 1 where none does.
    pub learning_rates: Vec<(String, f64)>,
    /// First AdamW moment decay.
    pub beta1: f64,
    /// Second AdamW moment decay.
    pub beta2: f64,
    /// AdamW denominator guard.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices; vectors (biases, norms) have none.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Trains low-rank adapters of matrices; everything else stays as it is.
    pub lora: Option<LoraOptions>,
    /// How weights of 16 bits are updated.
    pub masters: Masters,
    /// Decay, by optimizer step, of an exponential moving average of the weights that is kept beside them.
    pub averaging: Option<f64>,
    /// Activations that the backward pass recomputes, layer by layer, instead of keeping them.
    pub recompute: bool,
    /// Most token positions of one forward and backward pass; None: chosen for the device. A longer sequence is a pass of its own.
    pub micro_batch_tokens: Option<usize>,
    /// Only kernels whose results are the same in every run, where the device has faster ones that are not.
    pub deterministic: bool,
    /// Seed of adapters and of stochastic rounding.
    pub seed: u64,
}

impl Default for TrainOptions {
    /// AdamW with its usual constants over all weights.
    fn default() -> Self {
        Self {
            freeze: Vec::new(),
            learning_rates: Vec::new(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lora: None,
            masters: Masters::Float32,
            averaging: None,
            recompute: false,
            micro_batch_tokens: None,
            deterministic: false,
            seed: 0,
        }
    }
}

/// Low-rank adapters: `W + alpha / rank * B A` (LoRA, Hu et al. 2021, section 4.1).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Scale of the adapters times the rank.
    pub alpha: f64,
    /// Last parts of the names of the modules that get one, as peft's `target_modules`: for example `q_proj`. Empty: every
    /// linear layer of the language model.
    pub targets: Vec<String>,
}

/// How weights that are held in 16 bits are updated.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Masters {
    /// The optimizer holds a copy of 32 bits that small updates add up in.
    #[default]
    Float32,
    /// No copy: updates are rounded up or down at random so that they are right on average. Moments have 16 bits too.
    StochasticRounding,
}
