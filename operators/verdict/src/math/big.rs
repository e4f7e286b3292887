//! Floating-point numbers of 256 bits on big integers, with the elementary functions. They confirm what machine floats
//! cannot tell apart. Every operation is right to within 2^-240 of its result.

use std::sync::OnceLock;

use num_bigint::{BigInt, Sign};
use num_traits::{Signed, ToPrimitive, Zero};

use super::rat::Rat;

const PRECISION: u64 = 256;
/// Fraction bits of the fixed-point numbers in series.
const FIXED: u64 = 340;
/// Fraction bits of the constants: large arguments need more of them.
const CONSTANT: u64 = 520;
/// Largest exponent: beyond it a number is no more than a tower of powers.
const MAX_EXPONENT: i64 = 1 << 40;

/// `mantissa * 2^exponent`.
#[derive(Clone, Debug)]
pub(crate) struct Big {
    mantissa: BigInt,
    exponent: i64,
}

fn shift(value: &BigInt, bits: i64) -> BigInt {
    if bits >= 0 {
        value << bits as u64
    } else {
        value >> bits.unsigned_abs()
    }
}

impl Big {
    fn new(mantissa: BigInt, exponent: i64) -> Option<Self> {
        let bits = mantissa.bits();
        if bits == 0 {
            return Some(Self::zero());
        }
        let (mantissa, exponent) = if bits > PRECISION {
            let extra = bits - PRECISION;
            (mantissa >> extra, exponent.checked_add(extra as i64)?)
        } else {
            (mantissa, exponent)
        };
        (exponent.abs() < MAX_EXPONENT).then_some(Self { mantissa, exponent })
    }

    pub(crate) fn zero() -> Self {
        Self {
            mantissa: BigInt::zero(),
            exponent: 0,
        }
    }

    pub(crate) fn from_rat(value: &Rat) -> Option<Self> {
        let (above, below) = (value.numerator(), value.denominator());
        if below.bits() == 1 {
            return Self::new(above, 0);
        }
        let extra = (PRECISION + 8 + below.bits()).saturating_sub(above.bits());
        Self::new((above << extra) / below, -(extra as i64))
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.mantissa.is_zero()
    }

    pub(crate) fn is_negative(&self) -> bool {
        self.mantissa.is_negative()
    }

    pub(crate) fn is_small_integer(&self) -> bool {
        self.is_zero() || (self.exponent >= 0 && self.log2() < 120.0)
    }

    /// Logarithm to base two of the size, to within one.
    pub(crate) fn log2(&self) -> f64 {
        if self.is_zero() {
            return f64::NEG_INFINITY;
        }
        self.mantissa.bits() as f64 + self.exponent as f64
    }

    pub(crate) fn neg(&self) -> Self {
        Self {
            mantissa: -&self.mantissa,
            exponent: self.exponent,
        }
    }

    pub(crate) fn add(&self, other: &Self) -> Option<Self> {
        if self.is_zero() {
            return Some(other.clone());
        }
        if other.is_zero() {
            return Some(self.clone());
        }
        let (high, low) = if self.exponent >= other.exponent {
            (self, other)
        } else {
            (other, self)
        };
        let gap = (high.exponent - low.exponent) as u64;
        if gap > 3 * PRECISION {
            // The low one ends far below the last bit of the high one.
            return Some(high.clone());
        }
        Self::new((&high.mantissa << gap) + &low.mantissa, low.exponent)
    }

    pub(crate) fn mul(&self, other: &Self) -> Option<Self> {
        Self::new(
            &self.mantissa * &other.mantissa,
            self.exponent.checked_add(other.exponent)?,
        )
    }

