//! Sums over tokens for the report of a step.

use engine_core::policy::LossReport;
use tch::{Device, Kind, Tensor};

use super::TokenTargets;

/// Sums that stay on the device until the micro-batch is done.
#[derive(Debug)]
pub(crate) struct Tally {
    loss: Tensor,
    entropy: Tensor,
    clipped_low: Tensor,
    clipped_high: Tensor,
    capped: Tensor,
    kl: Tensor,
    gap_sum: Tensor,
    gap_max: Tensor,
    ratio_low: Tensor,
    ratio_high: Tensor,
}

/// Numbers in a [`Tally`].
const FIGURES: usize = 10;

impl Tally {
    /// What can be said of any loss.
    pub(super) fn of(logprobs: &Tensor, entropies: &Tensor, targets: &TokenTargets) -> Self {
        tch::no_grad(|| {
            let entropy = entropies.sum(Kind::Double);
            let number = |value: f64| Tensor::full([], value, (Kind::Double, logprobs.device()));
            let (gap_sum, gap_max) = match &targets.sampler {
                Some(sampler) => {
                    let gap = (logprobs.detach() - sampler).abs();
                    (gap.sum(Kind::Double), gap.max().to_kind(Kind::Double))
                }
                None => (number(0.0), number(0.0)),
            };
            Self {
                loss: number(0.0),
                entropy,
                clipped_low: number(0.0),
                clipped_high: number(0.0),
                capped: number(0.0),
                kl: number(0.0),
                gap_sum,
                gap_max,
                ratio_low: number(f64::INFINITY),
                ratio_high: number(f64::NEG_INFINITY),
            }
        })
    }

    pub(super) fn add_loss(&mut self, losses: &Tensor) {
        self.loss = losses.detach().sum(Kind::Double);
    }

    pub(super) fn add_ratios(&mut self, ratios: &Tensor) {
        let ratios = ratios.detach();
        self.ratio_low = ratios.min().to_kind(Kind::Double);
        self.ratio_high = ratios.max().to_kind(Kind::Double);
    }

    /// The bound has an effect where it raises the loss: a low ratio with A < 0, a high one with A > 0.
    pub(super) fn add_clipped(
        &mut self,
        ratios: &Tensor,
        advantages: &Tensor,
        clip_low: f64,
        clip_high: f64,
    ) {
        let ratios = ratios.detach();
        self.clipped_low = ratios
            .lt(1.0 - clip_low)
            .logical_and(&advantages.lt(0.0))
            .sum(Kind::Double);
        self.clipped_high = ratios
            .gt(1.0 + clip_high)
            .logical_and(&advantages.gt(0.0))
            .sum(Kind::Double);
    }

    pub(super) fn add_capped(&mut self, is_capped: &Tensor) {
        self.capped = &self.capped + is_capped.sum(Kind::Double);
    }

    pub(super) fn add_divergence(&mut self, divergences: &Tensor) {
        self.kl = divergences.sum(Kind::Double);
    }

    /// Copies the sums to the host, all at once: a GPU has nothing to do while they are waited for.
    pub(crate) fn report(tallies: &[Self], tokens: usize) -> LossReport {
        let mut report = LossReport {
            tokens,
            ..LossReport::default()
        };
        let mut values = vec![0.0; FIGURES * tallies.len()];
        if !tallies.is_empty() {
            let all: Vec<Tensor> = tallies.iter().map(Self::figures).collect();
            let count = values.len();
            Tensor::cat(&all, 0)
                .to_device(Device::Cpu)
                .copy_data(&mut values, count);
        }
        for values in values.chunks_exact(FIGURES) {
            let has_ratios = values[8] <= values[9];
            report.add(&LossReport {
                loss: values[0],
                tokens: 0,
                entropy_sum: values[1],
                clipped_low: values[2] as usize,
                clipped_high: values[3] as usize,
                capped: values[4] as usize,
                kl_sum: values[5],
                logprob_gap_sum: values[6],
                logprob_gap_max: values[7],
                ratio_range: has_ratios.then_some((values[8], values[9])),
            });
        }
        report
    }

    /// `[FIGURES]`
    fn figures(&self) -> Tensor {
        let figures = [
            &self.loss,
            &self.entropy,
            &self.clipped_low,
            &self.clipped_high,
            &self.capped,
            &self.kl,
            &self.gap_sum,
            &self.gap_max,
            &self.ratio_low,
            &self.ratio_high,
        ];
        Tensor::stack(&figures, 0)
    }
}
