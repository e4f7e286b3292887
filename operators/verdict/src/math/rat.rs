//! Exact rational numbers: two machine words while they fit, big integers beyond.

use std::cmp::Ordering;

use num_bigint::{BigInt, BigUint};
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive};

/// Most bits of a numerator or denominator that arithmetic makes; what is larger stays a power, or is `timed-out`.
pub(crate) const MAX_BITS: u64 = 1 << 14;

/// An exact rational number in lowest terms, the denominator positive. Equal numbers have equal forms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rat {
    /// Numerator (not the smallest integer) and denominator.
    Small(i64, i64),
    /// One that does not fit.
    Big(Box<BigRational>),
}

impl Rat {
    pub(crate) const ZERO: Self = Self::Small(0, 1);
    pub(crate) const ONE: Self = Self::Small(1, 1);

    pub(crate) const fn int(value: i64) -> Self {
        assert!(value != i64::MIN, "has no negative");
        Self::Small(value, 1)
    }

    /// A quotient; none over zero.
    pub(crate) fn ratio(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs()) as i128;
        let sign = if denominator < 0 { -1 } else { 1 };
        let (above, below) = (sign * (numerator / divisor), sign * (denominator / divisor));
        Some(match (i64::try_from(above), i64::try_from(below)) {
            (Ok(above), Ok(below)) if above != i64::MIN => Self::Small(above, below),
            _ => Self::Big(Box::new(BigRational::new_raw(above.into(), below.into()))),
        })
    }

    pub(crate) fn from_big(value: BigRational) -> Self {
        match (value.numer().to_i64(), value.denom().to_i64()) {
            (Some(above), Some(below)) if above != i64::MIN => Self::Small(above, below),
            _ => Self::Big(Box::new(value)),
        }
    }

    pub(crate) fn from_int(value: BigInt) -> Self {
        Self::from_big(BigRational::from_integer(value))
    }

    pub(crate) fn to_big(&self) -> BigRational {
        match self {
            Self::Small(above, below) => {
                BigRational::new_raw(BigInt::from(*above), BigInt::from(*below))
            }
            Self::Big(value) => (**value).clone(),
        }
    }

    /// Digits over a power of ten: `12345` with 2 decimals is 123.45.
    pub(crate) fn from_digits(digits: &[u8], decimals: usize) -> Self {
        let small = (digits.len() <= 18 && decimals <= 18).then(|| {
            let value = digits
                .iter()
                .fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
            Self::ratio(value, 10_i128.pow(decimals as u32))
        });
        if let Some(Some(value)) = small {
            return value;
        }
        let value = BigUint::parse_bytes(digits, 10).unwrap_or_default();
        let scale = BigInt::from(10).pow(decimals as u32);
        Self::from_big(BigRational::new(value.into(), scale))
    }

    pub(crate) fn is_zero(&self) -> bool {
        matches!(self, Self::Small(0, _))
    }

    pub(crate) fn is_one(&self) -> bool {
        matches!(self, Self::Small(1, 1))
    }

    pub(crate) fn is_integer(&self) -> bool {
        match self {
            Self::Small(_, below) => *below == 1,
            Self::Big(value) => value.is_integer(),
        }
    }

    pub(crate) fn is_negative(&self) -> bool {
        match self {
            Self::Small(above, _) => *above < 0,
            Self::Big(value) => value.is_negative(),
        }
    }

    /// The value, where it is a machine integer.
    pub(crate) fn to_int(&self) -> Option<i64> {
        match self {
            Self::Small(above, 1) => Some(*above),
            _ => None,
        }
    }

    /// Bits of the larger of numerator and denominator.
    pub(crate) fn bits(&self) -> u64 {
        match self {
            Self::Small(..) => 64,
            Self::Big(value) => value.numer().bits().max(value.denom().bits()),
        }
    }

    pub(crate) fn neg(&self) -> Self {
        match self {
            Self::Small(above, below) => Self::Small(-above, *below),
            Self::Big(value) => Self::from_big(-(**value).clone()),
        }
    }

    pub(crate) fn add(&self, other: &Self) -> Self {
        if let (Self::Small(a, b), Self::Small(c, d)) = (self, other) {
            if *b == 1
                && *d == 1
                && let Some(sum) = a.checked_add(*c)
                && sum != i64::MIN
            {
                return Self::Small(sum, 1);
            }
            let [a, b, c, d] = [*a, *b, *c, *d].map(i128::from);
            return Self::ratio(a * d + c * b, b * d).expect("denominators are positive");
        }
        Self::from_big(self.to_big() + other.to_big())
    }

    pub(crate) fn mul(&self, other: &Self) -> Self {
        if let (Self::Small(a, b), Self::Small(c, d)) = (self, other) {
            if *b == 1
                && *d == 1
                && let Some(product) = a.checked_mul(*c)
                && product != i64::MIN
            {
                return Self::Small(product, 1);
            }
            let [a, b, c, d] = [*a, *b, *c, *d].map(i128::from);
            return Self::ratio(a * c, b * d).expect("denominators are positive");
        }
        Self::from_big(self.to_big() * other.to_big())
    }

    /// One over it; none for zero.
    pub(crate) fn inverse(&self) -> Option<Self> {
        match self {
            Self::Small(0, _) => None,
            Self::Small(above, below) => Some(if *above < 0 {
                Self::Small(-below, -above)
            } else {
                Self::Small(*below, *above)
            }),
            Self::Big(value) => Some(Self::from_big(value.recip())),
        }
    }

    pub(crate) fn div(&self, other: &Self) -> Option<Self> {
        Some(self.mul(&other.inverse()?))
    }

    /// A power with an integer exponent. None for zero to a negative power, and where the result is beyond
    /// [`MAX_BITS`].
    pub(crate) fn pow(&self, exponent: i64) -> Option<Self> {
        if exponent < 0 {
            return self.inverse()?.pow(exponent.checked_neg()?);
        }
        if let Self::Small(0 | 1, 1) = self {
            return Some(if exponent == 0 {
                Self::ONE
            } else {
                self.clone()
            });
        }
        if let Self::Small(-1, 1) = self {
            return Some(if exponent % 2 == 0 {
                Self::ONE
            } else {
                self.clone()
            });
        }
        let bits = match self {
            Self::Small(above, below) => {
                64 - u64::from(
                    above
                        .unsigned_abs()
                        .max(below.unsigned_abs())
                        .leading_zeros(),
                )
            }
            Self::Big(_) => self.bits(),
        };
        if (exponent as u64).saturating_mul(bits) > MAX_BITS {
            return None;
        }
        if let (Self::Small(above, below), Ok(count)) = (self, u32::try_from(exponent))
            && let (Some(above), Some(below)) = (above.checked_pow(count), below.checked_pow(count))
            && above != i64::MIN
        {
            return Some(Self::Small(above, below));
        }
        let base = self.to_big();
        let count = u32::try_from(exponent).ok()?;
        // Powers of what is in lowest terms are in lowest terms.
        let power = BigRational::new_raw(base.numer().pow(count), base.denom().pow(count));
        Some(Self::from_big(power))
    }

    pub(crate) fn abs(&self) -> Self {
        if self.is_negative() {
            self.neg()
        } else {
            self.clone()
        }
    }

    /// Largest integer that is not greater.
    pub(crate) fn floor(&self) -> Self {
        match self {
            Self::Small(above, below) => Self::Small(above.div_euclid(*below), 1),
            Self::Big(value) => Self::from_big(value.floor()),
        }
    }

    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        if let (Self::Small(a, b), Self::Small(c, d)) = (self, other) {
            let [a, b, c, d] = [*a, *b, *c, *d].map(i128::from);
            return (a * d).cmp(&(c * b));
        }
        self.to_big().cmp(&other.to_big())
    }

    pub(crate) fn numerator(&self) -> BigInt {
        match self {
            Self::Small(above, _) => BigInt::from(*above),
            Self::Big(value) => value.numer().clone(),
        }
    }

    pub(crate) fn denominator(&self) -> BigInt {
        match self {
            Self::Small(_, below) => BigInt::from(*below),
            Self::Big(value) => value.denom().clone(),
        }
    }

    /// The nearest float or one beside it; infinite where none is near.
    pub(crate) fn to_f64(&self) -> f64 {
        match self {
            Self::Small(above, below) => *above as f64 / *below as f64,
            Self::Big(value) => value.to_f64().unwrap_or(f64::NAN),
        }
    }

    /// The integer root of numerator and denominator, where both are perfect powers. Of numbers that are not negative.
    pub(crate) fn exact_root(&self, degree: u32) -> Option<Self> {
        if self.is_negative() {
            return None;
        }
        if self.is_zero() || self.is_one() {
            return Some(self.clone());
        }
        let root = |value: &BigInt| {
            let root = value.nth_root(degree);
            (root.pow(degree) == *value).then_some(root)
        };
        let (above, below) = (root(&self.numerator())?, root(&self.denominator())?);
        Some(Self::from_big(BigRational::new_raw(above, below)))
    }
}