    pub(crate) fn div(&self, other: &Self) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        let extra = (PRECISION + 8 + other.mantissa.bits()).saturating_sub(self.mantissa.bits());
        Self::new(
            (&self.mantissa << extra) / &other.mantissa,
            self.exponent - extra as i64 - other.exponent,
        )
    }

    /// Of numbers that are not negative.
    pub(crate) fn sqrt(&self) -> Option<Self> {
        if self.is_negative() {
            return None;
        }
        let mut extra = (2 * PRECISION + 16).saturating_sub(self.mantissa.bits()) as i64;
        if (self.exponent - extra) % 2 != 0 {
            extra += 1;
        }
        Self::new(
            (&self.mantissa << extra as u64).sqrt(),
            (self.exponent - extra) / 2,
        )
    }

    /// The number times `2^FIXED`; none where it is too large for that.
    fn to_fixed(&self, bits: u64) -> Option<BigInt> {
        if self.log2() > 110.0 {
            return None;
        }
        let by = self.exponent + bits as i64;
        Some(if by < -(2 * PRECISION as i64 + 64) {
            BigInt::zero()
        } else {
            shift(&self.mantissa, by)
        })
    }

    fn from_fixed(value: BigInt) -> Option<Self> {
        Self::new(value, -(FIXED as i64))
    }

    pub(crate) fn exp(&self) -> Option<Self> {
        if self.log2() > 38.0 {
            return None;
        }
        let fixed = self.to_fixed(CONSTANT)?;
        let ln2 = ln2();
        let times: BigInt = (&fixed + (ln2 >> 1_u32)) / ln2;
        let rest = (fixed - &times * ln2) >> (CONSTANT - FIXED);
        let power = exp_fixed(&rest);
        Self::new(power, times.to_i64()?.checked_sub(FIXED as i64)?)
    }

    /// Of positive numbers.
    pub(crate) fn ln(&self) -> Option<Self> {
        if self.is_zero() || self.is_negative() {
            return None;
        }
        let bits = self.mantissa.bits() as i64;
        // In [1/2, 1), but near 1 from above where that keeps small logarithms exact.
        let mut scaled = shift(&self.mantissa, FIXED as i64 - bits);
        let mut power = self.exponent + bits;
        let one = BigInt::from(1) << FIXED;
        if &scaled * 4 < &one * 3 {
            scaled <<= 1_u32;
            power -= 1;
        }
        let start = (&scaled >> (FIXED - 60)).to_f64()? / 2_f64.powi(60);
        let mut log = from_f64_fixed(start.ln());
        for _ in 0..3 {
            let near = exp_fixed(&log);
            let difference = (&scaled - &near) << (FIXED + 1);
            log += difference / (&scaled + &near);
        }
        let high = ln2() * power;
        Self::from_fixed(log + (high >> (CONSTANT - FIXED)))
    }

    /// Sine and cosine.
    pub(crate) fn sin_cos(&self) -> Option<(Self, Self)> {
        let fixed = self.to_fixed(CONSTANT)?;
        let half_pi = pi() >> 1_u32;
        let doubled: BigInt = &fixed * 2 + &half_pi;
        let quarter_turns = floor_div(&doubled, &(&half_pi * 2));
        let rest = (fixed - &quarter_turns * &half_pi) >> (CONSTANT - FIXED);
        let (sin, cos) = sin_cos_fixed(&rest);
        let turns: BigInt = ((quarter_turns % 4) + 4) % 4;
        let (sin, cos) = match turns.to_u8()? {
            0 => (sin, cos),
            1 => (cos, -sin),
            2 => (-sin, -cos),
            _ => (-cos, sin),
        };
        Some((Self::from_fixed(sin)?, Self::from_fixed(cos)?))
    }

    /// The angle of a point.
    pub(crate) fn atan2(y: &Self, x: &Self) -> Option<Self> {
        if y.is_zero() && x.is_zero() {
            return None;
        }
        let radius = x.mul(x)?.add(&y.mul(y)?)?.sqrt()?;
        let (sin, cos) = (
            y.div(&radius)?.to_fixed(FIXED)?,
            x.div(&radius)?.to_fixed(FIXED)?,
        );
        let float = |value: &BigInt| {
            (value >> (FIXED - 100))
                .to_f64()
                .map(|v| v / 2_f64.powi(100))
        };
        let mut angle = from_f64_fixed(float(&sin)?.atan2(float(&cos)?));
        for _ in 0..3 {
            let (near_sin, near_cos) = sin_cos_fixed(&angle);
            // The sine of what is missing, and from it the angle.
            let missing: BigInt = (&sin * near_cos - &cos * near_sin) >> FIXED;
            let cubed: BigInt = (&missing * &missing * &missing) >> (2 * FIXED);
            angle += missing + cubed / 6;
        }
        Self::from_fixed(angle)
    }

    pub(crate) fn pi() -> Self {
        Self::new(pi().clone(), -(CONSTANT as i64)).expect("pi is small")
    }

    /// The integer below, where the number has no more bits than it keeps.
    pub(crate) fn floor(&self) -> Option<BigInt> {
        if self.log2() > PRECISION as f64 {
            return None;
        }
        Some(if self.exponent >= 0 {
            &self.mantissa << self.exponent as u64
        } else if self.exponent < -(2 * PRECISION as i64) {
            BigInt::from(if self.is_negative() { -1 } else { 0 })
        } else {
            // Shifts of negative numbers round down.
            &self.mantissa >> self.exponent.unsigned_abs()
        })
    }
}

fn floor_div(a: &BigInt, b: &BigInt) -> BigInt {
    let quotient = a / b;
    if (a % b).sign() == Sign::Minus {
        quotient - 1
    } else {
        quotient
    }
}

fn from_f64_fixed(value: f64) -> BigInt {
    // A double has 53 bits: scaled by 2^80, all of them are whole where the value is not tiny.
    let scaled = value * 2_f64.powi(80);
    let whole = BigInt::from(scaled as i128);
    whole << (FIXED - 80)
}

