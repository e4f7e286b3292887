//! Intervals of shares.

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share of `correct` in `samples` (Wilson 1927, without continuity correction); `(0, 1)` for no samples.
#[must_use]
pub fn wilson_interval(correct: u32, samples: u32) -> (f64, f64) {
    if samples == 0 {
        return (0.0, 1.0);
    }
    let n = f64::from(samples);
    let p = f64::from(correct) / n;
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // The ends are exact where rounding would leave a trace.
    let low = if correct == 0 {
        0.0
    } else {
        (middle - half).max(0.0)
    };
    let high = if correct == samples {
        1.0
    } else {
        (middle + half).min(1.0)
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_agrees_with_hand_computed_values() {
        // The formula evaluated with 30 digits; for 0 of n the upper end is z^2 / (n + z^2).
        let cases = [
            (8, 10, 0.490_162_471_536_642, 0.943_317_848_545_625),
            (1, 10, 0.017_876_213_095_072, 0.404_150_026_795_238),
            (50, 100, 0.403_831_530_365_996, 0.596_168_469_634_004),
            (0, 10, 0.0, 0.277_532_799_862_889),
            (10, 10, 0.722_467_200_137_111, 1.0),
        ];
        for (correct, samples, low, high) in cases {
            let (got_low, got_high) = wilson_interval(correct, samples);
            assert!(
                (got_low - low).abs() < 1e-9 && (got_high - high).abs() < 1e-9,
                "{correct}/{samples}: {got_low} {got_high}"
            );
        }
        assert_eq!(wilson_interval(0, 0), (0.0, 1.0));
    }
}
