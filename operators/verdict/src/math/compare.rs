//! Whether two answers say the same: numbers and expressions here, what is made of them in `shapes`.

use std::cell::Cell;

use num_rational::BigRational;

use super::ast::{Id, Node, Tree};
use super::ball::Ball;
use super::big::Big;
use super::budget::{Budget, Exhausted};
use super::canon::{Canon, NoForm};
use super::eval::{Place, Points, variables};
use super::identical::identical;
use super::real::Real;

/// It could not be told within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsure;

impl From<Exhausted> for Unsure {
    fn from(_: Exhausted) -> Self {
        Self
    }
}

/// A part of an answer, plus-minus signs standing for `sign`, or for both signs where that is zero.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) id: Id,
    pub(crate) sign: i8,
}

impl<'a> At<'a> {
    pub(crate) fn root(tree: &'a Tree) -> Self {
        Self {
            tree,
            id: tree.root,
            sign: 0,
        }
    }

    pub(crate) fn node(self) -> &'a Node {
        self.tree.node(self.id)
    }

    pub(crate) fn with(self, id: Id) -> Self {
        Self { id, ..self }
    }
}

/// How two expressions were told apart or found equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Method {
    /// Exact forms.
    Exact,
    /// Values at points.
    Values,
}

/// Compares, within a budget.
pub(crate) struct Comparer<'b> {
    pub(crate) budget: &'b Budget,
    /// The weakest method that was needed.
    pub(crate) method: Cell<Method>,
}

/// Points at which machine floats are compared, and those at which 256 bits confirm.
const POINTS: u64 = 8;
const CONFIRMED: u64 = 3;
/// Bits to which values must agree to be equal.
const AGREEMENT: f64 = -150.0;

/// What the values at one point say.
enum AtPoint {
    Differ,
    Agree,
    /// Both are defined, but how exactly is not known.
    Unclear,
    /// Not defined at this point, one or both of them.
    Undefined,
}

impl<'b> Comparer<'b> {
    pub(crate) fn new(budget: &'b Budget) -> Self {
        Self {
            budget,
            method: Cell::new(Method::Exact),
        }
    }

    fn used(&self, method: Method) {
        self.method.set(self.method.get().max(method));
    }

    /// About what a constant expression is worth, where that is a real number.
    pub(crate) fn near(&self, at: At<'_>) -> Option<f64> {
        let mut found = (false, false);
        variables(at.tree, at.id, &mut found);
        if found.0 {
            return None;
        }
        let value: Ball<f64> = self.place(at, Points::Positive, 0, 2).value(at.id).ok()??;
        let is_known = value.error < value.size() - 30.0 || value.error == f64::NEG_INFINITY;
        (value.is_real() && is_known)
            .then_some(value.re)
            .or_else(|| value.may_be_zero().then_some(0.0))
    }

    /// The number that an answer says, its name and unit left aside.
    pub(crate) fn measure(&self, at: At<'_>) -> Option<BigRational> {
        match at.node() {
            Node::Quantity(inner, ..) => self.measure(at.with(*inner)),
            Node::Chain(..) => {
                let value = self.said(at).ok()?;
                if value.id == at.id {
                    None
                } else {
                    self.measure(value)
                }
            }
            _ => {
                let mut canon = Canon::new(self.budget);
                let exact = canon
                    .form(at.tree, at.id, at.sign)
                    .ok()
                    .and_then(|form| form.as_number());
                match exact {
                    Some(value) => Some(value.to_big()),
                    None => BigRational::from_float(self.near(at)?),
                }
            }
        }
    }

    fn place<'c>(&'c self, at: At<'c>, points: Points, index: u64, cost: u64) -> Place<'c> {
        Place {
            tree: at.tree,
            sign: at.sign,
            points,
            index,
            budget: self.budget,
            cost,
        }
    }

    /// Whether two expressions have the same value, whatever the values of their variables.
    pub(crate) fn same_value(&self, left: At<'_>, right: At<'_>) -> Result<bool, Unsure> {
        if let (Node::Num(a), Node::Num(b)) = (left.node(), right.node()) {
            return Ok(a == b);
        }
        let part = self.budget.half();
        let decided = by_forms(left, right, &part);
        self.budget.take_back(&part);
        if let Some(decided) = decided {
            return Ok(decided);
        }
        if identical(left, right) {
            return Ok(true);
        }
        self.used(Method::Values);
        self.by_values(
            left,
            right,
            |a, b| Some((a.clone(), b.clone())),
            |a, b| Some((a.clone(), b.clone())),
        )
    }

    /// Whether one expression is the other with its sign changed.
    pub(crate) fn is_opposite(&self, left: At<'_>, right: At<'_>) -> Result<bool, Unsure> {
        self.used(Method::Values);
        self.by_values(
            left,
            right,
            |a, b| Some((a.clone(), b.neg())),
            |a, b| Some((a.clone(), b.neg())),
        )
    }

