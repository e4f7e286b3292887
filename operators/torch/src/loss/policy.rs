//! The loss of single tokens in reinforcement learning. Shapes: `[n]` throughout.

use engine_core::policy::{KlEstimator, RatioLevel, Surrogate};
use tch::Tensor;

use super::{Tally, TokenTargets};

/// Bound of the log of a probability ratio: keeps its exponential finite, far outside of any clip range.
const MAX_LOG_RATIO: f64 = 20.0;

/// Loss of each token for its ratio and its advantage, unweighted.
pub(super) fn surrogate(
    logprobs: &Tensor,
    targets: &TokenTargets,
    surrogate: Surrogate,
    tally: &mut Tally,
) -> Tensor {
    let sampler = targets
        .sampler
        .as_ref()
        .expect("the caller checks that a policy loss has the sampler's log-probabilities");
    let advantages = &targets.advantages;
    match surrogate {
        Surrogate::Clipped {
            clip_low,
            clip_high,
            level,
            ratio_cap,
            dual_clip,
        } => {
            let mut ratio = ratio_at(level, logprobs, sampler, targets);
            tally.add_ratios(&ratio);
            if let Some(cap) = ratio_cap {
                tally.add_capped(&ratio.gt(cap));
                ratio = ratio.clamp_max(cap);
            }
            tally.add_clipped(&ratio, advantages, clip_low, clip_high);
            let negated = advantages.neg();
            let clipped = &negated * ratio.clamp(1.0 - clip_low, 1.0 + clip_high);
            let losses = (&negated * &ratio).maximum(&clipped);
            let Some(bound) = dual_clip else {
                return losses;
            };
            let most = &negated * bound;
            let is_bounded = advantages.lt(0.0).logical_and(&losses.gt_tensor(&most));
            tally.add_capped(&is_bounded);
            most.where_self(&is_bounded, &losses)
        }
        Surrogate::CutWeight {
            clip_low,
            clip_high,
        } => {
            let ratio = ratio(&logprobs.detach(), sampler);
            tally.add_ratios(&ratio);
            tally.add_clipped(&ratio, advantages, clip_low, clip_high);
            let weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high);
            (weight * advantages * logprobs).neg()
        }
    }
}

/// `p / p of the sampler`, for each token.
fn ratio(logprobs: &Tensor, sampler: &Tensor) -> Tensor {
    (logprobs - sampler)
        .clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        .exp()
}

fn ratio_at(
    level: RatioLevel,
    logprobs: &Tensor,
    sampler: &Tensor,
    targets: &TokenTargets,
) -> Tensor {
    match level {
        RatioLevel::Token => ratio(logprobs, sampler),
        // With one advantage and one weight for a sequence, the derivative of its geometric mean by each token's log-probability,
        // summed over the sequence, is that of the token form: both have the value of the sequence's ratio and, at every token,
        // the gradient `ratio * d log p`.
        RatioLevel::Sequence | RatioLevel::SequenceToken => {
            let of_sequence = targets
                .sequence_log_ratios
                .as_ref()
                .expect("the caller measures the sequences before the first token's loss");
            let bounded = of_sequence.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
            (bounded + logprobs - logprobs.detach()).exp()
        }
    }
}

/// Estimate of the divergence from the reference model at each token.
pub(super) fn divergence(logprobs: &Tensor, reference: &Tensor, estimator: KlEstimator) -> Tensor {
    let gap = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
    match estimator {
        KlEstimator::K1 => gap,
        KlEstimator::K2 => gap.square() / 2.0,
        KlEstimator::K3 => gap.neg().exp() - 1.0 + gap,
    }
}
