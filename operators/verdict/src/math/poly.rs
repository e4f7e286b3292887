//! Polynomials with rational coefficients in kernels: variables, constants, roots and whatever is not taken apart.

use super::budget::{Budget, Exhausted};
use super::rat::{Rat, gcd};

/// Powers of kernels, by rising number of the kernel. No power is zero.
pub(crate) type Monomial = Vec<(u16, u32)>;

/// Most terms of a polynomial; what has more is compared by its values alone.
const MAX_TERMS: usize = 3000;

/// Terms by rising monomial, no coefficient zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Poly {
    pub(crate) terms: Vec<(Monomial, Rat)>,
}

impl Poly {
    pub(crate) fn number(value: Rat) -> Self {
        if value.is_zero() {
            return Self::default();
        }
        Self {
            terms: vec![(Monomial::new(), value)],
        }
    }

    pub(crate) fn kernel(kernel: u16, power: u32) -> Self {
        Self {
            terms: vec![(vec![(kernel, power)], Rat::ONE)],
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value, where it is a number.
    pub(crate) fn as_number(&self) -> Option<Rat> {
        match &self.terms[..] {
            [] => Some(Rat::ZERO),
            [(powers, value)] if powers.is_empty() => Some(value.clone()),
            _ => None,
        }
    }

    pub(crate) fn neg(mut self) -> Self {
        for (_, value) in &mut self.terms {
            *value = value.neg();
        }
        self
    }

    pub(crate) fn scale(mut self, factor: &Rat) -> Self {
        if factor.is_zero() {
            return Self::default();
        }
        if !factor.is_one() {
            for (_, value) in &mut self.terms {
                *value = value.mul(factor);
            }
        }
        self
    }

    pub(crate) fn add(self, other: Self, budget: &Budget) -> Result<Self, Exhausted> {
        if self.is_zero() {
            return Ok(other);
        }
        if other.is_zero() {
            return Ok(self);
        }
        budget.spend(4 * (self.terms.len() + other.terms.len()) as u64)?;
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let mut right = other.terms.into_iter().peekable();
        for (powers, value) in self.terms {
            while let Some(next) = right.next_if(|next| next.0 < powers) {
                terms.push(next);
            }
            match right.next_if(|next| next.0 == powers) {
                Some((_, more)) => {
                    let sum = value.add(&more);
                    budget.spend(cost(&sum))?;
                    if !sum.is_zero() {
                        terms.push((powers, sum));
                    }
                }
                None => terms.push((powers, value)),
            }
        }
        terms.extend(right);
        if terms.len() > MAX_TERMS {
            return Err(Exhausted);
        }
        Ok(Self { terms })
    }

    pub(crate) fn mul(&self, other: &Self, budget: &Budget) -> Result<Self, Exhausted> {
        if let Some(value) = other.as_number() {
            budget.spend(self.terms.len() as u64 * (2 + cost(&value)))?;
            return Ok(self.clone().scale(&value));
        }
        if let Some(value) = self.as_number() {
            budget.spend(other.terms.len() as u64 * (2 + cost(&value)))?;
            return Ok(other.clone().scale(&value));
        }
        let count = self.terms.len() * other.terms.len();
        budget.spend(20 * count as u64)?;
        if count > 16 * MAX_TERMS {
            return Err(Exhausted);
        }
        let mut terms = Vec::with_capacity(count);
        for (left_powers, left) in &self.terms {
            for (right_powers, right) in &other.terms {
                let value = left.mul(right);
                budget.spend(cost(&value))?;
                if value.bits() > super::rat::MAX_BITS {
                    return Err(Exhausted);
                }
                terms.push((times(left_powers, right_powers)?, value));
            }
        }
        Self::collect(terms, budget)
    }

    /// Sorts terms and adds those with the same powers.
    pub(crate) fn collect(
        mut terms: Vec<(Monomial, Rat)>,
        budget: &Budget,
    ) -> Result<Self, Exhausted> {
        budget.spend(4 * terms.len() as u64)?;
        terms.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        let mut sums: Vec<(Monomial, Rat)> = Vec::with_capacity(terms.len());
        for (powers, value) in terms {
            match sums.last_mut() {
                Some(last) if last.0 == powers => {
                    budget.spend(cost(&value))?;
                    last.1 = last.1.add(&value);
                }
                _ => sums.push((powers, value)),
            }
        }
        sums.retain(|(_, value)| !value.is_zero());
        if sums.len() > MAX_TERMS {
            return Err(Exhausted);
        }
        Ok(Self { terms: sums })
    }

    /// The powers that all terms share.
    pub(crate) fn common_powers(&self) -> Monomial {
        let mut terms = self.terms.iter();
        let Some((first, _)) = terms.next() else {
            return Monomial::new();
        };
        let mut common = first.clone();
        for (powers, _) in terms {
            if common.is_empty() {
                break;
            }
            common.retain_mut(|(kernel, power)| {
                match powers.iter().find(|other| other.0 == *kernel) {
                    Some(other) => {
                        *power = (*power).min(other.1);
                        true
                    }
                    None => false,
                }
            });
        }
        common
    }

    /// Every term without powers that it has.
    pub(crate) fn without_powers(mut self, powers: &Monomial) -> Self {
        if powers.is_empty() {
            return self;
        }
        for (own, _) in &mut self.terms {
            for (kernel, power) in powers {
                if let Some(entry) = own.iter_mut().find(|entry| entry.0 == *kernel) {
                    entry.1 -= power;
                }
            }
            own.retain(|entry| entry.1 > 0);
        }
        self.terms
            .sort_unstable_by(|left, right| left.0.cmp(&right.0));
        self
    }

    /// The positive number that leaves whole coefficients without a common divisor when it divides them. One for zero.
    pub(crate) fn content(&self) -> Rat {
        let mut above = 0_u128;
        let mut below = 1_u128;
        for (_, value) in &self.terms {
            let Rat::Small(a, b) = value else {
                return Rat::ONE;
            };
            above = if above == 0 {
                u128::from(a.unsigned_abs())
            } else {
                gcd(above, u128::from(a.unsigned_abs()))
            };
            let b = b.unsigned_abs().into();
            below = below / gcd(below, b) * b;
            if below > 1 << 62 {
                return Rat::ONE;
            }
        }
        if above == 0 {
            return Rat::ONE;
        }
        Rat::ratio(above as i128, below as i128).unwrap_or(Rat::ONE)
    }
}

/// Work of an operation that gives such a number.
fn cost(value: &Rat) -> u64 {
    match value {
        Rat::Small(..) => 1,
        Rat::Big(_) => 100 + value.bits(),
    }
}

/// Product of two monomials.
pub(crate) fn times(left: &Monomial, right: &Monomial) -> Result<Monomial, Exhausted> {
    if left.is_empty() {
        return Ok(right.clone());
    }
    if right.is_empty() {
        return Ok(left.clone());
    }
    let mut all = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut j) = (0, 0);
    while i < left.len() || j < right.len() {
        match (left.get(i), right.get(j)) {
            (Some(a), Some(b)) if a.0 == b.0 => {
                all.push((a.0, a.1.checked_add(b.1).ok_or(Exhausted)?));
                i += 1;
                j += 1;
            }
            (Some(a), Some(b)) if a.0 < b.0 => {
                all.push(*a);
                i += 1;
            }
            (Some(a), None) => {
                all.push(*a);
                i += 1;
            }
            (_, Some(b)) => {
                all.push(*b);
                j += 1;
            }
            (None, None) => break,
        }
    }
    Ok(all)
}
