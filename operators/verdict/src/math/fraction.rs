//! Quotients of polynomials: what most answers are, exactly.

use super::budget::{Budget, Exhausted};
use super::poly::Poly;
use super::rat::Rat;

/// A quotient of polynomials. Common powers and numbers are cancelled, common polynomials are not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fraction {
    pub(crate) above: Poly,
    pub(crate) below: Poly,
}

impl Fraction {
    pub(crate) fn number(value: Rat) -> Self {
        Self::poly(Poly::number(value))
    }

    pub(crate) fn poly(above: Poly) -> Self {
        Self {
            above,
            below: Poly::number(Rat::ONE),
        }
    }

    pub(crate) fn as_number(&self) -> Option<Rat> {
        self.above.as_number()?.div(&self.below.as_number()?)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.above.is_zero()
    }

    pub(crate) fn neg(self) -> Self {
        Self {
            above: self.above.neg(),
            below: self.below,
        }
    }

    pub(crate) fn add(self, other: Self, budget: &Budget) -> Result<Self, Exhausted> {
        if self.below == other.below {
            return Ok(Self {
                above: self.above.add(other.above, budget)?,
                below: self.below,
            }
            .lowest());
        }
        let left = self.above.mul(&other.below, budget)?;
        let right = other.above.mul(&self.below, budget)?;
        Ok(Self {
            above: left.add(right, budget)?,
            below: self.below.mul(&other.below, budget)?,
        }
        .lowest())
    }

    pub(crate) fn mul(&self, other: &Self, budget: &Budget) -> Result<Self, Exhausted> {
        Ok(Self {
            above: self.above.mul(&other.above, budget)?,
            below: self.below.mul(&other.below, budget)?,
        }
        .lowest())
    }

    /// One over it; none for zero.
    pub(crate) fn inverse(self) -> Option<Self> {
        if self.above.is_zero() {
            return None;
        }
        Some(
            Self {
                above: self.below,
                below: self.above,
            }
            .lowest(),
        )
    }

    /// Cancels what terms share, and makes the denominator whole with a positive last coefficient.
    pub(crate) fn lowest(self) -> Self {
        if self.above.is_zero() {
            return Self::number(Rat::ZERO);
        }
        if let Some(number) = self.below.as_number() {
            if number.is_one() {
                return self;
            }
            let Some(factor) = number.inverse() else {
                return self;
            };
            return Self::poly(self.above.scale(&factor));
        }
        let mut common = self.above.common_powers();
        let other = self.below.common_powers();
        common.retain_mut(
            |(kernel, power)| match other.iter().find(|entry| entry.0 == *kernel) {
                Some(entry) => {
                    *power = (*power).min(entry.1);
                    true
                }
                None => false,
            },
        );
        let (above, below) = (
            self.above.without_powers(&common),
            self.below.without_powers(&common),
        );
        let mut content = below.content();
        if below
            .terms
            .last()
            .is_some_and(|(_, value)| value.is_negative())
        {
            content = content.neg();
        }
        let factor = content.inverse().unwrap_or(Rat::ONE);
        let lowest = Self {
            above: above.scale(&factor),
            below: below.scale(&factor),
        };
        if lowest.above == lowest.below {
            return Self::number(Rat::ONE);
        }
        lowest
    }
}
