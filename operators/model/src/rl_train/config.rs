//! What a pipeline says of an `rl-train` stage.

use std::collections::BTreeMap;

use engine_core::policy::{Loss, Masters, PolicyLoss, Precision};
use operators_verdict::ScoreConfig;
use operators_verifier::VerifyConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::aggregation::Aggregation;
use super::algorithms::{Algorithm, Recipe, Statistics};
use super::filter::Filter;
use super::group::Rollout;
use super::kl::Kl;
use crate::alarms::Alarm;
use crate::optimizer::{self, AdamW, Lora, TrainingKeys};
use crate::sampling;
use crate::sampling_keys::{self, SamplingKeys};
use crate::schedule::{LearningRate, Schedule};

/// Trains a model with rewards from verified answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RlTrain {
    /// How rewards become gradients.
    pub algorithm: Algorithm,
    /// Steps: each samples answers once and learns from them.
    pub steps: u32,
    /// Prompts of a step. They come in a new order in every epoch; the few left over at its end are skipped.
    pub prompts_per_step: u32,
    /// Answers sampled for each prompt: the group whose rewards are compared.
    pub samples: u32,
    /// Divides the logits before sampling; 1 samples from the model as it is. At other values the ratios of the loss
    /// are taken to the recomputed probabilities of the unscaled model.
    pub temperature: f64,
    /// Most tokens of an answer, the end token included.
    pub max_new_tokens: u32,
    /// Samples only from this many of the most likely tokens. Default 0: all.
    #[serde(default, skip_serializing_if = "sampling_keys::is_none")]
    pub top_k: u32,
    /// Samples only from the fewest most likely tokens that have this much of the probability. Default 1: all.
    #[serde(
        default = "sampling_keys::one",
        skip_serializing_if = "sampling_keys::is_one"
    )]
    pub top_p: f64,
    /// Samples only from tokens that have at least this share of the largest probability. Default 0: all.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub min_p: f64,
    /// An answer cannot end by itself before it has this many tokens. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_none")]
    pub min_new_tokens: u32,
    /// Texts that end an answer; its text is cut before them, its tokens are kept. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// How answers are compared with gold answers.
    pub verify: VerifyConfig,
    /// Weights of the parts of the reward.
    pub score: ScoreConfig,
    /// Which groups are learnt from. Default: that of the algorithm, `drop` for `grpo` and `cispo`, `resample` for `dapo`, `none`
    /// for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Whether answers that were cut off at `max-new-tokens` are left out of the loss; their rewards count in the group (DAPO,
    /// section 3.4). Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mask_truncated: bool,
    /// How the losses of tokens become one number. Default: that of the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// Which rewards an advantage is divided by the standard deviation of. Default `group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// Divergence from a reference model. Default: none, and no reference model is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Kl>,
    /// Factor of the mean negative log-probability of the right answers' tokens, which is added to the loss (VAPO, arXiv 2504.05118,
    /// section 4.5, has 0.1). Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub imitation: f64,
    /// Factor of the policy's entropy, which is taken off the loss. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub entropy_bonus: f64,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u32,
    /// How the learning rate goes on. Default `constant`.
    #[serde(default = "constant")]
    pub schedule: Schedule,
    /// Share of the peak that `linear` and `cosine` end at. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub min_learning_rate: f64,
    /// Optimizer steps made from one set of rollouts, each on its own share of the answers. Default 1: every gradient
    /// is taken at the weights that sampled.
    #[serde(default = "one")]
    pub updates_per_rollout: u32,
    /// Times that a set of rollouts is learnt from, each with its own `updates-per-rollout` updates. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub epochs: u32,
    /// What is dealt out to the updates of a set. Default `samples`.
    #[serde(default, skip_serializing_if = "is_samples")]
    pub minibatches: Dealt,
    /// Largest share of a step's answers that may have no usable verdict (timed out or failed). They are masked;
    /// above this share the stage fails. Default 0.1.
    #[serde(default = "tenth")]
    pub max_unusable: f64,
    /// Bounds of metrics, and what happens when they are broken. They change no result and are no part of the stage's key. Default
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Alarm>,
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
    /// Factors of the learning rate by prefix of the parameters' names; the longest prefix counts. Default 1 for all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learning_rates: BTreeMap<String, f64>,
    /// Trains low-rank adapters and nothing else. The output `model` has them merged, the output `adapter` has them alone. Default:
    /// all weights are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// How weights of 16 bits are updated. Default `float32`: with a copy of 32 bits.
    #[serde(default, skip_serializing_if = "optimizer::is_float32")]
    pub masters: Masters,
    /// Decay, by update, of an average of the weights, which is then the output `model`; sampling is from the weights as they are
    /// trained. Default: none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaging: Option<f64>,
    /// Whether activations are computed again for the gradient instead of being kept: less memory, more time. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Most tokens of one forward and backward pass. Default: chosen for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<u32>,
    /// Whether only kernels are used whose results are the same in every run. On a GPU a step takes about 5 % longer. Default false; on a
    /// CPU they always are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// Number format of the weights. Default `float32`.
    #[serde(default)]
    pub precision: Precision,
    /// Answers decoded at the same time; bounds the memory of the key-value cache. Default 256.
    #[serde(default = "sampling::max_concurrent")]
    pub max_concurrent: u32,
}

