//! Whether two answers of any shape say the same: lists, sets, tuples, intervals, matrices, equations, quantities.

use super::ast::{Bracket, Id, Node, Relation, Symbol, Tree};
use super::canon::Canon;
use super::compare::{At, Comparer, Unsure};
use super::matrix;
use super::poly::Poly;
use super::rat::Rat;
use super::region::{Region, is_region, region};

/// Most items of a list.
const MAX_ITEMS: usize = 200;

/// What is said, and of what.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: Option<At<'a>>,
    value: At<'a>,
}

impl Comparer<'_> {
    /// Whether two answers say the same.
    pub(crate) fn same(&self, left: At<'_>, right: At<'_>) -> Result<bool, Unsure> {
        self.budget.spend(20)?;
        if let (Node::Num(a), Node::Num(b)) = (left.node(), right.node()) {
            return Ok(a == b);
        }
        if (is_region(left) || is_region(right))
            && let Some(same) = self.regions(left, right)?
        {
            return Ok(same);
        }
        if let (Node::Chain(..), Node::Chain(..)) = (left.node(), right.node())
            && self.equations(left, right)?
        {
            return Ok(true);
        }
        let (a, b) = (self.named(left)?, self.named(right)?);
        if let (Some(a), Some(b)) = (a.name, b.name)
            && !same_name(a, b)
        {
            return Ok(false);
        }
        if a.name.is_some() || b.name.is_some() {
            // `f(x) = 3` says 3, but `3 = 3` is no better than `3`.
            return self.same(a.value, b.value);
        }
        self.values(a.value, b.value)
    }

    /// Compares what is no statement about a name.
    fn values(&self, left: At<'_>, right: At<'_>) -> Result<bool, Unsure> {
        if (matrix::is_computed(left) || matrix::is_computed(right))
            && let Some(same) = matrix::same(left, right, self.budget)
        {
            return Ok(same);
        }
        let (many, others) = (self.alternatives(left)?, self.alternatives(right)?);
        if many.is_some() || others.is_some() {
            return self.lists((left, many), (right, others));
        }
        match (left.node(), right.node()) {
            (Node::Tuple(a, b, items), Node::Tuple(c, d, others)) => {
                let brackets = |x: Bracket, y: Bracket| {
                    x == y || (items.len() > 2 || (x != Bracket::Square && y != Bracket::Square))
                };
                Ok(brackets(*a, *c)
                    && brackets(*b, *d)
                    && self.in_order((left, items), (right, others))?)
            }
            (Node::Matrix(columns, cells), Node::Matrix(others, other_cells)) => {
                Ok(columns == others && self.in_order((left, cells), (right, other_cells))?)
            }
            (Node::Matrix(columns, cells), Node::Tuple(_, _, items))
            | (Node::Tuple(_, _, items), Node::Matrix(columns, cells)) => {
                let (matrix, tuple) = if matches!(left.node(), Node::Matrix(..)) {
                    (left, right)
                } else {
                    (right, left)
                };
                // A column of numbers is a vector however it is written.
                Ok(*columns == 1 && self.in_order((matrix, cells), (tuple, items))?)
            }
            (Node::Ratio(parts, is_time), Node::Ratio(others, is_other_time)) => {
                self.ratios((left, parts, *is_time), (right, others, *is_other_time))
            }
            (Node::Quantity(a, factor, kind), Node::Quantity(b, other, other_kind)) => {
                if kind != other_kind {
                    return Ok(false);
                }
                self.scaled((left.with(*a), factor), (right.with(*b), other))
            }
            // A unit may be left out.
            (Node::Quantity(a, ..), _) => self.same(left.with(*a), right),
            (_, Node::Quantity(b, ..)) => self.same(left, right.with(*b)),
            (Node::Text(a), Node::Text(b)) => Ok(a == b),
            (Node::Letters(_, a), Node::Letters(_, b)) => Ok(a == b),
            (Node::Based(a, base), Node::Based(b, other)) => Ok(a == b && base == other),
            (Node::NumberSet(a), Node::NumberSet(b)) => Ok(a == b),
            (Node::Chain(sides, relations), Node::Chain(others, other_relations)) => Ok(relations
                == other_relations
                && self.in_order((left, sides), (right, others))?),
            (Node::Union(a), Node::Union(b)) | (Node::Intersection(a), Node::Intersection(b)) => {
                self.unordered(&all_at(left, a), &all_at(right, b))
            }
            (Node::Without(a, b), Node::Without(c, d))
            | (Node::Member(a, b), Node::Member(c, d)) => Ok(self
                .same(left.with(*a), right.with(*c))?
                && self.same(left.with(*b), right.with(*d))?),
            (Node::Const(a), Node::Const(b)) => Ok(a == b),
            _ => self.same_value(left, right),
        }
    }

    fn scaled(&self, left: (At<'_>, &Rat), right: (At<'_>, &Rat)) -> Result<bool, Unsure> {
        if left.1 == right.1 {
            return self.same(left.0, right.0);
        }
        let mut canon = Canon::new(self.budget);
        let number = |canon: &mut Canon<'_>, at: At<'_>| {
            canon
                .form(at.tree, at.id, at.sign)
                .ok()
                .and_then(|form| form.as_number())
        };
        // Only numbers are converted.
        let (Some(a), Some(b)) = (number(&mut canon, left.0), number(&mut canon, right.0)) else {
            return Ok(false);
        };
        Ok(a.mul(left.1) == b.mul(right.1))
    }

    fn in_order(&self, left: (At<'_>, &[Id]), right: (At<'_>, &[Id])) -> Result<bool, Unsure> {
        if left.1.len() != right.1.len() {
            return Ok(false);
        }
        for (a, b) in left.1.iter().zip(right.1) {
            if !self.same(left.0.with(*a), right.0.with(*b))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn ratios(
        &self,
        left: (At<'_>, &[Id], bool),
        right: (At<'_>, &[Id], bool),
    ) -> Result<bool, Unsure> {
        if self.in_order((left.0, left.1), (right.0, right.1))? {
            return Ok(true);
        }
        if left.1.len() != right.1.len() || (left.2 && right.2) {
            return Ok(false);
        }
        let numbers = |(at, parts, _): (At<'_>, &[Id], bool)| -> Option<Vec<Rat>> {
            let mut canon = Canon::new(self.budget);
            parts
                .iter()
                .map(|id| canon.form(at.tree, *id, at.sign).ok()?.as_number())
                .collect()
        };
        let (Some(a), Some(b)) = (numbers(left), numbers(right)) else {
            return Ok(false);
        };
        let is_proportional = a.iter().zip(&b).all(|(x, y)| x.mul(&b[0]) == y.mul(&a[0]));
        Ok(is_proportional && !a[0].is_zero() && !b[0].is_zero())
    }

    /// The answers that a list, a set, or an expression with plus-minus signs stands for; none for a single one.
    fn alternatives<'a>(&self, at: At<'a>) -> Result<Option<Vec<At<'a>>>, Unsure> {
        let mut all = Vec::new();
        self.collect(at, &mut all, 0)?;
        Ok(match (at.node(), &all[..]) {
            (Node::Set(_) | Node::List(..), _) => Some(all),
            (_, [_]) => None,
            _ => Some(all),
        })
    }

    fn collect<'a>(&self, at: At<'a>, all: &mut Vec<At<'a>>, depth: u32) -> Result<(), Unsure> {
        self.budget.spend(5)?;
        if all.len() >= MAX_ITEMS {
            return Err(Unsure);
        }
        match at.node() {
            Node::List(items, _) => {
                for id in items {
                    self.collect(at.with(*id), all, depth + 1)?;
                }
            }
            Node::Set(items) if depth == 0 => {
                for id in items {
                    self.collect(at.with(*id), all, depth + 1)?;
                }
            }
            _ if at.sign == 0 && has_plus_minus(at.tree, at.id) => {
                all.push(At { sign: 1, ..at });
                all.push(At { sign: -1, ..at });
            }
            _ => all.push(at),
        }
        Ok(())
    }

    /// Compares lists, one of which may be a tuple or a single answer.
    fn lists(
        &self,
        left: (At<'_>, Option<Vec<At<'_>>>),
        right: (At<'_>, Option<Vec<At<'_>>>),
    ) -> Result<bool, Unsure> {
        let is_set =
            matches!(left.0.node(), Node::Set(_)) || matches!(right.0.node(), Node::Set(_));
        match (left.1, right.1) {
            (Some(a), Some(b)) => {
                let (names, others) = (self.names(&a)?, self.names(&b)?);
                // `x = 1, y = 2` against `1, 2`: the order says which is which.
                if (names > 1) != (others > 1) {
                    return self.each_in_turn(&a, &b);
                }
                if is_set {
                    return Ok(self.contains(&a, &b)? && self.contains(&b, &a)?);
                }
                self.unordered(&a, &b)
            }
            (Some(many), None) => self.list_and_one(left.0, &many, right.0),
            (None, Some(many)) => self.list_and_one(right.0, &many, left.0),
            (None, None) => self.values(left.0, right.0),
        }
    }

    fn list_and_one(&self, list: At<'_>, many: &[At<'_>], one: At<'_>) -> Result<bool, Unsure> {
        if let (Node::List(..), Node::Tuple(_, _, items)) = (list.node(), one.node()) {
            return self.each_in_turn(many, &all_at(one, items));
        }
        if let (Node::Set(_), [single]) = (list.node(), many) {
            return self.same(*single, one);
        }
        Ok(false)
    }

    /// How many different names a list speaks of.
    fn names(&self, all: &[At<'_>]) -> Result<usize, Unsure> {
        let mut names: Vec<At<'_>> = Vec::new();
        for at in all {
            if let Some(name) = self.named(*at)?.name
                && !names.iter().any(|known| same_name(*known, name))
            {
                names.push(name);
            }
        }
        Ok(names.len())
    }

    fn each_in_turn(&self, left: &[At<'_>], right: &[At<'_>]) -> Result<bool, Unsure> {
        if left.len() != right.len() {
            return Ok(false);
        }
        for (a, b) in left.iter().zip(right) {
            if !self.same(*a, *b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn contains(&self, all: &[At<'_>], parts: &[At<'_>]) -> Result<bool, Unsure> {
        for part in parts {
            let mut is_there = false;
            for at in all {
                if self.same(*at, *part)? {
                    is_there = true;
                    break;
                }
            }
            if !is_there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same items in any order, each as often.
    fn unordered(&self, left: &[At<'_>], right: &[At<'_>]) -> Result<bool, Unsure> {
        if left.len() != right.len() {
            return Ok(false);
        }
        let mut is_taken = vec![false; right.len()];
        for (index, a) in left.iter().enumerate() {
            // The one in the same place is the likely one.
            let places = std::iter::once(index).chain(0..right.len());
            let mut found = None;
            for place in places {
                if !is_taken[place] && self.same(*a, right[place])? {
                    found = Some(place);
                    break;
                }
            }
            match found {
                Some(place) => is_taken[place] = true,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// An answer without its name.
    pub(crate) fn said<'a>(&self, at: At<'a>) -> Result<At<'a>, Unsure> {
        Ok(self.named(at)?.value)
    }

    /// Takes `x =` or `x \in` off an answer, and the steps of a chain of equations that leads to a number.
    fn named<'a>(&self, at: At<'a>) -> Result<Named<'a>, Unsure> {
        let plain = Named {
            name: None,
            value: at,
        };
        let (sides, relations) = match at.node() {
            Node::Member(name, set) if is_name(at.tree, *name) => {
                return Ok(Named {
                    name: Some(at.with(*name)),
                    value: at.with(*set),
                });
            }
            Node::Chain(sides, relations) => (sides, relations),
            _ => return Ok(plain),
        };
        if !relations
            .iter()
            .all(|relation| *relation == Relation::Equal)
        {
            return Ok(plain);
        }
        let (first, last) = (sides[0], sides[sides.len() - 1]);
        let is_first = is_name(at.tree, first);
        if sides.len() == 2 {
            let is_last = is_name(at.tree, last);
            if is_first && !mentions(at.tree, last, first) {
                return Ok(Named {
                    name: Some(at.with(first)),
                    value: at.with(last),
                });
            }
            if is_last && !mentions(at.tree, first, last) {
                return Ok(Named {
                    name: Some(at.with(last)),
                    value: at.with(first),
                });
            }
        }
        // Steps must agree with each other: who hedges with a wrong equation gets nothing.
        let steps = &sides[usize::from(is_first)..];
        let is_number = |id: Id| self.near(at.with(id)).is_some();
        if !steps.iter().all(|id| is_number(*id)) {
            return Ok(plain);
        }
        for step in &steps[1..] {
            if !self.same_value(at.with(steps[0]), at.with(*step))? {
                return Ok(plain);
            }
        }
        Ok(Named {
            name: is_first.then(|| at.with(first)),
            value: at.with(last),
        })
    }

    /// Compares sets of real numbers; none where one of them is none.
    fn regions(&self, left: At<'_>, right: At<'_>) -> Result<Option<bool>, Unsure> {
        let strip = |at| -> Result<At<'_>, Unsure> {
            match at {
                At { tree, id, .. } if matches!(tree.node(id), Node::Chain(_, relations) if relations.contains(&Relation::Equal)) => {
                    Ok(self.named(at)?.value)
                }
                _ => Ok(at),
            }
        };
        let (Some(a), Some(b)) = (region(strip(left)?, self)?, region(strip(right)?, self)?) else {
            return Ok(None);
        };
        Region::is_same(&a, &b, self).map(Some)
    }

    /// Whether two equations or inequalities are the same up to a factor that is no zero (positive for inequalities).
    fn equations(&self, left: At<'_>, right: At<'_>) -> Result<bool, Unsure> {
        let (Some((a, relation, b)), Some((c, other, d))) = (sides(left), sides(right)) else {
            return Ok(false);
        };
        let flipped = relation.flipped();
        let is_order = relation.is_order();
        if relation != other && flipped != other {
            return Ok(false);
        }
        if self.in_order((left, &[a, b]), (right, &[c, d]))? && relation == other {
            return Ok(true);
        }
        let mut canon = Canon::new(self.budget);
        let mut side = |at: At<'_>, above: Id, below: Id| {
            let left = canon.form(at.tree, above, at.sign).ok()?;
            let right = canon.form(at.tree, below, at.sign).ok()?;
            left.add(right.neg(), self.budget).ok()
        };
        let (Some(first), Some(second)) = (side(left, a, b), side(right, c, d)) else {
            return Ok(false);
        };
        if is_order && (first.below.as_number().is_none() || second.below.as_number().is_none()) {
            return Ok(false);
        }
        let Some(factor) = proportion(&first.above, &second.above) else {
            return Ok(false);
        };
        // A constant equation says nothing.
        if first.above.as_number().is_some() {
            return Ok(false);
        }
        Ok(match is_order {
            false => relation == other,
            true if relation == other => !factor.is_negative(),
            true => factor.is_negative(),
        })
    }
}

/// The factor between two polynomials, where there is one.
fn proportion(a: &Poly, b: &Poly) -> Option<Rat> {
    if a.terms.len() != b.terms.len() {
        return None;
    }
    let factor = b.terms.first()?.1.div(&a.terms.first()?.1)?;
    a.terms
        .iter()
        .zip(&b.terms)
        .all(|(x, y)| x.0 == y.0 && x.1.mul(&factor) == y.1)
        .then_some(factor)
}

/// The sides of a chain with one relation.
fn sides(at: At<'_>) -> Option<(Id, Relation, Id)> {
    match at.node() {
        Node::Chain(sides, relations) => match (&sides[..], &relations[..]) {
            (&[a, b], &[relation]) => Some((a, relation, b)),
            _ => None,
        },
        _ => None,
    }
}

fn all_at<'a>(at: At<'a>, ids: &[Id]) -> Vec<At<'a>> {
    ids.iter().map(|id| at.with(*id)).collect()
}