    /// Compares what a rule makes of the values of both, at many points.
    pub(crate) fn by_values(
        &self,
        left: At<'_>,
        right: At<'_>,
        quick: impl Fn(&Ball<f64>, &Ball<f64>) -> Option<(Ball<f64>, Ball<f64>)>,
        thorough: impl Fn(&Ball<Big>, &Ball<Big>) -> Option<(Ball<Big>, Ball<Big>)>,
    ) -> Result<bool, Unsure> {
        let mut found = (false, false);
        variables(left.tree, left.id, &mut found);
        variables(right.tree, right.id, &mut found);
        let (has_variables, counts) = found;
        let kinds: &[Points] = match (has_variables, counts) {
            (false, _) => &[Points::Positive],
            (true, false) => &[Points::Positive, Points::Any],
            (true, true) => &[Points::Whole],
        };
        let (mut undefined, mut asked) = (0, 0);
        for points in kinds {
            let count = if has_variables { POINTS } else { 1 };
            for index in 0..count {
                asked += 1;
                match self.at_point(left, right, *points, index, 2, &quick)? {
                    AtPoint::Differ => return Ok(false),
                    AtPoint::Undefined => undefined += 1,
                    AtPoint::Agree | AtPoint::Unclear => {}
                }
            }
        }
        let mut agreed = 0;
        for points in kinds {
            let mut here = 0;
            let count = if has_variables { POINTS } else { 1 };
            for index in 0..count {
                match self.at_point(left, right, *points, index, 300, &thorough)? {
                    AtPoint::Differ => return Ok(false),
                    AtPoint::Agree => here += 1,
                    AtPoint::Undefined | AtPoint::Unclear => {}
                }
                if here == CONFIRMED {
                    break;
                }
            }
            agreed += here;
        }
        let needed = if has_variables { 2 } else { 1 };
        if agreed >= needed {
            return Ok(true);
        }
        // What is defined nowhere is not equal to anything; the rest is not known.
        if undefined == asked && !self.is_large(left)? && !self.is_large(right)? {
            return Ok(false);
        }
        Err(Unsure)
    }

    /// Whether an expression has no value for being too large, not for being undefined: it has powers, factorials or
    /// exponentials, or more digits than a float has room for.
    fn is_large(&self, at: At<'_>) -> Result<bool, Unsure> {
        self.budget.spend(at.tree.nodes.len() as u64)?;
        Ok(at.tree.nodes.iter().any(|node| {
            matches!(
                node,
                Node::Power(..)
                    | Node::Call(
                        super::ast::Function::Factorial
                            | super::ast::Function::DoubleFactorial
                            | super::ast::Function::Binomial
                            | super::ast::Function::Exp,
                        _
                    )
            )
        }))
    }

    fn at_point<R: Real>(
        &self,
        left: At<'_>,
        right: At<'_>,
        points: Points,
        index: u64,
        cost: u64,
        rule: &impl Fn(&Ball<R>, &Ball<R>) -> Option<(Ball<R>, Ball<R>)>,
    ) -> Result<AtPoint, Unsure> {
        let a = self.place(left, points, index, cost).value::<R>(left.id)?;
        let b = self
            .place(right, points, index, cost)
            .value::<R>(right.id)?;
        let (Some(a), Some(b)) = (a, b) else {
            return Ok(AtPoint::Undefined);
        };
        let Some((a, b)) = rule(&a, &b) else {
            return Ok(AtPoint::Undefined);
        };
        if points == Points::Any && !a.is_real() && !b.is_real() {
            return Ok(AtPoint::Undefined);
        }
        let Some(difference) = a.sub(&b) else {
            return Ok(AtPoint::Unclear);
        };
        if !difference.may_be_zero() {
            return Ok(AtPoint::Differ);
        }
        let size = a.size().max(b.size());
        let is_close = difference.error <= size.max(-60.0) + AGREEMENT
            || difference.error == f64::NEG_INFINITY;
        Ok(if is_close {
            AtPoint::Agree
        } else {
            AtPoint::Unclear
        })
    }
}

/// Compares exact forms; none where they do not decide.
fn by_forms(left: At<'_>, right: At<'_>, budget: &Budget) -> Option<bool> {
    let mut canon = Canon::new(budget);
    let forms = canon
        .form(left.tree, left.id, left.sign)
        .and_then(|a| Ok((a, canon.form(right.tree, right.id, right.sign)?)));
    let (a, b) = match forms {
        Ok(forms) => forms,
        Err(NoForm::Undefined) => return Some(false),
        Err(NoForm::Other) => return Some(identical(left, right)),
        Err(NoForm::TooLarge) => return None,
    };
    if a == b {
        return Some(true);
    }
    if let (Some(a), Some(b)) = (a.as_number(), b.as_number()) {
        return Some(a == b);
    }
    match canon.is_difference_zero(&a, &b) {
        Some(true) => Some(true),
        Some(false) if canon.is_decisive() => Some(false),
        _ => None,
    }
}