/// What is dealt out to the updates of a set of rollouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dealt {
    /// Single answers.
    #[default]
    Samples,
    /// Prompts with all their answers.
    Prompts,
}

fn constant() -> Schedule {
    Schedule::Constant
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_samples(dealt: &Dealt) -> bool {
    *dealt == Dealt::Samples
}

fn tenth() -> f64 {
    0.1
}

impl RlTrain {
    /// What the algorithm is made of, with what the pipeline says otherwise.
    pub(super) fn recipe(&self) -> Recipe {
        let recipe = self.algorithm.recipe(self.statistics);
        Recipe {
            aggregation: self.aggregation.unwrap_or(recipe.aggregation),
            filter: self.filter.clone().unwrap_or(recipe.filter),
            ..recipe
        }
    }

    /// The loss of a recipe.
    pub(super) fn loss(&self, recipe: &Recipe) -> Loss {
        Loss::Policy(PolicyLoss {
            surrogate: recipe.surrogate,
            kl: self.kl.as_ref().and_then(Kl::penalty),
            entropy_bonus: self.entropy_bonus,
        })
    }

    /// How answers are narrowed. The ratios of the loss are those of the whole distribution.
    pub(super) fn keys(&self) -> SamplingKeys {
        SamplingKeys {
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            min_new_tokens: self.min_new_tokens,
            stop: self.stop.clone(),
            ..SamplingKeys::default()
        }
    }

    /// Whether the sampler's probabilities are those of changed logits; ratios need the ones that are trained.
    pub(super) fn samples_from_changed_logits(&self) -> bool {
        self.temperature != 1.0 || self.min_new_tokens > 0
    }

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

    /// Learning rate of a step, counted from 1.
    pub(super) fn learning_rate_at(&self, step: u64) -> f64 {
        let rate = LearningRate {
            schedule: self.schedule,
            peak: self.learning_rate,
            end_share: self.min_learning_rate,
            warmup_steps: u64::from(self.warmup_steps),
            steps: u64::from(self.steps),
        };
        rate.at(step - 1)
    }

    /// Whether an answer with a reward is left out of the loss.
    pub(super) fn is_masked(&self, rollout: &Rollout) -> bool {
        self.mask_truncated && rollout.is_truncated()
    }

    /// Prompts of a round of sampling.
    pub(super) fn prompts_per_round(&self, filter: &Filter) -> usize {
        filter.prompts_per_round(self.prompts_per_step) as usize
    }
}