impl std::fmt::Display for Rat {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Small(above, 1) => write!(formatter, "{above}"),
            Self::Small(above, below) => write!(formatter, "{above}/{below}"),
            Self::Big(value) => write!(formatter, "{value}"),
        }
    }
}

/// Greatest common divisor; 1 for two zeros, so that it may divide.
pub(crate) fn gcd(a: u128, b: u128) -> u128 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        if let (Ok(x), Ok(y)) = (u64::try_from(a), u64::try_from(b)) {
            return u128::from(gcd_word(x, y));
        }
        (a, b) = (b, a % b);
    }
    a.max(1)
}

fn gcd_word(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 {
        return a.max(b).max(1);
    }
    let shift = (a | b).trailing_zeros();
    let (mut a, mut b) = (a >> a.trailing_zeros(), b);
    loop {
        b >>= b.trailing_zeros();
        if a > b {
            std::mem::swap(&mut a, &mut b);
        }
        b -= a;
        if b == 0 {
            return a << shift;
        }
    }
}

/// The product of the integers up to a number; none beyond the bits that are kept.
pub(crate) fn factorial(count: u64) -> Option<Rat> {
    // 1500! has 13,700 bits.
    if count > 1500 {
        return None;
    }
    let mut product = BigInt::one();
    for factor in 2..=count {
        product *= factor;
    }
    Some(Rat::from_int(product))
}

