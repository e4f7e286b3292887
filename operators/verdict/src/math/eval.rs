//! The value of an expression where its variables have values.

use super::ast::{Constant, Function, Id, Node, Symbol, Tree, each_child};
use super::ball::Ball;
use super::budget::{Budget, Exhausted};
use super::rat::{Rat, binomial, counting_cost, factorial};
use super::real::Real;

/// How variables get their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Points {
    /// Positive numbers.
    Positive,
    /// Numbers of either sign.
    Any,
    /// Positive integers.
    Whole,
}

/// An expression is worth something at a point, nothing (it is not defined, or not known well enough), or too much.
type Valued<R> = Result<Option<Ball<R>>, Exhausted>;

/// Where a tree is evaluated.
pub(crate) struct Place<'a> {
    pub(crate) tree: &'a Tree,
    /// What plus-minus signs stand for.
    pub(crate) sign: i8,
    pub(crate) points: Points,
    /// Number of the point.
    pub(crate) index: u64,
    pub(crate) budget: &'a Budget,
    /// Work of one operation.
    pub(crate) cost: u64,
}

/// A well-mixed number for a symbol and a point.
fn mix(symbol: Symbol, index: u64) -> u64 {
    let mut z = symbol
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_add(0x2545_f491_4f6c_dd1d);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The value of a variable at a point: a fraction of 2^20 between 0.2 and 3.2, or an integer.
fn variable(symbol: Symbol, points: Points, index: u64) -> Rat {
    let random = mix(symbol, index);
    let size = 200_000 + (random % 3_145_728) as i64;
    match points {
        Points::Whole => Rat::int(2 + (random % 11) as i64),
        Points::Positive => Rat::Small(size | 1, 1 << 20),
        Points::Any if random >> 63 == 0 => Rat::Small(size | 1, 1 << 20),
        Points::Any => Rat::Small(-(size | 1), 1 << 20),
    }
}

/// The exact value of an expression that is made of numbers alone, for exponents.
pub(crate) fn rational(tree: &Tree, id: Id) -> Option<Rat> {
    match tree.node(id) {
        Node::Num(value) => Some(value.clone()),
        Node::Negative(inner) => Some(rational(tree, *inner)?.neg()),
        Node::Quotient(above, below) => rational(tree, *above)?.div(&rational(tree, *below)?),
        Node::Product(all) if all.len() <= 4 => all.iter().try_fold(Rat::ONE, |product, id| {
            Some(product.mul(&rational(tree, *id)?))
        }),
        Node::Sum(all) if all.len() <= 4 => all
            .iter()
            .try_fold(Rat::ZERO, |sum, id| Some(sum.add(&rational(tree, *id)?))),
        Node::Power(base, exponent) => {
            let exponent = rational(tree, *exponent)?
                .to_int()
                .filter(|e| e.abs() < 4000)?;
            rational(tree, *base)?.pow(exponent)
        }
        _ => None,
    }
}

impl Place<'_> {
    pub(crate) fn value<R: Real>(&self, id: Id) -> Valued<R> {
        self.budget.spend(self.cost)?;
        Ok(match self.tree.node(id) {
            Node::Num(value) | Node::Based(value, 10) => Ball::from_rat(value),
            Node::Const(Constant::Pi) => Some(Ball::pi()),
            Node::Const(Constant::E) => Ball::int(1).and_then(|one| one.exp()),
            Node::Const(Constant::I) => Ball::imaginary_unit(),
            Node::Const(Constant::Infinity) => None,
            Node::Sym(symbol) | Node::Text(symbol) => {
                Ball::from_rat(&variable(*symbol, self.points, self.index))
            }
            Node::Sum(all) => {
                let mut sum = Ball::int(0);
                for id in all {
                    let (Some(left), Some(right)) = (sum, self.value(*id)?) else {
                        return Ok(None);
                    };
                    sum = left.add(&right);
                }
                sum
            }
            Node::Product(all) | Node::Letters(all, _) => {
                let mut product = Ball::int(1);
                for id in all {
                    let (Some(left), Some(right)) = (product, self.value(*id)?) else {
                        return Ok(None);
                    };
                    product = left.mul(&right);
                }
                product
            }
            Node::Quotient(above, below) => match (self.value(*above)?, self.value(*below)?) {
                (Some(above), Some(below)) => above.div(&below),
                _ => None,
            },
            Node::Negative(inner) => self.value(*inner)?.map(|value: Ball<R>| value.neg()),
            Node::PlusMinus(is_minus, inner) => {
                let is_negative = *is_minus == (self.sign > 0);
                self.value(*inner)?
                    .map(|value: Ball<R>| if is_negative { value.neg() } else { value })
            }
            Node::Power(base, exponent) => self.power(*base, *exponent)?,
            Node::Call(function, arguments) => self.call(*function, arguments)?,
            Node::Apply(symbol, arguments) => self.apply(*symbol, arguments)?,
            _ => None,
        })
    }

    fn power<R: Real>(&self, base: Id, exponent: Id) -> Valued<R> {
        let exact = rational(self.tree, exponent);
        if matches!(self.tree.node(base), Node::Const(Constant::E)) {
            return Ok(self.value(exponent)?.and_then(|value: Ball<R>| value.exp()));
        }
        let Some(base) = self.value::<R>(base)? else {
            return Ok(None);
        };
        let exponent_value = match &exact {
            Some(value) => Ball::from_rat(value),
            None => self.value(exponent)?,
        };
        let Some(exponent_value) = exponent_value else {
            return Ok(None);
        };
        // A whole exponent that is a variable at an integer point is a whole exponent.
        let exact = exact.or_else(|| {
            let value: &Ball<R> = &exponent_value;
            let is_exact = value.error == f64::NEG_INFINITY && value.im.is_zero();
            let whole = is_exact.then(|| value.floor()).flatten()?;
            let back = Ball::<R>::from_rat(&whole)?;
            value.sub(&back)?.re.is_zero().then_some(whole)
        });
        self.budget.spend(self.cost * 10)?;
        Ok(base.pow(&exponent_value, exact.as_ref()))
    }

    /// The arguments as integers; none where they are not known to be.
    fn integers<R: Real>(&self, arguments: &[Id]) -> Result<Option<Vec<Rat>>, Exhausted> {
        let mut all = Vec::with_capacity(arguments.len());
        for id in arguments {
            let whole = match rational(self.tree, *id) {
                Some(value) => Some(value),
                None => match self.value::<R>(*id)? {
                    Some(value) if value.error == f64::NEG_INFINITY => {
                        value.floor().filter(|whole| {
                            let back = Ball::<R>::from_rat(whole).and_then(|back| value.sub(&back));
                            back.is_some_and(|rest| rest.re.is_zero())
                        })
                    }
                    _ => None,
                },
            };
            match whole.filter(Rat::is_integer) {
                Some(whole) => all.push(whole),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    fn call<R: Real>(&self, function: Function, arguments: &[Id]) -> Valued<R> {
        use Function as F;
        self.budget.spend(self.cost * 10)?;
        match function {
            F::Factorial | F::DoubleFactorial | F::Binomial | F::Gcd | F::Lcm => {
                let Some(all) = self.integers::<R>(arguments)? else {
                    return Ok(None);
                };
                self.budget.spend(counting_cost(&all))?;
                return Ok(counted(function, &all).and_then(|value| Ball::from_rat(&value)));
            }
            F::Root => return self.root(arguments[0], arguments[1]),
            _ => {}
        }
        let mut values: Vec<Ball<R>> = Vec::with_capacity(arguments.len());
        for id in arguments {
            match self.value(*id)? {
                Some(value) => values.push(value),
                None => return Ok(None),
            }
        }
        Ok(elementary(function, &values))
    }

    fn root<R: Real>(&self, degree: Id, radicand: Id) -> Valued<R> {
        let Some(radicand) = self.value::<R>(radicand)? else {
            return Ok(None);
        };
        let exact = rational(self.tree, degree).and_then(|degree| degree.inverse());
        let exponent = match &exact {
            Some(value) => Ball::from_rat(value),
            None => match (Ball::int(1), self.value::<R>(degree)?) {
                (Some(one), Some(degree)) => one.div(&degree),
                _ => None,
            },
        };
        Ok(exponent.and_then(|exponent| radicand.pow(&exponent, exact.as_ref())))
    }

    /// A function that nobody knows: a curve of its own for each name.
    fn apply<R: Real>(&self, symbol: Symbol, arguments: &[Id]) -> Valued<R> {
        let part = |index: u64| Ball::from_rat(&variable(symbol, Points::Positive, 1000 + index));
        let mut sum: Option<Ball<R>> = part(0);
        for (index, id) in arguments.iter().enumerate() {
            let index = index as u64 * 3;
            let (Some(before), Some(argument)) = (sum, self.value::<R>(*id)?) else {
                return Ok(None);
            };
            sum = (|| {
                let angle = argument.mul(&part(index + 1)?)?.add(&part(index + 2)?)?;
                let (sin, _) = angle.sin_cos()?;
                before
                    .add(&sin)?
                    .add(&argument.mul(&argument)?.mul(&part(index + 3)?)?)
            })();
        }
        Ok(sum)
    }
}

/// Functions of integers.
pub(crate) fn counted(function: Function, all: &[Rat]) -> Option<Rat> {
    match function {
        Function::Factorial => factorial(u64::try_from(all[0].to_int()?).ok()?),
        Function::DoubleFactorial => {
            let count = all[0].to_int().filter(|count| (0..=1500).contains(count))?;
            let mut product = Rat::ONE;
            let mut factor = count;
            while factor > 1 {
                product = product.mul(&Rat::int(factor));
                factor -= 2;
            }
            Some(product)
        }
        Function::Binomial => binomial(&all[0], u64::try_from(all[1].to_int()?).ok()?),
        Function::Gcd | Function::Lcm => {
            let mut result = all[0].abs().to_int()?;
            for next in &all[1..] {
                let next = next.abs().to_int()?;
                let divisor = super::rat::gcd(result as u128, next as u128) as i64;
                result = if function == Function::Gcd {
                    divisor
                } else {
                    (result / divisor).checked_mul(next)?
                };
            }
            Some(Rat::int(result))
        }
        _ => None,
    }
}

/// Functions of complex numbers; the inverse ones on the part of the real line where their values are real.
fn elementary<R: Real>(function: Function, values: &[Ball<R>]) -> Option<Ball<R>> {
    use Function as F;
    let z = values.first()?;
    let one = || Ball::<R>::int(1);
    let two = || Ball::<R>::int(2);
    let flip = |value: Ball<R>| one()?.div(&value);
    Some(match function {
        F::Exp => z.exp()?,
        F::Ln => z.ln()?,
        // Whatever the base is: what holds for this one, which has no meaning, holds for all.
        F::Log => z
            .ln()?
            .div(&Ball::from_rat(&Rat::Small(777_767_777, 1 << 30))?)?,
        F::LogBase => values.get(1)?.ln()?.div(&z.ln()?)?,
        F::Sin => z.sin_cos()?.0,
        F::Cos => z.sin_cos()?.1,
        F::Tan => {
            let (sin, cos) = z.sin_cos()?;
            sin.div(&cos)?
        }
        F::Cot => {
            let (sin, cos) = z.sin_cos()?;
            cos.div(&sin)?
        }
        F::Sec => flip(z.sin_cos()?.1)?,
        F::Csc => flip(z.sin_cos()?.0)?,
        F::Asin | F::Acos => {
            let rest = one()?.sub(&z.mul(z)?)?;
            if !rest.is_real() || (rest.re.is_negative() && !rest.may_be_zero()) {
                return None;
            }
            let side = rest.sqrt()?.part(false);
            if function == F::Asin {
                Ball::atan2(z, &side)?
            } else {
                Ball::atan2(&side, z)?
            }
        }
        F::Atan => Ball::atan2(z, &one()?)?,
        // Between 0 and pi, as school has it.
        F::Acot => Ball::atan2(&one()?, z)?,
        F::Asec => elementary(F::Acos, &[flip(z.clone())?])?,
        F::Acsc => elementary(F::Asin, &[flip(z.clone())?])?,
        F::Sinh => z.exp()?.sub(&z.neg().exp()?)?.div(&two()?)?,
        F::Cosh => z.exp()?.add(&z.neg().exp()?)?.div(&two()?)?,
        F::Tanh => elementary(F::Sinh, values)?.div(&elementary(F::Cosh, values)?)?,
        F::Coth => elementary(F::Cosh, values)?.div(&elementary(F::Sinh, values)?)?,
        F::Sech => flip(elementary(F::Cosh, values)?)?,
        F::Csch => flip(elementary(F::Sinh, values)?)?,
        F::Asinh => z.mul(z)?.add(&one()?)?.sqrt()?.add(z)?.ln()?,
        F::Acosh => {
            let root = z.sub(&one()?)?.sqrt()?.mul(&z.add(&one()?)?.sqrt()?)?;
            root.add(z)?.ln()?
        }
        F::Atanh => {
            let quotient = one()?.add(z)?.div(&one()?.sub(z)?)?;
            quotient.ln()?.div(&two()?)?
        }
        F::Abs => z.abs()?,
        F::Floor => Ball::from_rat(&z.floor()?)?,
        F::Ceil => Ball::from_rat(&z.neg().floor()?.neg())?,
        F::Max | F::Min => {
            let mut best = z.clone();
            for next in &values[1..] {
                let difference = next.sub(&best)?;
                if !difference.is_real() {
                    return None;
                }
                if difference.re.is_negative() == (function == F::Min) {
                    best = next.clone();
                }
            }
            best
        }
        F::Degrees => z.mul(&Ball::pi())?.div(&Ball::int(180)?)?,
        F::Re => z.part(false),
        F::Im => z.part(true),
        F::Conjugate => z.conjugate(),
        F::Root | F::Factorial | F::DoubleFactorial | F::Binomial | F::Gcd | F::Lcm => return None,
    })
}

/// Whether an expression has variables, and whether one of them is counted with (under a factorial, say).
pub(crate) fn variables(tree: &Tree, id: Id, found: &mut (bool, bool)) {
    match tree.node(id) {
        Node::Sym(_) | Node::Text(_) => found.0 = true,
        Node::Call(
            Function::Factorial
            | Function::DoubleFactorial
            | Function::Binomial
            | Function::Gcd
            | Function::Lcm,
            arguments,
        ) => {
            let mut inner = (false, false);
            for id in arguments {
                variables(tree, *id, &mut inner);
            }
            found.0 |= inner.0;
            found.1 |= inner.0;
        }
        node => each_child(node, |child| variables(tree, child, found)),
    }
}
