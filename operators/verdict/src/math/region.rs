//! Sets of real numbers: intervals, unions, inequalities, points left out. They are kept as the points where
//! membership changes, so that equal sets have equal forms however they are written.

use super::ast::{Bracket, Constant, Function, Id, Join, Node, Relation, Symbol};
use super::compare::{At, Comparer, Unsure};

/// Where membership changes.
#[derive(Clone, Copy)]
pub(crate) struct Edge<'a> {
    at: At<'a>,
    /// The point on the other side of zero.
    negated: bool,
    /// About where it is.
    near: f64,
}

/// A set of real numbers.
#[derive(Clone)]
pub(crate) struct Region<'a> {
    /// Rising.
    edges: Vec<Edge<'a>>,
    /// For each edge, whether the point belongs to it.
    points: Vec<bool>,
    /// For each gap between edges, and those at the ends, whether it belongs.
    gaps: Vec<bool>,
    /// The variable that it speaks of.
    pub(crate) name: Option<Symbol>,
}

/// Most edges of a region.
const MAX_EDGES: usize = 40;

type Shaped<'a> = Result<Option<Region<'a>>, Unsure>;

impl<'a> Region<'a> {
    fn all(belongs: bool) -> Self {
        Self {
            edges: Vec::new(),
            points: Vec::new(),
            gaps: vec![belongs],
            name: None,
        }
    }

    fn one(edge: Edge<'a>, left: bool, point: bool, right: bool) -> Self {
        Self {
            edges: vec![edge],
            points: vec![point],
            gaps: vec![left, right],
            name: None,
        }
    }

    /// Both with the same edges, those that change nothing included.
    fn aligned(
        left: &Self,
        right: &Self,
        comparer: &Comparer<'_>,
    ) -> Result<Option<(Self, Self)>, Unsure> {
        let mut a = Self::all(left.gaps[0]);
        let mut b = Self::all(right.gaps[0]);
        let (mut i, mut j) = (0, 0);
        while i < left.edges.len() || j < right.edges.len() {
            let order = match (left.edges.get(i), right.edges.get(j)) {
                (Some(x), Some(y)) => match order(*x, *y, comparer)? {
                    Some(order) => order,
                    None => return Ok(None),
                },
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            let edge = if order.is_gt() {
                right.edges[j]
            } else {
                left.edges[i]
            };
            let step = |from: &Self, at: &mut usize, to: &mut Self, is_here: bool| {
                to.edges.push(edge);
                if is_here {
                    to.points.push(from.points[*at]);
                    to.gaps.push(from.gaps[*at + 1]);
                    *at += 1;
                } else {
                    to.points.push(from.gaps[*at]);
                    to.gaps.push(from.gaps[*at]);
                }
            };
            step(left, &mut i, &mut a, order.is_le());
            step(right, &mut j, &mut b, order.is_ge());
            if a.edges.len() > MAX_EDGES {
                return Ok(None);
            }
        }
        Ok(Some((a, b)))
    }

    fn combine(
        left: &Self,
        right: &Self,
        comparer: &Comparer<'_>,
        rule: impl Fn(bool, bool) -> bool,
    ) -> Result<Option<Self>, Unsure> {
        let name = match (left.name, right.name) {
            (Some(a), Some(b)) if a != b => return Ok(None),
            (a, b) => a.or(b),
        };
        let Some((mut a, b)) = Self::aligned(left, right, comparer)? else {
            return Ok(None);
        };
        for (own, other) in a.points.iter_mut().zip(&b.points) {
            *own = rule(*own, *other);
        }
        for (own, other) in a.gaps.iter_mut().zip(&b.gaps) {
            *own = rule(*own, *other);
        }
        a.name = name;
        Ok(Some(a))
    }

    pub(crate) fn is_same(
        left: &Self,
        right: &Self,
        comparer: &Comparer<'_>,
    ) -> Result<bool, Unsure> {
        if let (Some(a), Some(b)) = (left.name, right.name)
            && a != b
        {
            return Ok(false);
        }
        Ok(Self::aligned(left, right, comparer)?
            .is_some_and(|(a, b)| a.points == b.points && a.gaps == b.gaps))
    }
}

/// Which of two edges is further right; none where that cannot be told.
fn order(
    x: Edge<'_>,
    y: Edge<'_>,
    comparer: &Comparer<'_>,
) -> Result<Option<std::cmp::Ordering>, Unsure> {
    let scale = x.near.abs().max(y.near.abs()).max(1e-3);
    if (x.near - y.near).abs() > 1e-9 * scale {
        return Ok(x.near.partial_cmp(&y.near));
    }
    let is_same = if x.negated == y.negated {
        comparer.same_value(x.at, y.at)?
    } else {
        comparer.is_opposite(x.at, y.at)?
    };
    Ok(is_same.then_some(std::cmp::Ordering::Equal))
}

/// An end of an interval: infinite with a sign, or a point.
enum End<'a> {
    Infinite(bool),
    Point(Edge<'a>),
}

fn end<'a>(at: At<'a>, comparer: &Comparer<'_>) -> Option<End<'a>> {
    match at.node() {
        Node::Const(Constant::Infinity) => return Some(End::Infinite(false)),
        Node::Negative(inner)
            if matches!(at.tree.node(*inner), Node::Const(Constant::Infinity)) =>
        {
            return Some(End::Infinite(true));
        }
        _ => {}
    }
    let near = comparer.near(at)?;
    Some(End::Point(Edge {
        at,
        negated: false,
        near,
    }))
}

fn interval<'a>(low: (At<'a>, bool), high: (At<'a>, bool), comparer: &Comparer<'_>) -> Shaped<'a> {
    let (Some(left), Some(right)) = (end(low.0, comparer), end(high.0, comparer)) else {
        return Ok(None);
    };
    let left = match left {
        End::Infinite(true) => Region::all(true),
        End::Infinite(false) => return Ok(None),
        End::Point(edge) => Region::one(edge, false, low.1, true),
    };
    let right = match right {
        End::Infinite(false) => Region::all(true),
        End::Infinite(true) => return Ok(None),
        End::Point(edge) => Region::one(edge, true, high.1, false),
    };
    Region::combine(&left, &right, comparer, |a, b| a && b)
}