/// Whether something is a name that a value may be given to.
fn is_name(tree: &Tree, id: Id) -> bool {
    match tree.node(id) {
        Node::Sym(_) | Node::Letters(..) | Node::Text(_) => true,
        Node::Apply(..) => true,
        Node::Tuple(_, _, items) => items.iter().all(|id| is_name(tree, *id)),
        // `P(A)`, `|AB|`
        Node::Product(all) => {
            matches!(all[..], [p, a] if matches!(tree.node(p), Node::Sym(p) if char::from_u32(*p as u32).is_some_and(char::is_uppercase)) && matches!(tree.node(a), Node::Sym(_)))
        }
        Node::Call(super::ast::Function::Abs, inner) => {
            matches!(tree.node(inner[0]), Node::Letters(..))
        }
        _ => false,
    }
}

/// Whether an expression has the variables of a name in it.
fn mentions(tree: &Tree, id: Id, name: Id) -> bool {
    let Some(symbol) = symbol_of(tree, name) else {
        return false;
    };
    symbol_of(tree, id) == Some(symbol) || {
        let mut found = false;
        super::ast::each_child(tree.node(id), |child| {
            found |= mentions(tree, child, name);
        });
        found
    }
}

fn symbol_of(tree: &Tree, id: Id) -> Option<Symbol> {
    match tree.node(id) {
        Node::Sym(symbol) | Node::Letters(_, symbol) | Node::Text(symbol) => Some(*symbol),
        Node::Apply(symbol, _) => Some(*symbol),
        _ => None,
    }
}

