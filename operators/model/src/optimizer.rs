//! Settings of the optimizer that all training stages share. The keys stand in each operator, because serde cannot refuse
//! unknown keys of a struct with a flattened part; their types, defaults and checks are here.

use std::collections::BTreeMap;

use engine_core::policy::{LoadOptions, LoraOptions, Masters, Precision, TrainOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;

/// How the names of all weights begin that adapters can stand beside: a prefix of it takes them all.
const LAYERS: &str = "model.layers.";

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

/// Low-rank adapters: training leaves the weights as they are and learns a small product of two matrices beside each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lora {
    /// Columns of the one and rows of the other matrix.
    pub rank: u32,
    /// The product counts `alpha / rank` times.
    pub alpha: f64,
    /// Last parts of the names of the layers that get one, for example `q_proj`. Default: every linear layer of the language
    /// model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

/// Default of `max-grad-norm`.
pub(crate) fn max_grad_norm() -> f64 {
    1.0
}

/// Whether weights have masters as they had before there was a choice; such a key is no part of a stage's key.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_float32(masters: &Masters) -> bool {
    *masters == Masters::Float32
}

/// The values of the shared keys of a training stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrainingKeys<'a> {
    pub(crate) precision: Precision,
    pub(crate) adamw: &'a AdamW,
    pub(crate) weight_decay: f64,
    pub(crate) max_grad_norm: f64,
    pub(crate) freeze: &'a [String],
    pub(crate) learning_rates: &'a BTreeMap<String, f64>,
    pub(crate) lora: Option<&'a Lora>,
    pub(crate) masters: Masters,
    pub(crate) averaging: Option<f64>,
    pub(crate) recompute: bool,
    pub(crate) micro_batch_tokens: Option<u32>,
    pub(crate) deterministic: bool,
}

impl TrainingKeys<'_> {
    /// Collects every value and every combination that cannot be used.
    pub(crate) fn check(&self, faults: &mut ValueFaults) {
        faults.within("adamw", |faults| {
            faults.below_one("beta1", self.adamw.beta1);
            faults.below_one("beta2", self.adamw.beta2);
            faults.positive("epsilon", self.adamw.epsilon);
        });
        faults.not_negative("weight-decay", self.weight_decay);
        faults.positive("max-grad-norm", self.max_grad_norm);
        if let Some(tokens) = self.micro_batch_tokens {
            faults.at_least("micro-batch-tokens", u64::from(tokens), 1);
        }
        if let Some(decay) = self.averaging
            && !(decay > 0.0 && decay < 1.0)
        {
            let message = format!(
                "`averaging` is {decay} and must be above 0 and below 1: the share of the average that a step keeps, for example 0.999"
            );
            faults.fault("averaging", message);
        }
        self.check_masters(faults);
        self.check_parts(faults);
        if let Some(lora) = self.lora {
            self.check_lora(lora, faults);
        }
    }

    fn check_masters(&self, faults: &mut ValueFaults) {
        if self.masters != Masters::StochasticRounding {
            return;
        }
        if self.precision == Precision::Float32 {
            let message = "`masters: stochastic-rounding` is for weights of 16 bits: set `precision: bfloat16`, or leave it out";
            faults.fault("masters", message.to_owned());
        }
        if self.lora.is_some() {
            let message = "`masters: stochastic-rounding` has nothing to do with `lora`, whose adapters have 32 bits: leave one of them out";
            faults.fault("masters", message.to_owned());
        }
    }

    /// What is frozen, and what learns at a rate of its own.
    fn check_parts(&self, faults: &mut ValueFaults) {
        if self.freeze.iter().any(String::is_empty) {
            let message = "a prefix of `freeze` is empty and stands for every parameter, so nothing would be trained: name a part, for example `visual.`";
            faults.fault("freeze", message.to_owned());
        }
        for (prefix, factor) in self.learning_rates {
            if !(factor.is_finite() && *factor > 0.0) {
                let message = format!(
                    "the factor of `{prefix}` in `learning-rates` is {factor} and must be above 0; to leave a part as it is, name it in `freeze`"
                );
                faults.nested("learning-rates", prefix, message);
            }
            let frozen = self
                .freeze
                .iter()
                .find(|frozen| !frozen.is_empty() && prefix.starts_with(frozen.as_str()));
            if let Some(frozen) = frozen {
                let message = format!(
                    "`{prefix}` in `learning-rates` is frozen by `freeze: {frozen}` and has no learning rate: take one of them away"
                );
                faults.nested("learning-rates", prefix, message);
            }
        }
    }

    fn check_lora(&self, lora: &Lora, faults: &mut ValueFaults) {
        if lora.rank == 0 {
            let message = "`rank` is 0 and must be at least 1".to_owned();
            faults.nested("lora", "rank", message);
        }
        if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
            let message = format!("`alpha` is {} and must be above 0", lora.alpha);
            faults.nested("lora", "alpha", message);
        }
        for (place, target) in lora.targets.iter().enumerate() {
            if target.is_empty() {
                let message = "a name in `targets` is empty: name layers, for example `q_proj`, or leave `targets` out";
                faults.nested("lora", "targets", message.to_owned());
            } else if lora.targets[..place].contains(target) {
                let message = format!("`{target}` stands in `targets` twice: take one away");
                faults.nested("lora", "targets", message);
            }
        }
        let all = self
            .freeze
            .iter()
            .find(|frozen| !frozen.is_empty() && LAYERS.starts_with(frozen.as_str()));
        if let Some(frozen) = all
            && lora.targets.is_empty()
        {
            let message = format!(
                "`freeze: {frozen}` and `lora` leave nothing to train: adapters stand in the layers of the language model, and everything else is frozen with `lora` anyway; leave `{frozen}` out"
            );
            faults.fault("freeze", message);
        }
    }

    /// How the model is loaded. `seed` is the stage's.
    pub(crate) fn load_options(&self, seed: u64) -> LoadOptions {
        LoadOptions {
            precision: self.precision,
            training: Some(self.train_options(seed)),
        }
    }

    fn train_options(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            freeze: self.freeze.to_vec(),
            learning_rates: self
                .learning_rates
                .iter()
                .map(|(prefix, factor)| (prefix.clone(), *factor))
                .collect(),
            beta1: self.adamw.beta1,
            beta2: self.adamw.beta2,
            epsilon: self.adamw.epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            lora: self.lora.map(|lora| LoraOptions {
                rank: lora.rank as usize,
                alpha: lora.alpha,
                targets: lora.targets.clone(),
            }),
            masters: self.masters,
            averaging: self.averaging,
            recompute: self.recompute,
            micro_batch_tokens: self.micro_batch_tokens.map(|tokens| tokens as usize),
            deterministic: self.deterministic,
            seed: engine_core::seed::derive(seed, "training"),
        }
    }
}

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