/// Whether a node is written as a set of numbers, and as nothing else.
pub(crate) fn is_region(at: At<'_>) -> bool {
    match at.node() {
        Node::Union(_) | Node::Intersection(_) | Node::Without(..) | Node::NumberSet('R') => true,
        Node::Tuple(left, right, items) => {
            items.len() == 2 && (left != right || items.iter().any(|id| is_infinite(at.with(*id))))
        }
        Node::Chain(_, relations) => relations
            .iter()
            .all(|relation| relation.is_order() || *relation == Relation::NotEqual),
        Node::List(items, _) => items
            .iter()
            .all(|id| matches!(at.tree.node(*id), Node::Chain(..)) && is_region(at.with(*id))),
        Node::Member(..) => true,
        _ => false,
    }
}

fn is_infinite(at: At<'_>) -> bool {
    match at.node() {
        Node::Const(Constant::Infinity) => true,
        Node::Negative(inner) => matches!(at.tree.node(*inner), Node::Const(Constant::Infinity)),
        _ => false,
    }
}

/// The set of numbers that a node says; none where it says something else.
pub(crate) fn region<'a>(at: At<'a>, comparer: &Comparer<'_>) -> Shaped<'a> {
    comparer.budget.spend(50)?;
    match at.node() {
        Node::NumberSet('R') => Ok(Some(Region::all(true))),
        Node::Tuple(left, right, items) if items.len() == 2 => {
            if *left == Bracket::Angle {
                return Ok(None);
            }
            interval(
                (at.with(items[0]), *left == Bracket::Square),
                (at.with(items[1]), *right == Bracket::Square),
                comparer,
            )
        }
        Node::Set(items) => {
            let mut set = Region::all(false);
            for id in items {
                let Some(End::Point(edge)) = end(at.with(*id), comparer) else {
                    return Ok(None);
                };
                let point = Region::one(edge, false, true, false);
                match Region::combine(&set, &point, comparer, |a, b| a || b)? {
                    Some(next) => set = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(set))
        }
        Node::Union(all) => fold(at, all, comparer, |a, b| a || b),
        Node::Intersection(all) => fold(at, all, comparer, |a, b| a && b),
        Node::List(all, join) => match join {
            Join::Or => fold(at, all, comparer, |a, b| a || b),
            Join::And => fold(at, all, comparer, |a, b| a && b),
            Join::Comma => Ok(None),
        },
        Node::Without(left, right) => {
            let (Some(left), Some(right)) = (
                region(at.with(*left), comparer)?,
                region(at.with(*right), comparer)?,
            ) else {
                return Ok(None);
            };
            Region::combine(&left, &right, comparer, |a, b| a && !b)
        }
        Node::Member(name, set) => {
            let set = region(at.with(*set), comparer)?;
            Ok(set.map(|mut set| {
                set.name = name_of(at, *name);
                set
            }))
        }
        Node::Chain(sides, relations) => chain(at, sides, relations, comparer),
        _ => Ok(None),
    }
}

fn fold<'a>(
    at: At<'a>,
    all: &[Id],
    comparer: &Comparer<'_>,
    rule: impl Fn(bool, bool) -> bool + Copy,
) -> Shaped<'a> {
    let mut whole: Option<Region<'a>> = None;
    for id in all {
        let Some(next) = region(at.with(*id), comparer)? else {
            return Ok(None);
        };
        whole = match whole {
            None => Some(next),
            Some(before) => match Region::combine(&before, &next, comparer, rule)? {
                Some(both) => Some(both),
                None => return Ok(None),
            },
        };
    }
    Ok(whole)
}

