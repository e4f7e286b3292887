//! The exact form of an expression: a quotient of polynomials in variables, constants, roots and functions.

use super::ast::{Constant, Function, Id, Node, Symbol, Tree};
use super::budget::{Budget, Exhausted};
use super::eval::counted;
use super::fraction::Fraction;
use super::poly::{Monomial, Poly};
use super::rat::{Rat, counting_cost};

/// What stands in a polynomial like a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Sym(Symbol),
    Const(Constant),
    /// Degree and radicand; `true` for the square root of a prime.
    Root(u32, Fraction, bool),
    Call(Function, Vec<Fraction>),
    Apply(Symbol, Vec<Fraction>),
    Power(Fraction, Fraction),
}

/// Why an expression has no exact form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoForm {
    /// It divides by zero.
    Undefined,
    /// It is too large: its values still tell.
    TooLarge,
    /// It is no number.
    Other,
}

impl From<Exhausted> for NoForm {
    fn from(_: Exhausted) -> Self {
        Self::TooLarge
    }
}

type Formed<T = Fraction> = Result<T, NoForm>;

/// Largest power that is multiplied out.
const MAX_POWER: i64 = 60;
/// Most kernels of one comparison.
const MAX_KERNELS: usize = 400;

/// The kernels of one comparison, by number.
#[derive(Debug)]
pub(crate) struct Canon<'a> {
    pub(crate) kernels: Vec<Kernel>,
    budget: &'a Budget,
}

impl<'a> Canon<'a> {
    pub(crate) fn new(budget: &'a Budget) -> Self {
        Self {
            kernels: Vec::new(),
            budget,
        }
    }

    fn kernel(&mut self, kernel: Kernel) -> Formed<u16> {
        self.budget.spend(2 + self.kernels.len() as u64)?;
        if let Some(place) = self.kernels.iter().position(|known| *known == kernel) {
            return Ok(place as u16);
        }
        if self.kernels.len() >= MAX_KERNELS {
            return Err(NoForm::TooLarge);
        }
        self.kernels.push(kernel);
        Ok(self.kernels.len() as u16 - 1)
    }

    fn atom(&mut self, kernel: Kernel) -> Formed {
        Ok(Fraction::poly(Poly::kernel(self.kernel(kernel)?, 1)))
    }

    /// Whether two forms that differ are certainly not equal: all their kernels are independent of each other.
    pub(crate) fn is_decisive(&self) -> bool {
        self.kernels.iter().all(|kernel| {
            matches!(
                kernel,
                Kernel::Sym(_)
                    | Kernel::Const(Constant::Pi | Constant::I)
                    | Kernel::Root(2, _, true)
            )
        })
    }

    /// Whether the difference of two forms vanishes; none where it is too large to be multiplied out.
    pub(crate) fn is_difference_zero(&mut self, a: &Fraction, b: &Fraction) -> Option<bool> {
        if a.below == b.below {
            return Some(a.above == b.above);
        }
        let left = a.above.mul(&b.below, self.budget).ok()?;
        let right = b.above.mul(&a.below, self.budget).ok()?;
        Some(self.reduce(left).ok()? == self.reduce(right).ok()?)
    }

