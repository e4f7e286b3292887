//! Settings of the optimizer that all training stages share.

use engine_core::policy::TrainOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;

/// Constants of `AdamW`; the defaults are the usual ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the mean of gradients, by step. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean of squared gradients, by step. Default 0.999.
    pub beta2: f64,
    /// Added to the denominator. Default 1e-8.
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

/// Default of `max-grad-norm`.
pub(crate) fn max_grad_norm() -> f64 {
    1.0
}

/// Collects faults of the shared settings.
pub(crate) fn check(
    faults: &mut ValueFaults,
    adamw: &AdamW,
    weight_decay: f64,
    max_grad_norm: f64,
) {
    faults.below_one("beta1", adamw.beta1);
    faults.below_one("beta2", adamw.beta2);
    faults.positive("epsilon", adamw.epsilon);
    faults.not_negative("weight-decay", weight_decay);
    faults.positive("max-grad-norm", max_grad_norm);
}

/// The settings as the policy takes them.
pub(crate) fn train_options(
    adamw: &AdamW,
    weight_decay: f64,
    max_grad_norm: f64,
    freeze: &[String],
) -> TrainOptions {
    TrainOptions {
        freeze: freeze.to_vec(),
        beta1: adamw.beta1,
        beta2: adamw.beta2,
        epsilon: adamw.epsilon,
        weight_decay,
        max_grad_norm,
    }
}
