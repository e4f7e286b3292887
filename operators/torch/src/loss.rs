//! Losses over completion tokens.
//!
//! Shapes: `n` completion tokens that carry loss. `targets.rs` is what a token's loss needs beside its
//! log-probability, `policy.rs` the loss of single tokens in reinforcement learning, `tally.rs` what is reported.

mod policy;
mod tally;
mod targets;

#[cfg(test)]
mod tests;

use engine_core::policy::{KlEstimator, Loss};
use tch::{Kind, Tensor};

pub(crate) use self::tally::Tally;
pub(crate) use self::targets::{TokenTargets, check, is_of_sequences};

/// Weighted sum of the tokens' losses.
///
/// Cross-entropy: `-w log p`. Policy loss: `w (surrogate + coefficient * kl - bonus * entropy) - imitation * log p`, with `w` the
/// token's weight.
///
/// # Shapes
/// - `logprobs`, `entropies` in nats, `targets`: `[n]`; returns a scalar and the tally
///
/// # Types and device
/// 32 bits throughout (64 in 64-bit models).
///
/// # Gradient
/// Flows through log-probabilities, and entropies if [`has_entropy`]; the tally carries none.
///
/// # Source
/// [`engine_core::policy::Surrogate`] and [`KlEstimator`] name paper and equation of each part.
pub(crate) fn weighted_loss(
    logprobs: &Tensor,
    entropies: &Tensor,
    targets: &TokenTargets,
    loss: Loss,
) -> (Tensor, Tally) {
    let mut tally = Tally::of(logprobs, entropies, targets);
    let losses = match loss {
        Loss::CrossEntropy => logprobs.neg() * &targets.weights,
        Loss::Policy(parts) => {
            let mut losses = policy::surrogate(logprobs, targets, parts.surrogate, &mut tally);
            if let Some(reference) = &targets.reference {
                let divergence = |estimator| policy::divergence(logprobs, reference, estimator);
                tally.add_divergence(&tch::no_grad(|| divergence(KlEstimator::K3)));
                if let Some(kl) = parts.kl {
                    losses += divergence(kl.estimator) * kl.coefficient;
                }
            }
            if parts.entropy_bonus != 0.0 {
                losses -= entropies * parts.entropy_bonus;
            }
            let weighted = losses * &targets.weights;
            match &targets.imitation {
                Some(weights) => weighted - logprobs * weights,
                None => weighted,
            }
        }
    };
    tally.add_loss(&losses);
    (losses.sum(None::<Kind>), tally)
}

/// Whether a loss depends on entropies.
pub(crate) fn has_entropy(loss: Loss) -> bool {
    matches!(loss, Loss::Policy(parts) if parts.entropy_bonus != 0.0)
}