    /// The exact form of an expression, plus-minus signs standing for `sign`.
    pub(crate) fn form(&mut self, tree: &Tree, id: Id, sign: i8) -> Formed {
        self.budget.spend(3)?;
        match tree.node(id) {
            Node::Num(value) => Ok(Fraction::number(value.clone())),
            Node::Sym(symbol) | Node::Text(symbol) => self.atom(Kernel::Sym(*symbol)),
            Node::Const(Constant::Infinity) => Err(NoForm::Other),
            Node::Const(constant) => self.atom(Kernel::Const(*constant)),
            Node::Sum(all) => {
                let mut sum = Fraction::number(Rat::ZERO);
                for id in all {
                    let term = self.form(tree, *id, sign)?;
                    sum = sum.add(term, self.budget)?;
                }
                Ok(sum)
            }
            Node::Product(all) | Node::Letters(all, _) => {
                let mut product = Fraction::number(Rat::ONE);
                for id in all {
                    let factor = self.form(tree, *id, sign)?;
                    product = self.times(&product, &factor)?;
                }
                Ok(product)
            }
            Node::Quotient(above, below) => {
                let above = self.form(tree, *above, sign)?;
                let below = self.form(tree, *below, sign)?;
                let inverse = below.inverse().ok_or(NoForm::Undefined)?;
                self.times(&above, &inverse)
            }
            Node::Negative(inner) => Ok(self.form(tree, *inner, sign)?.neg()),
            Node::PlusMinus(is_minus, inner) => {
                let form = self.form(tree, *inner, sign)?;
                Ok(if *is_minus == (sign > 0) {
                    form.neg()
                } else {
                    form
                })
            }
            Node::Power(base, exponent) => {
                let base = self.form(tree, *base, sign)?;
                let exponent = self.form(tree, *exponent, sign)?;
                self.power(base, exponent)
            }
            Node::Call(Function::Root, arguments) => {
                let degree = self.form(tree, arguments[0], sign)?;
                let radicand = self.form(tree, arguments[1], sign)?;
                let exponent = degree.inverse().ok_or(NoForm::Undefined)?;
                self.power(radicand, exponent)
            }
            Node::Call(function, arguments) => {
                let mut forms = Vec::with_capacity(arguments.len());
                for id in arguments {
                    forms.push(self.form(tree, *id, sign)?);
                }
                self.call(*function, forms)
            }
            Node::Apply(symbol, arguments) => {
                let mut forms = Vec::with_capacity(arguments.len());
                for id in arguments {
                    forms.push(self.form(tree, *id, sign)?);
                }
                self.atom(Kernel::Apply(*symbol, forms))
            }
            _ => Err(NoForm::Other),
        }
    }

    fn times(&mut self, left: &Fraction, right: &Fraction) -> Formed {
        let product = left.mul(right, self.budget)?;
        if self.kernels.is_empty() {
            return Ok(product);
        }
        Ok(Fraction {
            above: self.reduce(product.above)?,
            below: self.reduce(product.below)?,
        }
        .lowest())
    }

    /// Replaces powers of roots: the square of a square root is its radicand, that of the imaginary unit -1.
    fn reduce(&mut self, mut poly: Poly) -> Formed<Poly> {
        for _ in 0..20 {
            let Some((kernel, degree)) = self.reducible(&poly) else {
                return Ok(poly);
            };
            let value = match &self.kernels[kernel as usize] {
                Kernel::Const(Constant::I) => Poly::number(Rat::int(-1)),
                Kernel::Root(_, radicand, _) => radicand.above.clone(),
                _ => return Ok(poly),
            };
            let mut kept: Vec<(Monomial, Rat)> = Vec::new();
            let mut replaced = Poly::default();
            for (mut powers, coefficient) in poly.terms {
                let place = powers.iter().position(|entry| entry.0 == kernel);
                match place.filter(|place| powers[*place].1 >= degree) {
                    Some(place) => {
                        let times = powers[place].1 / degree;
                        powers[place].1 %= degree;
                        powers.retain(|entry| entry.1 > 0);
                        let rest = Poly {
                            terms: vec![(powers, coefficient)],
                        };
                        let factor = self.raise(&value, times.into())?;
                        replaced = replaced.add(rest.mul(&factor, self.budget)?, self.budget)?;
                    }
                    None => kept.push((powers, coefficient)),
                }
            }
            poly = Poly { terms: kept }.add(replaced, self.budget)?;
        }
        Err(NoForm::TooLarge)
    }

    fn reducible(&self, poly: &Poly) -> Option<(u16, u32)> {
        let entries = poly.terms.iter().flat_map(|(powers, _)| powers.iter());
        for (kernel, power) in entries {
            if *power < 2 {
                continue;
            }
            match &self.kernels[*kernel as usize] {
                Kernel::Const(Constant::I) => return Some((*kernel, 2)),
                Kernel::Root(degree, radicand, _)
                    if power >= degree
                        && radicand.below.as_number().is_some_and(|n| n.is_one()) =>
                {
                    return Some((*kernel, *degree));
                }
                _ => {}
            }
        }
        None
    }

