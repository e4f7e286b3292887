//! Complex numbers with a bound on their error: what an answer is worth, and how well that is known.

use super::rat::Rat;
use super::real::Real;

/// A complex number and the logarithm to base two of a bound on its error (minus infinity: it is exact).
#[derive(Clone, Debug)]
pub(crate) struct Ball<R> {
    pub(crate) re: R,
    pub(crate) im: R,
    pub(crate) error: f64,
}

const EXACT: f64 = f64::NEG_INFINITY;

/// The logarithm of a sum of two powers of two.
fn log_sum(a: f64, b: f64) -> f64 {
    let (high, low) = if a >= b { (a, b) } else { (b, a) };
    if low == EXACT || high - low > 60.0 {
        return high + 1e-9;
    }
    high + (1.0 + (low - high).exp2()).log2()
}

impl<R: Real> Ball<R> {
    pub(crate) fn from_rat(value: &Rat) -> Option<Self> {
        let re = R::from_rat(value)?;
        // A number with few bits is what it says; others are rounded.
        let is_exact = matches!(value, Rat::Small(above, 1) if above.unsigned_abs() < 1 << 53);
        let error = if is_exact {
            EXACT
        } else {
            re.log2() + R::RELATIVE
        };
        Some(Self {
            re,
            im: R::zero(),
            error,
        })
    }

    pub(crate) fn int(value: i64) -> Option<Self> {
        Self::from_rat(&Rat::int(value))
    }

    fn real(re: R, error: f64) -> Self {
        Self {
            re,
            im: R::zero(),
            error,
        }
        .rounded(error)
    }

    /// With the error of rounding added to what is inherited.
    fn rounded(mut self, inherited: f64) -> Self {
        self.error = log_sum(inherited, self.size() + R::RELATIVE);
        self
    }

    /// The result of an elementary function.
    fn computed(self, inherited: f64) -> Self {
        self.rounded(log_sum(inherited, R::ABSOLUTE))
    }

    /// Logarithm to base two of the size, no less than it is and hardly more.
    pub(crate) fn size(&self) -> f64 {
        self.re.log2().max(self.im.log2()) + 0.5
    }

    /// Whether the number is zero as far as is known.
    pub(crate) fn may_be_zero(&self) -> bool {
        self.size() - 1.5 <= self.error || (self.re.is_zero() && self.im.is_zero())
    }

    /// Whether it lies on the real line as far as is known.
    pub(crate) fn is_real(&self) -> bool {
        self.im.is_zero() || self.im.log2() - 1.0 <= self.error
    }

    /// Whether both parts are integers that need no rounding.
    fn is_whole(&self) -> bool {
        self.re.is_small_integer() && self.im.is_small_integer()
    }

    fn is_exactly_real(&self) -> bool {
        self.im.is_zero()
    }

    /// Bits that are known of the number, at least.
    fn is_precise(&self) -> bool {
        self.error < self.size().max(0.0) - 6.0
    }

    pub(crate) fn neg(&self) -> Self {
        Self {
            re: self.re.neg(),
            im: self.im.neg(),
            error: self.error,
        }
    }

    pub(crate) fn conjugate(&self) -> Self {
        Self {
            re: self.re.clone(),
            im: self.im.neg(),
            error: self.error,
        }
    }

    pub(crate) fn part(&self, imaginary: bool) -> Self {
        let re = if imaginary { &self.im } else { &self.re };
        Self {
            re: re.clone(),
            im: R::zero(),
            error: self.error,
        }
    }

    pub(crate) fn add(&self, other: &Self) -> Option<Self> {
        let sum = Self {
            re: self.re.add(&other.re)?,
            im: self.im.add(&other.im)?,
            error: EXACT,
        };
        if self.error == EXACT && other.error == EXACT && sum.is_whole() {
            return Some(sum);
        }
        // Rounding is measured on the larger summand, which is the safe side.
        let size = self.size().max(other.size());
        let mut sum = sum.rounded(log_sum(self.error, other.error));
        if size > sum.size() + 1.0 {
            sum.error = log_sum(sum.error, size + R::RELATIVE - 2.0);
        }
        Some(sum)
    }

    pub(crate) fn sub(&self, other: &Self) -> Option<Self> {
        self.add(&other.neg())
    }

