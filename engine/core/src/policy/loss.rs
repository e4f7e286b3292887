//! What training minimises, and what it reports of it.

use serde::{Deserialize, Serialize};

/// What to minimise. Every variant sums `token_weight * token loss` over the completion tokens that carry loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Negative log-probability of the completion tokens.
    CrossEntropy,
    /// A policy-gradient loss.
    Policy(PolicyLoss),
}

impl Loss {
    /// The clipped surrogate of single tokens and nothing else.
    #[must_use]
    pub const fn clipped(clip_low: f64, clip_high: f64) -> Self {
        Self::Policy(PolicyLoss {
            surrogate: Surrogate::Clipped {
                clip_low,
                clip_high,
                level: RatioLevel::Token,
                ratio_cap: None,
                dual_clip: None,
            },
            kl: None,
            entropy_bonus: 0.0,
        })
    }
}

/// A policy-gradient loss: a surrogate, and what is added to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyLoss {
    /// How probability ratios and advantages make a loss.
    pub surrogate: Surrogate,
    /// Divergence from the reference model, added to the loss.
    pub kl: Option<KlPenalty>,
    /// Factor of the policy's entropy, which is taken from the loss; 0: none.
    pub entropy_bonus: f64,
}

/// How probability ratios `r` (current over sampler) and advantages `A` make the loss of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` (GRPO, `DeepSeekMath` eq. 3; asymmetric clip of DAPO eq. 8).
    Clipped {
        /// Lower clip range.
        clip_low: f64,
        /// Upper clip range.
        clip_high: f64,
        /// What a ratio is of.
        level: RatioLevel,
        /// The ratio is cut to at most this before anything else (MM-EUREKA has 3).
        ratio_cap: Option<f64>,
        /// Where `A < 0` the loss is at most `-A` times this (dual clip, Ye et al. 2020, eq. 5).
        dual_clip: Option<f64>,
    },
    /// `-sg[clip(r, 1 - clip_low, 1 + clip_high)] A log p` (CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4-5): a token whose ratio
    /// is cut still has a gradient.
    CutWeight {
        /// Lower clip range; 1 or more: no lower bound.
        clip_low: f64,
        /// Upper clip range.
        clip_high: f64,
    },
}

/// What a probability ratio is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RatioLevel {
    /// Each token has its own.
    #[default]
    Token,
    /// All tokens of a sequence have the geometric mean of theirs (GSPO, arXiv 2507.18071, eq. 7).
    Sequence,
    /// The value of the sequence's ratio, the gradient of each token's own log-probability (GSPO-token, eq. 14).
    SequenceToken,
}

/// Divergence from the reference model as a part of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Factor of the estimate.
    pub coefficient: f64,
    /// How it is estimated from the sampled token.
    pub estimator: KlEstimator,
}

/// Estimates of KL(policy || reference) from one sampled token, with `d = log p - log p_reference` (Schulman 2020,
/// "Approximating KL divergence").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum KlEstimator {
    /// `d`: unbiased; can be negative.
    K1,
    /// `d^2 / 2`: biased, never negative.
    K2,
    /// `exp(-d) - 1 + d`: unbiased, never negative.
    #[default]
    K3,
}

/// What one `forward_backward` saw. Sums are over the completion tokens of the call that carry loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossReport {
    /// Weighted loss of the call: calls of one step add up to the step's loss.
    pub loss: f64,
    /// Completion tokens that carry loss.
    pub tokens: usize,
    /// Sum of the entropy of the policy, in nats.
    pub entropy_sum: f64,
    /// Tokens whose ratio was cut at the lower bound with an effect on the loss.
    pub clipped_low: usize,
    /// Tokens whose ratio was cut at the upper bound with an effect on the loss.
    pub clipped_high: usize,
    /// Tokens at the ratio cap or the dual clip.
    pub capped: usize,
    /// Smallest and largest probability ratio before any cut; None without ratios.
    pub ratio_range: Option<(f64, f64)>,
    /// Sum of the `k3` estimates of the divergence from the reference model.
    pub kl_sum: f64,
    /// Sum of |recomputed - sampled| log-probability.
    pub logprob_gap_sum: f64,
    /// Largest |recomputed - sampled| log-probability.
    pub logprob_gap_max: f64,
}

impl LossReport {
    /// Adds what another call of the same step saw.
    pub fn add(&mut self, part: &Self) {
        self.loss += part.loss;
        self.tokens += part.tokens;
        self.entropy_sum += part.entropy_sum;
        self.clipped_low += part.clipped_low;
        self.clipped_high += part.clipped_high;
        self.capped += part.capped;
        self.ratio_range = match (self.ratio_range, part.ratio_range) {
            (Some((low, high)), Some((other_low, other_high))) => {
                Some((low.min(other_low), high.max(other_high)))
            }
            (one, other) => one.or(other),
        };
        self.kl_sum += part.kl_sum;
        self.logprob_gap_sum += part.logprob_gap_sum;
        self.logprob_gap_max = self.logprob_gap_max.max(part.logprob_gap_max);
    }
}