    fn raise(&mut self, base: &Poly, exponent: i64) -> Formed<Poly> {
        if let Some(value) = base.as_number() {
            let power = value.pow(exponent).ok_or(NoForm::TooLarge)?;
            return Ok(Poly::number(power));
        }
        if let [(powers, value)] = &base.terms[..] {
            let count = u32::try_from(exponent).map_err(|_| NoForm::TooLarge)?;
            let mut powers = powers.clone();
            for entry in &mut powers {
                entry.1 = entry.1.checked_mul(count).ok_or(NoForm::TooLarge)?;
            }
            let value = value.pow(exponent).ok_or(NoForm::TooLarge)?;
            return self.reduce(Poly {
                terms: vec![(powers, value)],
            });
        }
        if exponent > MAX_POWER {
            return Err(NoForm::TooLarge);
        }
        let mut power = Poly::number(Rat::ONE);
        for _ in 0..exponent {
            power = power.mul(base, self.budget)?;
            power = self.reduce(power)?;
        }
        Ok(power)
    }

    pub(crate) fn power(&mut self, base: Fraction, exponent: Fraction) -> Formed {
        let Some(value) = exponent.as_number() else {
            return self.atom(Kernel::Power(base, exponent));
        };
        if value.is_zero() {
            return if base.is_zero() {
                Err(NoForm::Undefined)
            } else {
                Ok(Fraction::number(Rat::ONE))
            };
        }
        if base.is_zero() {
            return if value.is_negative() {
                Err(NoForm::Undefined)
            } else {
                Ok(base)
            };
        }
        if let Some(count) = value.to_int() {
            let number = base.as_number();
            if let Some(number) = &number
                && number.pow(count).is_none()
            {
                return self.atom(Kernel::Power(base, exponent));
            }
            let base = if count < 0 {
                base.inverse().ok_or(NoForm::Undefined)?
            } else {
                base
            };
            let count = i64::try_from(count.unsigned_abs()).map_err(|_| NoForm::TooLarge)?;
            return Ok(Fraction {
                above: self.raise(&base.above, count)?,
                below: self.raise(&base.below, count)?,
            }
            .lowest());
        }
        let Rat::Small(above, below @ 2..=24) = value else {
            return self.atom(Kernel::Power(base, exponent));
        };
        match base.as_number() {
            Some(number) => self.number_root(&number, above, below as u32),
            None => self.form_root(base, above, below as u32),
        }
    }

    /// `number^(above/below)`
    fn number_root(&mut self, number: &Rat, above: i64, below: u32) -> Formed {
        let kept = || {
            let exponent = Rat::Small(above, i64::from(below));
            Kernel::Power(Fraction::number(number.clone()), Fraction::number(exponent))
        };
        if number.is_negative() {
            let size = number.neg();
            if below % 2 == 1 {
                let root = self.number_root(&size, above, below)?;
                return Ok(if above % 2 == 0 { root } else { root.neg() });
            }
            if below == 2 {
                let root = self.number_root(&size, above, 2)?;
                let i = self.atom(Kernel::Const(Constant::I))?;
                let i = self.power(i, Fraction::number(Rat::int(above)))?;
                return self.times(&root, &i);
            }
            return self.atom(kept());
        }
        let Some(number) = number.pow(above).filter(|number| number.bits() < 2000) else {
            return self.atom(kept());
        };
        if let Some(root) = number.exact_root(below) {
            return Ok(Fraction::number(root));
        }
        // The root of a/b is that of a b^(n-1), over b.
        let denominator = Rat::from_int(number.denominator());
        let numerator = Rat::from_int(number.numerator());
        let radicand = denominator
            .pow(i64::from(below) - 1)
            .map(|power| power.mul(&numerator))
            .ok_or(NoForm::TooLarge)?;
        let inverse = denominator.inverse().ok_or(NoForm::Undefined)?;
        let mut outside = Fraction::number(inverse);
        let mut rest = radicand.numerator();
        self.budget.spend(400)?;
        let mut factors: Vec<(Rat, u32, bool)> = Vec::new();
        if let Ok(mut small) = u64::try_from(&rest) {
            let mut prime = 2_u64;
            while prime < 1000 && prime * prime <= small {
                let mut count = 0;
                while small % prime == 0 {
                    small /= prime;
                    count += 1;
                }
                if count > 0 {
                    factors.push((Rat::int(prime as i64), count, true));
                }
                prime += 1 + prime % 2;
            }
            rest = small.into();
        }
        if rest.bits() > 1 {
            let is_prime =
                rest.bits() <= 19 && i64::try_from(&rest).is_ok_and(|rest| rest < 998_001);
            factors.push((Rat::from_int(rest), 1, is_prime));
        }
        for (factor, count, is_prime) in factors {
            let outer = factor
                .pow(i64::from(count / below))
                .ok_or(NoForm::TooLarge)?;
            outside = outside.mul(&Fraction::number(outer), self.budget)?;
            let inner = count % below;
            if inner == 0 {
                continue;
            }
            let shared = super::rat::gcd(inner.into(), below.into()) as u32;
            let (inner, degree) = (inner / shared, below / shared);
            let kernel = Kernel::Root(degree, Fraction::number(factor), is_prime && degree == 2);
            let kernel = self.kernel(kernel)?;
            outside = self.times(&outside, &Fraction::poly(Poly::kernel(kernel, inner)))?;
        }
        Ok(outside)
    }

