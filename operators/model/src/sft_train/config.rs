//! What a pipeline says of an `sft-train` stage.

use std::collections::BTreeMap;

use engine_core::policy::{Masters, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::evaluation::{self, Evaluation};
use super::trainer::STEP_FIGURES;
use crate::alarms::{self, Alarm};
use crate::faults::ValueFaults;
use crate::optimizer::{self, AdamW, Lora, TrainingKeys};
use crate::sampling_keys;
use crate::schedule::{self, LearningRate, Schedule};

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
    /// Which turns of a conversation are learnt. Default `last`.
    #[serde(default, skip_serializing_if = "Turns::is_last")]
    pub turns: Turns,
    /// Most tokens of an example, prompt and image tokens included. Longer ones are dropped, named in a warning and listed on
    /// the output port `dropped`. Default: none is dropped.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u32,
    /// How the learning rate goes on. Default `cosine`.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// Share of the peak that `cosine` and `linear` end at. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub min_learning_rate: f64,
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
    /// Factors of the learning rate by the beginning of parameters' names, for example `visual.: 0.1`. The longest that fits
    /// counts. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learning_rates: BTreeMap<String, f64>,
    /// Trains low-rank adapters instead of the weights. The model on the output port has them merged; the output port `adapter`
    /// has them by themselves, as peft reads them. Default: the weights are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// How weights of 16 bits are updated. Default `float32`: in a copy of 32 bits.
    #[serde(default, skip_serializing_if = "optimizer::is_float32")]
    pub masters: Masters,
    /// Keeps a moving average of the weights that loses 1 less this share in every step, for example 0.999. It is what is
    /// evaluated and saved. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaging: Option<f64>,
    /// Evaluates the model while it is trained: it answers the prompts on the input port `evaluation`. Default: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<Evaluation>,
    /// Ends training after so many evaluations in a row that were not better than the best one. Default: it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<u32>,
    /// Which model is on the output port `model`. Default `last`.
    #[serde(default, skip_serializing_if = "Keep::is_last")]
    pub keep: Keep,
    /// Bounds of metrics, and what happens when they are broken. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Alarm>,
    /// Number format of the weights. Default `float32`.
    #[serde(default)]
    pub precision: Precision,
    /// Computes activations again in the backward pass instead of keeping them: less memory, more time. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Most token positions of one forward and backward pass; bounds the memory of activations. Default: chosen for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<u32>,
    /// Uses only kernels that give the same in every run; on the CPU all do. On a GPU a step takes about 5 % longer. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
}

/// Which turns of a conversation are learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// The last answer.
    #[default]
    Last,
    /// Every answer of the assistant, each as the model is asked for it.
    All,
}

impl Turns {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_last(&self) -> bool {
        *self == Self::Last
    }
}

/// Which model is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// That of the last step.
    #[default]
    Last,
    /// That of the best evaluation, the first one of equal ones. That of the last step is on the output port `last`.
    Best,
}

impl Keep {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_last(&self) -> bool {
        *self == Self::Last
    }
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

    /// The learning rate of a stage of so many steps.
    pub(super) fn learning_rate(&self, steps: u64) -> LearningRate {
        LearningRate {
            schedule: self.schedule,
            peak: self.learning_rate,
            end_share: self.min_learning_rate,
            warmup_steps: u64::from(self.warmup_steps),
            steps,
        }
    }

    /// The keys that all training stages have.
    pub(super) fn training_keys(&self) -> TrainingKeys<'_> {
        TrainingKeys {
            precision: self.precision,
            adamw: &self.adamw,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            freeze: &self.freeze,
            learning_rates: &self.learning_rates,
            lora: self.lora.as_ref(),
            masters: self.masters,
            averaging: self.averaging,
            recompute: self.recompute,
            micro_batch_tokens: self.micro_batch_tokens,
            deterministic: self.deterministic,
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
        schedule::check(
            &mut faults,
            self.schedule,
            self.learning_rate,
            self.min_learning_rate,
        );
        self.training_keys().check(&mut faults);
        if let Some(evaluations) = self.stop_after {
            faults.at_least("stop-after", u64::from(evaluations), 1);
        }
        let needs = [
            ("stop-after", self.stop_after.is_some()),
            ("keep", self.keep == Keep::Best),
        ];
        for (key, is_set) in needs {
            if is_set && self.evaluate.is_none() {
                let message = format!("`{key}` needs evaluations: add `evaluate`, or leave it out");
                faults.fault(key, message);
            }
        }
        alarms::check(&self.alarms, &self.metric_names(), &mut faults);
        let mut all = faults.or(&[], ()).err().unwrap_or_default();
        all.extend(self.evaluate.iter().flat_map(Evaluation::faults));
        all
    }

    /// Names of what the `metrics` table has.
    fn metric_names(&self) -> Vec<String> {
        let evaluated = self.evaluate.iter().flat_map(|_| evaluation::FIGURES);
        let names = STEP_FIGURES.into_iter().chain(evaluated);
        names.map(str::to_owned).collect()
    }
}
