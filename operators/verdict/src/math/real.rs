//! The real numbers that values are computed with: machine floats first, 256 bits where those cannot tell.

use super::big::Big;
use super::rat::Rat;

/// A kind of floating-point number. Operations give none where the result is not finite or not defined.
pub(crate) trait Real: Clone {
    /// Logarithm to base two of the relative error of an operation.
    const RELATIVE: f64;
    /// Logarithm to base two of the absolute error below which elementary functions do not go.
    const ABSOLUTE: f64;

    fn zero() -> Self;
    fn from_rat(value: &Rat) -> Option<Self>;
    fn is_zero(&self) -> bool;
    fn is_negative(&self) -> bool;
    /// Whether it is an integer that has room to spare: arithmetic with such ones does not round.
    fn is_small_integer(&self) -> bool;
    /// Logarithm to base two of the size, to within one.
    fn log2(&self) -> f64;
    fn neg(&self) -> Self;
    fn add(&self, other: &Self) -> Option<Self>;
    fn mul(&self, other: &Self) -> Option<Self>;
    fn div(&self, other: &Self) -> Option<Self>;
    fn sqrt(&self) -> Option<Self>;
    fn exp(&self) -> Option<Self>;
    fn ln(&self) -> Option<Self>;
    fn sin_cos(&self) -> Option<(Self, Self)>;
    fn atan2(y: &Self, x: &Self) -> Option<Self>;
    fn pi() -> Self;
    fn floor(&self) -> Option<Rat>;
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl Real for f64 {
    const RELATIVE: f64 = -50.0;
    const ABSOLUTE: f64 = -1000.0;

    fn zero() -> Self {
        0.0
    }
    fn from_rat(value: &Rat) -> Option<Self> {
        finite(value.to_f64())
    }
    fn is_zero(&self) -> bool {
        *self == 0.0
    }
    fn is_negative(&self) -> bool {
        *self < 0.0
    }
    fn is_small_integer(&self) -> bool {
        self.fract() == 0.0 && self.abs() < 1e15
    }
    fn log2(&self) -> f64 {
        self.abs().log2()
    }
    fn neg(&self) -> Self {
        -self
    }
    fn add(&self, other: &Self) -> Option<Self> {
        finite(self + other)
    }
    fn mul(&self, other: &Self) -> Option<Self> {
        let product = self * other;
        // What vanishes is not zero.
        let vanished = product.abs() < 1e-290 && !self.is_zero() && !other.is_zero();
        if vanished { None } else { finite(product) }
    }
    fn div(&self, other: &Self) -> Option<Self> {
        let quotient = self / other;
        let vanished = quotient.abs() < 1e-290 && !self.is_zero();
        if vanished { None } else { finite(quotient) }
    }
    fn sqrt(&self) -> Option<Self> {
        finite(f64::sqrt(*self))
    }
    fn exp(&self) -> Option<Self> {
        let power = f64::exp(*self);
        if power < 1e-290 { None } else { finite(power) }
    }
    fn ln(&self) -> Option<Self> {
        finite(f64::ln(*self))
    }
    fn sin_cos(&self) -> Option<(Self, Self)> {
        (self.abs() < 1e9).then(|| f64::sin_cos(*self))
    }
    fn atan2(y: &Self, x: &Self) -> Option<Self> {
        finite(f64::atan2(*y, *x))
    }
    fn pi() -> Self {
        std::f64::consts::PI
    }
    fn floor(&self) -> Option<Rat> {
        (self.abs() < 1e15).then(|| Rat::int(f64::floor(*self) as i64))
    }
}

impl Real for Big {
    const RELATIVE: f64 = -240.0;
    const ABSOLUTE: f64 = -320.0;

    fn zero() -> Self {
        Self::zero()
    }
    fn from_rat(value: &Rat) -> Option<Self> {
        Self::from_rat(value)
    }
    fn is_zero(&self) -> bool {
        self.is_zero()
    }
    fn is_negative(&self) -> bool {
        self.is_negative()
    }
    fn is_small_integer(&self) -> bool {
        self.is_small_integer()
    }
    fn log2(&self) -> f64 {
        self.log2()
    }
    fn neg(&self) -> Self {
        self.neg()
    }
    fn add(&self, other: &Self) -> Option<Self> {
        self.add(other)
    }
    fn mul(&self, other: &Self) -> Option<Self> {
        self.mul(other)
    }
    fn div(&self, other: &Self) -> Option<Self> {
        self.div(other)
    }
    fn sqrt(&self) -> Option<Self> {
        self.sqrt()
    }
    fn exp(&self) -> Option<Self> {
        self.exp()
    }
    fn ln(&self) -> Option<Self> {
        self.ln()
    }
    fn sin_cos(&self) -> Option<(Self, Self)> {
        self.sin_cos()
    }
    fn atan2(y: &Self, x: &Self) -> Option<Self> {
        Self::atan2(y, x)
    }
    fn pi() -> Self {
        Self::pi()
    }
    fn floor(&self) -> Option<Rat> {
        self.floor().map(Rat::from_int)
    }
}