fn name_of(at: At<'_>, id: Id) -> Option<Symbol> {
    match at.tree.node(id) {
        Node::Sym(symbol) | Node::Apply(symbol, _) => Some(*symbol),
        _ => None,
    }
}

/// Inequalities side by side: all of them hold.
fn chain<'a>(
    at: At<'a>,
    sides: &[Id],
    relations: &[Relation],
    comparer: &Comparer<'_>,
) -> Shaped<'a> {
    let mut whole: Option<Region<'a>> = None;
    for (index, relation) in relations.iter().enumerate() {
        let Some(next) = inequality(at, sides[index], *relation, sides[index + 1], comparer)?
        else {
            return Ok(None);
        };
        whole = match whole {
            None => Some(next),
            Some(before) => match Region::combine(&before, &next, comparer, |a, b| a && b)? {
                Some(both) => Some(both),
                None => return Ok(None),
            },
        };
    }
    Ok(whole)
}

/// One inequality between a variable, or its absolute value, and a number.
fn inequality<'a>(
    at: At<'a>,
    left: Id,
    relation: Relation,
    right: Id,
    comparer: &Comparer<'_>,
) -> Shaped<'a> {
    let is_variable = |id: Id| {
        let node = match at.tree.node(id) {
            Node::Call(Function::Abs, inner) => at.tree.node(inner[0]),
            Node::Negative(inner) => at.tree.node(*inner),
            node => node,
        };
        matches!(node, Node::Sym(_) | Node::Apply(..))
    };
    let (variable, relation, bound) = if is_variable(left) {
        (left, relation, right)
    } else if is_variable(right) {
        (right, relation.flipped(), left)
    } else {
        return Ok(None);
    };
    if is_infinite(at.with(bound)) {
        // `x < oo` says nothing, `x > oo` nothing that is true.
        let is_low = matches!(at.tree.node(bound), Node::Negative(_));
        let holds = is_low == matches!(relation, Relation::Greater | Relation::GreaterEqual);
        let mut all = Region::all(true);
        all.name = name_of(at, variable);
        return Ok((holds && relation.is_order()).then_some(all));
    }
    let Some(near) = comparer.near(at.with(bound)) else {
        return Ok(None);
    };
    let edge = |negated| Edge {
        at: at.with(bound),
        negated,
        near: if negated { -near } else { near },
    };
    let half = |edge, relation| match relation {
        Relation::Less => Some(Region::one(edge, true, false, false)),
        Relation::LessEqual => Some(Region::one(edge, true, true, false)),
        Relation::Greater => Some(Region::one(edge, false, false, true)),
        Relation::GreaterEqual => Some(Region::one(edge, false, true, true)),
        Relation::NotEqual => Some(Region::one(edge, true, false, true)),
        _ => None,
    };
    let (name, region) = match at.tree.node(variable) {
        Node::Call(_, inner) => {
            let (Some(low), Some(high)) = (
                half(edge(true), relation.flipped()),
                half(edge(false), relation),
            ) else {
                return Ok(None);
            };
            if near <= 0.0 || relation == Relation::NotEqual {
                return Ok(None);
            }
            let is_inside = matches!(relation, Relation::Less | Relation::LessEqual);
            let both = Region::combine(&low, &high, comparer, |a, b| {
                if is_inside { a && b } else { a || b }
            })?;
            (name_of(at, inner[0]), both)
        }
        Node::Negative(inner) => (name_of(at, *inner), half(edge(true), relation.flipped())),
        _ => (name_of(at, variable), half(edge(false), relation)),
    };
    Ok(region.map(|mut region| {
        region.name = name;
        region
    }))
}