/// The exponential of a small fixed-point number.
fn exp_fixed(value: &BigInt) -> BigInt {
    const HALVINGS: u32 = 10;
    let one = BigInt::from(1) << FIXED;
    let small: BigInt = value >> HALVINGS;
    let mut term = one.clone();
    let mut sum = one;
    for index in 1_u32..200 {
        term = ((&term * &small) >> FIXED) / index;
        // A shift to the right leaves -1 of what is negative and tiny.
        if term.bits() <= 1 {
            break;
        }
        sum += &term;
    }
    for _ in 0..HALVINGS {
        sum = (&sum * &sum) >> FIXED;
    }
    sum
}

/// Sine and cosine of a small fixed-point number.
fn sin_cos_fixed(value: &BigInt) -> (BigInt, BigInt) {
    let one = BigInt::from(1) << FIXED;
    let square: BigInt = (value * value) >> FIXED;
    let series = |first: BigInt, from: u32| {
        let mut term = first.clone();
        let mut sum = first;
        let mut index = from;
        while index < 400 {
            term = -((&term * &square) >> FIXED) / (index * (index + 1));
            if term.bits() <= 1 {
                break;
            }
            sum += &term;
            index += 2;
        }
        sum
    };
    (series(value.clone(), 2), series(one, 1))
}

/// Pi with [`CONSTANT`] fraction bits, by Machin's formula.
fn pi() -> &'static BigInt {
    static PI: OnceLock<BigInt> = OnceLock::new();
    PI.get_or_init(|| {
        let arctan = |inverse: u32| inverse_series(inverse, true);
        (arctan(5) * 16 - arctan(239) * 4) >> 20
    })
}

/// The logarithm of two with [`CONSTANT`] fraction bits.
fn ln2() -> &'static BigInt {
    static LN2: OnceLock<BigInt> = OnceLock::new();
    LN2.get_or_init(|| {
        let artanh = |inverse: u32| inverse_series(inverse, false);
        (artanh(26) * 18 - artanh(4801) * 2 + artanh(8749) * 8) >> 20
    })
}

/// Inverse tangent (alternating) or inverse hyperbolic tangent of one over a number, with 20 bits more than constants.
fn inverse_series(inverse: u32, alternating: bool) -> BigInt {
    let mut power = (BigInt::from(1) << (CONSTANT + 20)) / inverse;
    let mut sum = BigInt::zero();
    let mut index = 1_u32;
    let mut is_negative = false;
    while !power.is_zero() {
        let term = &power / index;
        if is_negative {
            sum -= term;
        } else {
            sum += term;
        }
        power /= inverse * inverse;
        index += 2;
        is_negative ^= alternating;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(value: &Big) -> f64 {
        let bits = value.mantissa.bits() as i64;
        let mantissa = shift(&value.mantissa, 64 - bits).to_f64().unwrap();
        mantissa * 2_f64.powi((value.exponent + bits - 64) as i32)
    }

    fn big(above: i64, below: i64) -> Big {
        Big::from_rat(&Rat::ratio(above.into(), below.into()).unwrap()).unwrap()
    }

    fn near(left: &Big, right: &Big) {
        let difference = left.add(&right.neg()).unwrap();
        let bound = left.log2().max(right.log2()).max(0.0) - 235.0;
        assert!(
            difference.log2() < bound,
            "{} and {}: {}",
            float(left),
            float(right),
            difference.log2()
        );
    }

    #[test]
    fn functions_agree_with_machine_floats_and_with_each_other() {
        for (above, below) in [(1, 3), (-7, 2), (100, 7), (1, 1000), (12345, 1), (-1, 7)] {
            let x = big(above, below);
            let plain = above as f64 / below as f64;
            let close =
                |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-3), "{a} {b}");
            let (sin, cos) = x.sin_cos().unwrap();
            close(float(&sin), plain.sin());
            close(float(&cos), plain.cos());
            near(
                &sin.mul(&sin).unwrap().add(&cos.mul(&cos).unwrap()).unwrap(),
                &big(1, 1),
            );
            if plain.abs() < 700.0 {
                let power = x.exp().unwrap();
                close(float(&power), plain.exp());
                near(&power.ln().unwrap(), &x);
            }
            if plain > 0.0 {
                close(float(&x.ln().unwrap()), plain.ln());
                near(&x.sqrt().unwrap().mul(&x.sqrt().unwrap()).unwrap(), &x);
            }
            close(
                float(&Big::atan2(&x, &big(1, 2)).unwrap()),
                plain.atan2(0.5),
            );
            close(
                float(&Big::atan2(&x, &big(-1, 2)).unwrap()),
                plain.atan2(-0.5),
            );
        }
        near(
            &Big::atan2(&big(1, 1), &big(1, 1))
                .unwrap()
                .mul(&big(4, 1))
                .unwrap(),
            &Big::pi(),
        );
        assert!(big(i64::MAX, 1).exp().is_none());
    }
}