    pub(crate) fn mul(&self, other: &Self) -> Option<Self> {
        let (a, b) = (self, other);
        let inherited = log_sum(a.size() + b.error, b.size() + a.error);
        let inherited = log_sum(inherited, a.error + b.error) + 0.5;
        let product = if a.is_exactly_real() && b.is_exactly_real() {
            Self {
                re: a.re.mul(&b.re)?,
                im: R::zero(),
                error: EXACT,
            }
        } else {
            Self {
                re: a.re.mul(&b.re)?.add(&a.im.mul(&b.im)?.neg())?,
                im: a.re.mul(&b.im)?.add(&a.im.mul(&b.re)?)?,
                error: EXACT,
            }
        };
        if a.error == EXACT && b.error == EXACT && product.is_whole() {
            return Some(product);
        }
        let size = a.size() + b.size();
        let inherited = if size == EXACT {
            inherited
        } else {
            log_sum(inherited, size + R::RELATIVE)
        };
        let inherited = if inherited.is_nan() { EXACT } else { inherited };
        Some(product.rounded(inherited))
    }

    /// None where the divisor may be zero.
    pub(crate) fn div(&self, other: &Self) -> Option<Self> {
        if other.may_be_zero() {
            return None;
        }
        let quotient = if other.is_exactly_real() {
            Self {
                re: self.re.div(&other.re)?,
                im: self.im.div(&other.re)?,
                error: EXACT,
            }
        } else {
            let norm = other.re.mul(&other.re)?.add(&other.im.mul(&other.im)?)?;
            let product = self.mul(&other.conjugate())?;
            Self {
                re: product.re.div(&norm)?,
                im: product.im.div(&norm)?,
                error: EXACT,
            }
        };
        let below = other.size() - 2.0;
        let inherited = log_sum(self.error, quotient.size() + other.error) - below;
        let inherited = if inherited.is_nan() { EXACT } else { inherited };
        let inherited = log_sum(inherited, self.size() - below + R::RELATIVE);
        Some(quotient.rounded(inherited))
    }

    pub(crate) fn pi() -> Self {
        Self::real(R::pi(), EXACT)
    }

    pub(crate) fn imaginary_unit() -> Option<Self> {
        let one = Self::int(1)?;
        Some(Self {
            re: R::zero(),
            im: one.re,
            error: EXACT,
        })
    }

    /// The absolute value.
    pub(crate) fn abs(&self) -> Option<Self> {
        if self.is_exactly_real() {
            return Some(if self.re.is_negative() {
                self.neg()
            } else {
                self.clone()
            });
        }
        let norm = self.re.mul(&self.re)?.add(&self.im.mul(&self.im)?)?;
        Some(Self::real(norm.sqrt()?, self.error + 0.5))
    }

    pub(crate) fn exp(&self) -> Option<Self> {
        if self.error > -4.0 {
            return None;
        }
        let size = self.re.exp()?;
        let result = if self.is_exactly_real() {
            Self {
                re: size,
                im: R::zero(),
                error: EXACT,
            }
        } else {
            let (sin, cos) = self.im.sin_cos()?;
            Self {
                re: size.mul(&cos)?,
                im: size.mul(&sin)?,
                error: EXACT,
            }
        };
        let inherited = result.size() + self.error + 1.0;
        Some(result.computed(inherited))
    }

    /// The principal logarithm.
    pub(crate) fn ln(&self) -> Option<Self> {
        if self.may_be_zero() || !self.is_precise_for_division() {
            return None;
        }
        let inherited = self.error - self.size() + 2.0;
        let result = if self.is_exactly_real() && !self.re.is_negative() {
            Self {
                re: self.re.ln()?,
                im: R::zero(),
                error: EXACT,
            }
        } else {
            Self {
                re: self.abs()?.re.ln()?,
                im: R::atan2(&self.im, &self.re)?,
                error: EXACT,
            }
        };
        Some(result.computed(inherited))
    }

    fn is_precise_for_division(&self) -> bool {
        self.error < self.size() - 6.0
    }

