//! Quantiles of the Beta distribution.

/// Samples up to which the quantiles are right.
pub(super) const MOST_SAMPLES: f64 = 1e9;
/// Smallest number that a denominator of the continued fraction may be.
const TINY: f64 = 1e-300;

/// Mean and central credible interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Interval {
    pub(super) mean: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The interval of a Beta distribution that holds this probability and leaves as much out below as above.
pub(super) fn interval(alpha: f64, beta: f64, probability: f64) -> Interval {
    let outside = (1.0 - probability) / 2.0;
    Interval {
        mean: alpha / (alpha + beta),
        low: quantile(alpha, beta, outside),
        // By symmetry, since `1 - outside` has lost digits.
        high: 1.0 - quantile(beta, alpha, outside),
    }
}

/// Where the distribution function is `probability`: by halving, since that cannot fail, until no number lies between.
fn quantile(alpha: f64, beta: f64, probability: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    // Numbers near 0 are very close to each other; 200 halvings leave less than 1e-60.
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if distribution(alpha, beta, middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The regularised incomplete beta function.
fn distribution(alpha: f64, beta: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (alpha * x.ln() + beta * (-x).ln_1p() - ln_beta(alpha, beta)).exp();
    // The continued fraction converges fast on this side of the mean.
    if x < (alpha + 1.0) / (alpha + beta + 2.0) {
        front * continued_fraction(alpha, beta, x) / alpha
    } else {
        1.0 - front * continued_fraction(beta, alpha, 1.0 - x) / beta
    }
}

/// The continued fraction of the incomplete beta function, by Lentz's method.
fn continued_fraction(alpha: f64, beta: f64, x: f64) -> f64 {
    let not_zero = |number: f64| if number.abs() < TINY { TINY } else { number };
    let mut c = 1.0;
    let mut d = 1.0 / not_zero(1.0 - (alpha + beta) * x / (alpha + 1.0));
    let mut value = d;
    // About as many terms as the root of the larger parameter are needed.
    let most = 200 + (10.0 * alpha.max(beta).sqrt()) as u32;
    for step in 1..=most {
        let m = f64::from(step);
        let even = m * (beta - m) * x / ((alpha + 2.0 * m - 1.0) * (alpha + 2.0 * m));
        d = 1.0 / not_zero(1.0 + even * d);
        c = not_zero(1.0 + even / c);
        value *= d * c;
        let odd =
            -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2.0 * m) * (alpha + 2.0 * m + 1.0));
        d = 1.0 / not_zero(1.0 + odd * d);
        c = not_zero(1.0 + odd / c);
        let change = d * c;
        value *= change;
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// The logarithm of the beta function.
fn ln_beta(alpha: f64, beta: f64) -> f64 {
    ln_gamma(alpha) + ln_gamma(beta) - ln_gamma(alpha + beta)
}

/// The logarithm of the gamma function: Stirling's series, after steps up to where it is exact.
fn ln_gamma(x: f64) -> f64 {
    let mut x = x;
    let mut product = 1.0;
    while x < 15.0 {
        product *= x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    // Bernoulli numbers over 2k (2k - 1).
    let series = [
        1.0 / 12.0,
        -1.0 / 360.0,
        1.0 / 1260.0,
        -1.0 / 1680.0,
        1.0 / 1188.0,
        -691.0 / 360_360.0,
        1.0 / 156.0,
    ];
    let tail: f64 = series
        .iter()
        .rev()
        .fold(0.0, |sum, term| sum * square + term)
        / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + tail - product.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        // tests/golden/beta/make.py writes them.
        let golden = include_str!("../../../../tests/golden/beta/quantiles.csv");
        let mut checked = 0;
        for line in golden.lines().skip(1) {
            let numbers: Vec<f64> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
            let [alpha, beta, probability, low, high] = numbers[..] else {
                panic!("{line}")
            };
            let found = interval(alpha, beta, probability);
            let is_near =
                |found: f64, golden: f64| (found - golden).abs() <= 1e-9 * golden.abs().max(1e-3);
            assert!(is_near(found.low, low), "{line}: {found:?}");
            assert!(is_near(found.high, high), "{line}: {found:?}");
            checked += 1;
        }
        assert!(checked > 100);
    }

    #[test]
    fn closed_forms_hold() {
        // Uniform, and powers: the quantile of Beta(n, 1) is the n-th root.
        let uniform = interval(1.0, 1.0, 0.9);
        assert!((uniform.low - 0.05).abs() < 1e-12 && (uniform.high - 0.95).abs() < 1e-12);
        for n in [2.0, 17.0, 1000.0] {
            assert!((interval(n, 1.0, 0.9).low - 0.05_f64.powf(1.0 / n)).abs() < 1e-11);
            assert!((interval(1.0, n, 0.9).high - (1.0 - 0.05_f64.powf(1.0 / n))).abs() < 1e-11);
        }
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-14);
        assert!((ln_gamma(11.0) - 3_628_800_f64.ln()).abs() < 1e-12);
    }
}
