//! What a pipeline says of an `rl-train` stage.

use engine_core::policy::{Loss, Precision};
use operators_verdict::{ScoreConfig, VerifyConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;
use crate::optimizer::{self, AdamW};
use crate::sampling;
use crate::sampling_keys::{self, SamplingKeys};
use crate::schedule::Schedule;

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
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u32,
    /// How the learning rate goes on. Default `constant`.
    #[serde(default = "constant")]
    pub schedule: Schedule,
    /// Optimizer steps made from one set of rollouts, each on its own share of the answers. Default 1: every gradient
    /// is taken at the weights that sampled.
    #[serde(default = "one")]
    pub updates_per_rollout: u32,
    /// Largest share of a step's answers that may have no usable verdict (timed out or failed). They are masked;
    /// above this share the stage fails. Default 0.1.
    #[serde(default = "tenth")]
    pub max_unusable: f64,
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
    /// Answers decoded at the same time; bounds the memory of the key-value cache. Default 256.
    #[serde(default = "sampling::max_concurrent")]
    pub max_concurrent: u32,
}

/// How rewards become gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Algorithm {
    /// Advantages by group mean and standard deviation, clipped ratios, mean over sequences of the mean over tokens, no
    /// divergence term. Groups whose answers are all right or all wrong are dropped.
    Grpo(Grpo),
}

/// Settings of `grpo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Grpo {
    /// The probability ratio is clipped at 1 less this.
    pub clip_low: f64,
    /// The probability ratio is clipped at 1 plus this.
    pub clip_high: f64,
}

fn constant() -> Schedule {
    Schedule::Constant
}

fn one() -> u32 {
    1
}

fn tenth() -> f64 {
    0.1
}

impl RlTrain {
    /// The loss of the algorithm.
    pub(super) fn loss(&self) -> Loss {
        match &self.algorithm {
            Algorithm::Grpo(grpo) => Loss::ClippedSurrogate {
                clip_low: grpo.clip_low,
                clip_high: grpo.clip_high,
            },
        }
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

    /// Every value that is out of range.
    pub(super) fn faults(&self) -> Vec<engine_core::Fault> {
        let Algorithm::Grpo(grpo) = &self.algorithm;
        let mut faults = ValueFaults::default();
        faults.below_one("clip-low", grpo.clip_low);
        faults.not_negative("clip-high", grpo.clip_high);
        let mut all = faults
            .or(&["algorithm", "grpo"], ())
            .err()
            .unwrap_or_default();

        let mut faults = ValueFaults::default();
        faults.at_least("steps", u64::from(self.steps), 1);
        faults.at_least("prompts-per-step", u64::from(self.prompts_per_step), 1);
        // One answer has nothing to be compared with.
        faults.at_least("samples", u64::from(self.samples), 2);
        faults.positive("temperature", self.temperature);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        self.keys()
            .check(self.temperature, self.max_new_tokens, &mut faults);
        if let Err(error) = self.score.check() {
            faults.fault("score", error.to_string());
        }
        faults.positive("learning-rate", self.learning_rate);
        faults.at_least(
            "updates-per-rollout",
            u64::from(self.updates_per_rollout),
            1,
        );
        if !(0.0..=1.0).contains(&self.max_unusable) {
            faults.fault(
                "max-unusable",
                format!(
                    "`max-unusable` is {} and must be between 0 and 1",
                    self.max_unusable
                ),
            );
        }
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
        optimizer::check(
            &mut faults,
            &self.adamw,
            self.weight_decay,
            self.max_grad_norm,
        );
        all.extend(faults.or(&[], ()).err().unwrap_or_default());
        all
    }
}