    /// The principal square root.
    pub(crate) fn sqrt(&self) -> Option<Self> {
        if self.re.is_zero() && self.im.is_zero() && self.error == EXACT {
            return Some(self.clone());
        }
        if self.may_be_zero() || !self.is_precise_for_division() {
            // The root of what may be zero is known half as well.
            let zero = Self {
                re: R::zero(),
                im: R::zero(),
                error: self.error.max(self.size()) / 2.0 + 1.5,
            };
            return Some(zero);
        }
        if self.is_exactly_real() {
            let root = if self.re.is_negative() {
                self.re.neg().sqrt()?
            } else {
                self.re.sqrt()?
            };
            let inherited = self.error - root.log2();
            let ball = if self.re.is_negative() {
                Self {
                    re: R::zero(),
                    im: root,
                    error: EXACT,
                }
            } else {
                Self {
                    re: root,
                    im: R::zero(),
                    error: EXACT,
                }
            };
            return Some(ball.rounded(inherited));
        }
        self.ln()?.mul(&Self::from_rat(&Rat::ratio(1, 2)?)?)?.exp()
    }

    /// Sine and cosine.
    pub(crate) fn sin_cos(&self) -> Option<(Self, Self)> {
        if !self.is_precise() || self.error > -4.0 {
            return None;
        }
        if self.is_exactly_real() {
            let (sin, cos) = self.re.sin_cos()?;
            return Some((
                Self::real(sin, EXACT).computed(self.error + 0.5),
                Self::real(cos, EXACT).computed(self.error + 0.5),
            ));
        }
        let i = Self::imaginary_unit()?;
        let up = self.mul(&i)?.exp()?;
        let down = self.mul(&i.neg())?.exp()?;
        let two = Self::int(2)?;
        Some((
            up.sub(&down)?.div(&two.mul(&i)?)?,
            up.add(&down)?.div(&two)?,
        ))
    }

    /// The angle of the point (`x`, `y`), both real.
    pub(crate) fn atan2(y: &Self, x: &Self) -> Option<Self> {
        if !y.is_exactly_real() || !x.is_exactly_real() {
            return None;
        }
        let angle = R::atan2(&y.re, &x.re)?;
        let size = y.size().max(x.size());
        let inherited = log_sum(y.error, x.error) - size + 2.0;
        // The angle jumps on the negative axis.
        if x.re.is_negative() && !y.re.is_zero() && y.may_be_zero() {
            return None;
        }
        Some(Self::real(angle, EXACT).computed(inherited))
    }

    /// A power. Of negative numbers to fractions with an odd denominator the real one, else the principal one.
    pub(crate) fn pow(&self, exponent: &Self, rational: Option<&Rat>) -> Option<Self> {
        let whole = rational
            .filter(|value| value.is_integer())
            .and_then(Rat::to_int);
        if let Some(count) = whole.filter(|count| count.unsigned_abs() <= 1 << 20) {
            return self.power(count);
        }
        if self.re.is_zero() && self.im.is_zero() && self.error == EXACT {
            let is_positive =
                exponent.is_exactly_real() && !exponent.re.is_negative() && !exponent.may_be_zero();
            return if is_positive {
                Some(self.clone())
            } else {
                None
            };
        }
        if self.is_exactly_real()
            && self.re.is_negative()
            && let Some(value) = rational
        {
            let is_odd = |number: &num_bigint::BigInt| number.bit(0);
            if is_odd(&value.denominator()) {
                let power = self.neg().ln()?.mul(exponent)?.exp()?;
                let is_negative = is_odd(&value.numerator());
                return Some(if is_negative { power.neg() } else { power });
            }
        }
        if rational.is_some_and(|value| *value == Rat::Small(1, 2)) {
            return self.sqrt();
        }
        self.ln()?.mul(exponent)?.exp()
    }

    fn power(&self, exponent: i64) -> Option<Self> {
        let mut result = Self::int(1)?;
        let mut square = self.clone();
        let mut left = exponent.unsigned_abs();
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(&square)?;
            }
            left >>= 1;
            if left > 0 {
                square = square.mul(&square)?;
            }
        }
        if exponent < 0 {
            return Self::int(1)?.div(&result);
        }
        Some(result)
    }

    /// The integer below a real number, where the error leaves no doubt.
    pub(crate) fn floor(&self) -> Option<Rat> {
        if !self.is_exactly_real() {
            return None;
        }
        let floor = self.re.floor()?;
        if self.error == EXACT {
            return Some(floor);
        }
        let base = Self::from_rat(&floor)?;
        let above = self.sub(&base)?;
        let below = base.add(&Self::int(1)?)?.sub(self)?;
        (!above.may_be_zero() && !below.may_be_zero()).then_some(floor)
    }
}