/// How many ways there are to take `take` of `of`; none beyond the bits that are kept.
pub(crate) fn binomial(of: &Rat, take: u64) -> Option<Rat> {
    let of = of.to_int()?;
    // The shorter way round.
    let take = match u64::try_from(of) {
        Ok(of) if take > of => return Some(Rat::ZERO),
        Ok(of) => take.min(of - take),
        Err(_) => take,
    };
    if take > 600 {
        return None;
    }
    let mut product = BigInt::one();
    for index in 0..take as i64 {
        // Each quotient is a binomial itself, so nothing is left over.
        product = product * of.checked_sub(index)? / (index + 1);
        if product.bits() > MAX_BITS {
            return None;
        }
    }
    Some(Rat::from_int(product))
}

/// Work of counting with such numbers.
pub(crate) fn counting_cost(numbers: &[Rat]) -> u64 {
    let largest = numbers.iter().filter_map(Rat::to_int).max().unwrap_or(0);
    100 + 30 * largest.clamp(0, 1500) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_big_numbers_agree() {
        let near = [0, 1, -1, 2, 3, 7, -12, i64::MAX, -i64::MAX, i64::MAX - 1];
        for a in near {
            for b in near {
                for (c, d) in [(1, 1), (3, 7), (i64::MAX, 2)] {
                    let (x, y) = (
                        Rat::ratio(a.into(), c.into()).unwrap(),
                        Rat::ratio(b.into(), d.into()).unwrap(),
                    );
                    assert_eq!(x.add(&y).to_big(), x.to_big() + y.to_big());
                    assert_eq!(x.mul(&y).to_big(), x.to_big() * y.to_big());
                    assert_eq!(x.compare(&y), x.to_big().cmp(&y.to_big()));
                    assert_eq!(x.add(&y.neg()).add(&y), x);
                    if b != 0 {
                        assert_eq!(x.div(&y).unwrap().mul(&y), x);
                    }
                }
            }
        }
    }

    #[test]
    fn powers_roots_and_counts() {
        assert_eq!(Rat::int(-2).pow(3), Some(Rat::int(-8)));
        assert_eq!(Rat::int(2).pow(-2), Rat::ratio(1, 4));
        assert_eq!(Rat::ZERO.pow(-1), None);
        assert_eq!(Rat::int(10).pow(1 << 40), None);
        assert_eq!(Rat::ratio(9, 4).unwrap().exact_root(2), Rat::ratio(3, 2));
        assert_eq!(Rat::int(8).exact_root(2), None);
        assert_eq!(factorial(5), Some(Rat::int(120)));
        assert_eq!(binomial(&Rat::int(5), 2), Some(Rat::int(10)));
        assert_eq!(Rat::ratio(-7, 2).unwrap().floor(), Rat::int(-4));
        assert_eq!(
            Rat::from_digits(b"12345", 2),
            Rat::ratio(12345, 100).unwrap()
        );
    }
}
