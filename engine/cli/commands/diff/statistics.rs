//! The change of a pass rate and how sure it is.

use serde::Serialize;

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The change of the pass rate over the prompts that both sides have.
///
/// For each prompt `i` let `d_i` be the pass rate of B less that of A, over the answers with a usable verdict. The change is
/// the mean of the `d_i`, and its 95 % interval is `mean +- 1.96 * s / sqrt(n)`, with `s` the sample standard deviation of the
/// `d_i` and `n` the number of prompts. Taking differences prompt by prompt leaves out how prompts differ in difficulty,
/// which is most of the noise of each rate by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct PassRateChange {
    /// Prompts with a usable verdict on both sides.
    pub(super) prompts: u64,
    /// Mean pass rate over these prompts.
    pub(super) a: f64,
    pub(super) b: f64,
    pub(super) change: f64,
    /// Ends of the interval; absent for fewer than two prompts.
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
}

impl PassRateChange {
    /// From the means and the standard deviation of the differences.
    pub(super) fn new(prompts: u64, a: f64, b: f64, deviation: Option<f64>) -> Self {
        let change = b - a;
        let half = deviation
            .filter(|deviation| prompts > 1 && deviation.is_finite())
            .map(|deviation| Z * deviation / (prompts as f64).sqrt());
        Self {
            prompts,
            a,
            b,
            change,
            low: half.map(|half| (change - half).max(-1.0)),
            high: half.map(|half| (change + half).min(1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_paired_differences() {
        // Differences 1, 0, 0, 1: mean 0.5, sample deviation sqrt(1/3).
        let change = PassRateChange::new(4, 0.25, 0.75, Some((1.0_f64 / 3.0).sqrt()));
        let half = 1.959_963_984_540_054 * (1.0_f64 / 3.0).sqrt() / 2.0;
        assert_eq!(change.change, 0.5);
        assert!((change.low.unwrap() - (0.5 - half)).abs() < 1e-12);
        assert_eq!(change.high, Some(1.0), "no change is above 1");
        assert_eq!(PassRateChange::new(1, 0.0, 1.0, None).low, None);
    }
}