/// Whether two names are the same. `y` may stand for a function of `x`.
fn same_name(a: At<'_>, b: At<'_>) -> bool {
    match (a.node(), b.node()) {
        (Node::Tuple(_, _, items), Node::Tuple(_, _, others)) => {
            items.len() == others.len()
                && items
                    .iter()
                    .zip(others)
                    .all(|(x, y)| same_name(a.with(*x), b.with(*y)))
        }
        (Node::Product(items), Node::Product(others)) => items
            .iter()
            .zip(others)
            .all(|(x, y)| same_name(a.with(*x), b.with(*y))),
        (Node::Apply(f, arguments), Node::Apply(g, others)) => {
            f == g
                && arguments.len() == others.len()
                && arguments
                    .iter()
                    .zip(others)
                    .all(|(x, y)| same_name(a.with(*x), b.with(*y)))
        }
        (Node::Apply(_, arguments), Node::Sym(name))
        | (Node::Sym(name), Node::Apply(_, arguments)) => {
            *name == Symbol::from(u32::from('y')) && arguments.len() == 1
        }
        (Node::Call(_, x), Node::Call(_, y)) => same_name(a.with(x[0]), b.with(y[0])),
        (Node::Num(x), Node::Num(y)) => x == y,
        _ => {
            let symbols = (symbol_of(a.tree, a.id), symbol_of(b.tree, b.id));
            matches!(symbols, (Some(x), Some(y)) if x == y)
        }
    }
}

fn has_plus_minus(tree: &Tree, id: Id) -> bool {
    match tree.node(id) {
        Node::PlusMinus(..) => true,
        node => {
            let mut found = false;
            super::ast::each_child(node, |child| found = found || has_plus_minus(tree, child));
            found
        }
    }
}