    /// A root of what is no number: the number before it is taken out.
    fn form_root(&mut self, base: Fraction, above: i64, below: u32) -> Formed {
        let content = base.above.content();
        let scale = content.inverse().unwrap_or(Rat::ONE);
        let inner = Fraction {
            above: base.above.scale(&scale),
            below: base.below,
        };
        let outside = self.number_root(&content, above, below)?;
        let kernel = self.kernel(Kernel::Root(below, inner, false))?;
        let count = u32::try_from(above.unsigned_abs()).map_err(|_| NoForm::TooLarge)?;
        let mut root = Fraction::poly(self.reduce(Poly::kernel(kernel, count))?);
        if above < 0 {
            root = root.inverse().ok_or(NoForm::Undefined)?;
        }
        self.times(&outside, &root)
    }

    fn call(&mut self, function: Function, forms: Vec<Fraction>) -> Formed {
        use Function as F;
        let numbers: Option<Vec<Rat>> = forms.iter().map(Fraction::as_number).collect();
        match function {
            F::Exp => {
                let e = self.atom(Kernel::Const(Constant::E))?;
                return forms
                    .into_iter()
                    .next()
                    .map_or(Err(NoForm::Other), |power| self.power(e, power));
            }
            F::Degrees => {
                let pi = self.atom(Kernel::Const(Constant::Pi))?;
                let share = Fraction::number(Rat::Small(1, 180));
                let factor = self.times(&pi, &share)?;
                return self.times(&forms[0], &factor);
            }
            _ => {}
        }
        if let Some(numbers) = numbers
            && let Some(value) = self.of_numbers(function, &numbers)?
        {
            return Ok(Fraction::number(value));
        }
        self.atom(Kernel::Call(function, forms))
    }

    /// What a function of numbers is, where that is a number that is easily found.
    fn of_numbers(&mut self, function: Function, numbers: &[Rat]) -> Formed<Option<Rat>> {
        use Function as F;
        self.budget.spend(50)?;
        let first = &numbers[0];
        Ok(match function {
            F::Abs => Some(first.abs()),
            F::Floor => Some(first.floor()),
            F::Ceil => Some(first.neg().floor().neg()),
            F::Ln | F::Log if first.is_one() => Some(Rat::ZERO),
            F::Ln | F::Log | F::LogBase if numbers.last().is_some_and(Rat::is_zero) => {
                return Err(NoForm::Undefined);
            }
            F::Sin | F::Tan | F::Sinh | F::Tanh | F::Asin | F::Atan if first.is_zero() => {
                Some(Rat::ZERO)
            }
            F::Cos | F::Cosh if first.is_zero() => Some(Rat::ONE),
            F::Max => numbers.iter().max_by(|a, b| a.compare(b)).cloned(),
            F::Min => numbers.iter().min_by(|a, b| a.compare(b)).cloned(),
            F::LogBase => {
                let base = first;
                if base.is_zero() || base.is_one() || base.is_negative() {
                    return Err(NoForm::Undefined);
                }
                (-40..=40).find_map(|exponent| {
                    (base.pow(exponent).as_ref() == Some(&numbers[1])).then(|| Rat::int(exponent))
                })
            }
            F::Factorial | F::DoubleFactorial | F::Binomial | F::Gcd | F::Lcm => {
                if !numbers.iter().all(Rat::is_integer) {
                    return Ok(None);
                }
                self.budget.spend(counting_cost(numbers))?;
                counted(function, numbers)
            }
            _ => None,
        })
    }
}
