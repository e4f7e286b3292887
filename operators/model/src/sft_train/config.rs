//! What a pipeline says of an `sft-train` stage.

use engine_core::policy::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;
use crate::optimizer::{self, AdamW};
use crate::schedule::Schedule;

/// Trains a model to imitate examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SftTrain {
    /// Optimizer steps. Give either this or `epochs`.
    #[serde(default)]
    pub steps: Option<u32>,
    /// Visits of every example. Give either this or `steps`.
    #[serde(default)]
    pub epochs: Option<u32>,
    /// Examples of an optimizer step. They come in a new order in every epoch; a step may reach into the next epoch.
    pub sequences_per_step: u32,
    /// Most tokens of an example, prompt and image tokens included. Longer ones are dropped and named in a warning.
    /// Default: none is dropped.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u32,
    /// How the learning rate goes on. Default `cosine`.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// Decoupled weight decay of matrices. Default 0.
    #[serde(default)]
    pub weight_decay: f64,
    /// Constants of the optimizer.
    #[serde(default)]
    pub adamw: AdamW,
    /// Gradients are scaled down to this global norm. Default 1.
    #[serde(default = "optimizer::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Parameters whose names start with one of these stay as they are, for example `visual.`. Default none.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Number format of the weights. Default `float32`.
    #[serde(default)]
    pub precision: Precision,
}

fn cosine() -> Schedule {
    Schedule::Cosine
}

impl SftTrain {
    /// Optimizer steps for this many examples.
    pub(super) fn total_steps(&self, examples: usize) -> u64 {
        let visits = |epochs: u32| u64::from(epochs) * examples as u64;
        match (self.steps, self.epochs) {
            (Some(steps), _) => u64::from(steps),
            (None, epochs) => {
                visits(epochs.unwrap_or(0)).div_ceil(u64::from(self.sequences_per_step))
            }
        }
    }

    /// Examples to visit: with `epochs`, the last step is smaller when they do not fill it.
    pub(super) fn total_visits(&self, examples: usize) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => u64::from(steps) * u64::from(self.sequences_per_step),
            (None, epochs) => u64::from(epochs.unwrap_or(0)) * examples as u64,
        }
    }

    /// Every value that is out of range.
    pub(super) fn faults(&self) -> Vec<engine_core::Fault> {
        let mut faults = ValueFaults::default();
        match (self.steps, self.epochs) {
            (Some(steps), None) => faults.at_least("steps", u64::from(steps), 1),
            (None, Some(epochs)) => faults.at_least("epochs", u64::from(epochs), 1),
            (None, None) => faults.fault(
                "steps",
                "neither `steps` nor `epochs` is given; give one of them".into(),
            ),
            (Some(_), Some(_)) => faults.fault(
                "epochs",
                "both `steps` and `epochs` are given; remove one of them".into(),
            ),
        }
        faults.at_least("sequences-per-step", u64::from(self.sequences_per_step), 1);
        if let Some(limit) = self.max_tokens {
            faults.at_least("max-tokens", u64::from(limit), 1);
        }
        faults.positive("learning-rate", self.learning_rate);
        optimizer::check(
            &mut faults,
            &self.adamw,
            self.weight_decay,
            self.max_grad_norm,
        );
        faults.or(&[], ()).err().unwrap_or_default()
    }
}
