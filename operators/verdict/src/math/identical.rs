//! Whether two trees are the same, node for node.

use super::ast::{Node, each_child};
use super::compare::At;

/// Whether two parts of answers are written with the same nodes.
pub(crate) fn identical(left: At<'_>, right: At<'_>) -> bool {
    let is_same_kind = match (left.node(), right.node()) {
        (Node::Num(a), Node::Num(b)) => a == b,
        (Node::Const(a), Node::Const(b)) => a == b,
        (Node::Sym(a), Node::Sym(b))
        | (Node::Text(a), Node::Text(b))
        | (Node::Letters(_, a), Node::Letters(_, b))
        | (Node::Apply(a, _), Node::Apply(b, _)) => a == b,
        (Node::Call(a, _), Node::Call(b, _)) => a == b,
        (Node::PlusMinus(a, _), Node::PlusMinus(b, _)) => a == b && left.sign == right.sign,
        (Node::Based(a, base), Node::Based(b, other)) => a == b && base == other,
        (Node::Quantity(_, a, kind), Node::Quantity(_, b, other)) => a == b && kind == other,
        (Node::List(_, a), Node::List(_, b)) => a == b,
        (Node::Tuple(a, b, _), Node::Tuple(c, d, _)) => a == c && b == d,
        (Node::Matrix(a, _), Node::Matrix(b, _)) => a == b,
        (Node::Chain(_, a), Node::Chain(_, b)) => a == b,
        (Node::Ratio(_, a), Node::Ratio(_, b)) => a == b,
        (Node::NumberSet(a), Node::NumberSet(b)) => a == b,
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    if !is_same_kind {
        return false;
    }
    let (mut children, mut others) = (Vec::new(), Vec::new());
    each_child(left.node(), |child| children.push(child));
    each_child(right.node(), |child| others.push(child));
    children.len() == others.len()
        && children
            .iter()
            .zip(&others)
            .all(|(a, b)| identical(left.with(*a), right.with(*b)))
}
