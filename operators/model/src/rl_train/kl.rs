//! The divergence from a reference model: its settings, the model, and the estimate as a part of the reward.

use engine_core::policy::{KlEstimator, KlPenalty, TrainSequence, WeightSet};
use engine_core::{Fault, OperatorError, Policy, StageIo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;
use crate::sampling::{check_cancelled, interruption};
use crate::update::runs;

/// Tokens given to a policy at a time; between two calls the stage looks whether it was asked to stop.
const TOKENS_PER_CALL: usize = 65_536;

/// How far the model may go from the reference model: the one on the port `reference` if it is connected, else the one that
/// training starts from. It is loaded only where this key is given; with `lora` it is the model without its adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Kl {
    /// Factor of the divergence. DeepSeekMath has 0.04.
    pub coefficient: f64,
    /// How it is estimated from the sampled tokens. Default `k3` in the loss and `k1` in the reward. In the loss, `k1` has a
    /// gradient that is 0 on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimator: Option<KlEstimator>,
    /// Where it is taken off. Default `loss`.
    #[serde(rename = "in", default, skip_serializing_if = "is_loss")]
    pub place: KlPlace,
}

/// Where the divergence counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlPlace {
    /// Added to the loss of every token, with a gradient.
    #[default]
    Loss,
    /// Taken off the reward of an answer, summed over its tokens, without a gradient.
    Reward,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_loss(place: &KlPlace) -> bool {
    *place == KlPlace::Loss
}

impl Kl {
    pub(super) fn estimator(&self) -> KlEstimator {
        self.estimator.unwrap_or(match self.place {
            KlPlace::Loss => KlEstimator::K3,
            KlPlace::Reward => KlEstimator::K1,
        })
    }

    /// The part of the loss, where it is one.
    pub(super) fn penalty(&self) -> Option<KlPenalty> {
        (self.place == KlPlace::Loss).then(|| KlPenalty {
            coefficient: self.coefficient,
            estimator: self.estimator(),
        })
    }

    pub(super) fn check(&self) -> Result<(), Vec<Fault>> {
        let mut faults = ValueFaults::default();
        if !(self.coefficient.is_finite() && self.coefficient > 0.0) {
            let message = format!(
                "`coefficient` is {} and must be above 0; leave `kl` out to train without a reference model",
                self.coefficient
            );
            faults.fault("coefficient", message);
        }
        faults.or(&["kl"], ())
    }
}

/// Estimate of the divergence at a token, given both log-probabilities of it.
pub(super) fn estimate(estimator: KlEstimator, logprob: f32, reference: f32) -> f64 {
    let difference = f64::from(logprob) - f64::from(reference);
    match estimator {
        KlEstimator::K1 => difference,
        KlEstimator::K2 => difference * difference / 2.0,
        KlEstimator::K3 => (-difference).exp_m1() + difference,
    }
}

/// The reference model.
pub(super) enum Reference {
    /// The trained policy without its adapters.
    Base,
    /// A model of its own, which is not trained.
    Own(Box<dyn Policy>),
}

impl Reference {
    /// Log-probabilities under the reference model.
    pub(super) fn logprobs(
        &mut self,
        policy: &mut dyn Policy,
        sequences: &[TrainSequence],
        io: &dyn StageIo,
    ) -> Result<Vec<Vec<f32>>, OperatorError> {
        match self {
            Self::Own(reference) => logprobs(&mut **reference, sequences, io),
            Self::Base => {
                policy.use_weights(WeightSet::Base)?;
                let found = logprobs(policy, sequences, io);
                policy.use_weights(WeightSet::Current)?;
                found
            }
        }
    }
}

/// Log-probabilities of completions, sequence by sequence.
pub(super) fn logprobs(
    policy: &mut dyn Policy,
    sequences: &[TrainSequence],
    io: &dyn StageIo,
) -> Result<Vec<Vec<f32>>, OperatorError> {
    let lengths: Vec<usize> = sequences
        .iter()
        .map(|sequence| sequence.prompt.token_ids.len() + sequence.completion.len())
        .collect();
    let mut found = Vec::with_capacity(sequences.len());
    for range in runs(&lengths, TOKENS_PER_CALL) {
        check_cancelled(io)?;
        found.extend(policy.logprobs(&sequences[range]).map_err(interruption)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_those_of_the_formulas() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        // log p = -1, log p of the reference = -1.5: d = 0.5.
        close(estimate(KlEstimator::K1, -1.0, -1.5), 0.5);
        close(estimate(KlEstimator::K2, -1.0, -1.5), 0.125);
        close(
            estimate(KlEstimator::K3, -1.0, -1.5),
            (-0.5_f64).exp() - 1.0 + 0.5,
        );
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            assert_eq!(estimate(estimator, -2.0, -2.0), 0.0);
        }
        assert!(estimate(KlEstimator::K1, -2.0, -1.0) < 0.0);
        assert!(estimate(KlEstimator::K3, -2.0, -1.0) > 0.0);
    }
}
