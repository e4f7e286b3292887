//! Losses over completion tokens.
//!
//! Shapes: `n` completion tokens, `v` vocabulary.

use engine_core::policy::{Loss, LossReport, TrainSequence};
use tch::{Device, Kind, Tensor};

use crate::completion::MicroBatch;

/// Bound of the log of a probability ratio: keeps its exponential finite, far outside of any clip range.
const MAX_LOG_RATIO: f64 = 20.0;
/// Numbers in a [`Tally`].
const FIGURES: usize = 6;

/// What the loss of each token needs beside its log-probability.
#[derive(Debug)]
pub(crate) struct TokenTargets {
    pub(crate) tokens: Tensor,
    weights: Tensor,
    advantages: Tensor,
    /// Absent when no sequence of the batch has any.
    sampler: Option<Tensor>,
}

impl TokenTargets {
    pub(crate) fn new(
        batch: &MicroBatch,
        sequences: &[TrainSequence],
        kind: Kind,
        device: Device,
    ) -> Self {
        let (mut tokens, mut weights) = (Vec::new(), Vec::new());
        let (mut advantages, mut sampler) = (Vec::new(), Vec::new());
        for (index, _) in &batch.rows {
            let sequence = &sequences[*index];
            let count = sequence.completion.len();
            tokens.extend(sequence.completion.iter().map(|id| i64::from(*id)));
            weights.extend(std::iter::repeat_n(sequence.token_weight, count));
            advantages.extend(std::iter::repeat_n(sequence.advantage, count));
            sampler.extend_from_slice(&sequence.sampler_logprobs);
        }
        let floats = |values: &[f32]| Tensor::from_slice(values).to_device(device).to_kind(kind);
        let sampler = (sampler.len() == tokens.len()).then(|| floats(&sampler));
        Self {
            tokens: Tensor::from_slice(&tokens).to_device(device),
            weights: floats(&weights),
            advantages: floats(&advantages),
            sampler,
        }
    }

    /// The targets of some consecutive tokens.
    pub(crate) fn narrow(&self, start: i64, length: i64) -> Self {
        let part = |x: &Tensor| x.narrow(0, start, length);
        Self {
            tokens: part(&self.tokens),
            weights: part(&self.weights),
            advantages: part(&self.advantages),
            sampler: self.sampler.as_ref().map(part),
        }
    }
}

/// Sums over tokens that stay on the device until the micro-batch is done.
#[derive(Debug)]
pub(crate) struct Tally(Tensor);

impl Tally {
    /// Copies the sums to the host; one synchronisation.
    pub(crate) fn report(tallies: &[Self], tokens: usize) -> LossReport {
        let mut report = LossReport {
            tokens,
            ..LossReport::default()
        };
        for Self(figures) in tallies {
            let mut values = [0.0_f64; FIGURES];
            figures
                .to_device(Device::Cpu)
                .copy_data(&mut values, FIGURES);
            report.loss += values[0];
            report.entropy_sum += values[1];
            report.clipped_low += values[2] as usize;
            report.clipped_high += values[3] as usize;
            report.logprob_gap_sum += values[4];
            report.logprob_gap_max = report.logprob_gap_max.max(values[5]);
        }
        report
    }
}

/// Weighted sum of the tokens' losses.
///
/// Cross-entropy: `-log p`. Clipped surrogate: `max(-A r, -A clip(r, 1 - low, 1 + high))` with
/// `r = exp(log p - log p of the sampler)`.
///
/// # Shapes
/// - `distribution_nv`: log-probabilities `[n, v]`; `targets`: `[n]`; returns a scalar and the tally
///
/// # Types and device
/// 32 bits throughout (64 in 64-bit models).
///
/// # Gradient
/// Flows through `distribution_nv` only; the tally carries none.
///
/// # Source
/// Shao et al. 2024, `DeepSeekMath`, eq. 3, without its KL term; Yu et al. 2025, DAPO, eq. 8 for the two bounds.
pub(crate) fn weighted_loss(
    distribution_nv: &Tensor,
    targets: &TokenTargets,
    loss: Loss,
) -> (Tensor, Tally) {
    let logprobs = distribution_nv
        .gather(1, &targets.tokens.unsqueeze(1), false)
        .squeeze_dim(1);
    let entropy = tch::no_grad(|| {
        (distribution_nv.exp() * distribution_nv)
            .sum(Kind::Double)
            .neg()
    });
    let zero = Tensor::zeros([], (Kind::Double, logprobs.device()));
    let (gap_sum, gap_max) = match &targets.sampler {
        Some(sampler) => {
            let gap = (logprobs.detach() - sampler).abs();
            (gap.sum(Kind::Double), gap.max().to_kind(Kind::Double))
        }
        None => (zero.shallow_clone(), zero.shallow_clone()),
    };
    let (token_losses, low, high) = match (loss, &targets.sampler) {
        (
            Loss::ClippedSurrogate {
                clip_low,
                clip_high,
            },
            Some(sampler),
        ) => {
            let ratio = (&logprobs - sampler)
                .clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
                .exp();
            let negated = targets.advantages.neg();
            let clipped = &negated * ratio.clamp(1.0 - clip_low, 1.0 + clip_high);
            let losses = (&negated * &ratio).maximum(&clipped);
            // The bound has an effect where it raises the loss: a low ratio with A < 0, a high one with A > 0.
            let low = ratio
                .lt(1.0 - clip_low)
                .logical_and(&targets.advantages.lt(0.0))
                .sum(Kind::Double);
            let high = ratio
                .gt(1.0 + clip_high)
                .logical_and(&targets.advantages.gt(0.0))
                .sum(Kind::Double);
            (losses, low, high)
        }
        _ => (logprobs.neg(), zero.shallow_clone(), zero),
    };
    let weighted = token_losses * &targets.weights;
    let total = weighted.sum(None::<Kind>);
    let summed = weighted.detach().sum(Kind::Double);
    let tally = Tally(Tensor::stack(
        &[summed, entropy, low, high, gap_sum, gap_max],
        0,
    ));
    (total, tally)
}
