//! Equality of two mathematical answers.
//!
//! An answer is read into a tree (`lex`, `parse`). Numbers are compared exactly. Expressions are brought into an exact
//! form, a quotient of polynomials over the rationals in variables, constants, roots and functions (`canon`); where all
//! of those are independent of each other the forms decide. Otherwise the values at up to sixteen points decide, first
//! in machine floats with a running bound on the error (`eval`, `ball`), then in 256 bits (`big`). Two answers whose
//! values differ by more than the bound are unequal for certain. They are taken as equal where all values agree, and
//! those of at least two points, or the one value of a constant, to within 2^-150 of their size. What is no mathematics is compared
//! as text. All work draws on one budget.

mod ast;
mod ball;
mod big;
mod budget;
mod canon;
mod compare;
mod eval;
mod fast;
mod fraction;
mod identical;
mod lex;
mod matrix;
mod names;
mod parse;
mod poly;
mod print;
mod rat;
mod real;
mod region;
mod shapes;
mod unit;

use ast::{Node, Tree};
use budget::Budget;
use compare::{At, Comparer, Method};
use num_rational::BigRational;
use parse::Fault;
use rat::Rat;

use crate::outcome::{GoldError, Outcome};
use crate::text;

pub(crate) use lex::MAX_DIGITS;

/// An answer that has been read.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    source: String,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Number(Rat),
    Tree(Box<Tree>),
    /// Words, spelled for comparison.
    Words(String),
}

/// A judgement and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) outcome: Outcome,
    pub(crate) reason: &'static str,
}

const fn decided(outcome: Outcome, reason: &'static str) -> Decision {
    Decision { outcome, reason }
}

/// Reads a gold answer.
pub(crate) fn read_gold(gold: &str) -> Result<Read, GoldError> {
    if let Some(value) = fast::number(gold) {
        return Ok(Read {
            source: gold.to_owned(),
            form: Form::Number(value),
        });
    }
    if !is_balanced(gold) {
        return Err(GoldError::Unbalanced);
    }
    let source = text::undressed(gold);
    let read = read(source, &Budget::new()).map_err(|_| GoldError::TooLarge)?;
    match &read.form {
        Form::Words(words) if words.is_empty() => Err(GoldError::Empty),
        Form::Tree(tree) if divides_by_zero(tree) => Err(GoldError::ZeroDenominator),
        _ => Ok(read),
    }
}

/// Reads an answer; an error where it is beyond the limits.
fn read(source: &str, budget: &Budget) -> Result<Read, Fault> {
    let form = match fast::number(source) {
        Some(value) => Form::Number(value),
        None => match parse::parse(source, budget) {
            Ok(tree) => match tree.node(tree.root) {
                Node::Num(value) => Form::Number(value.clone()),
                _ => Form::Tree(Box::new(tree)),
            },
            Err(Fault::Unknown) => Form::Words(text::comparable(source)),
            Err(Fault::TooLarge) => return Err(Fault::TooLarge),
        },
    };
    Ok(Read {
        source: source.to_owned(),
        form,
    })
}

fn divides_by_zero(tree: &Tree) -> bool {
    tree.nodes.iter().any(|node| {
        matches!(node, Node::Quotient(_, below) if eval::rational(tree, *below).is_some_and(|value| value.is_zero()))
    })
}

/// Compares an answer with a gold answer.
pub(crate) fn compare(gold: &Read, answer: &str) -> Decision {
    if let Form::Number(value) = &gold.form
        && let Some(other) = fast::number(answer)
    {
        return numbers(*value == other);
    }
    let budget = Budget::new();
    let source = text::undressed(answer);
    if source == gold.source && !source.is_empty() {
        return decided(Outcome::Correct, "the same text");
    }
    let form = match fast::number(source) {
        Some(value) => Form::Number(value),
        None => match parse::parse(source, &budget) {
            Ok(tree) => Form::Tree(Box::new(tree)),
            Err(Fault::Unknown) => Form::Words(String::new()),
            Err(Fault::TooLarge) => {
                return decided(Outcome::TimedOut, "the answer is beyond the limits of size");
            }
        },
    };
    forms(gold, &form, source, &budget)
}

fn numbers(is_equal: bool) -> Decision {
    if is_equal {
        decided(Outcome::Correct, "the same number")
    } else {
        decided(Outcome::Wrong, "another number")
    }
}

fn forms(gold: &Read, form: &Form, source: &str, budget: &Budget) -> Decision {
    match (&gold.form, form) {
        (Form::Number(a), Form::Number(b)) => numbers(a == b),
        (Form::Tree(a), Form::Tree(b)) => {
            let decision = trees(a, b, budget);
            if decision.outcome == Outcome::Wrong && is_word(a) && is_word(b) {
                return words(&text::comparable(&gold.source), source);
            }
            decision
        }
        (Form::Number(value), Form::Tree(tree)) => trees(&number_tree(value), tree, budget),
        (Form::Tree(tree), Form::Number(value)) => trees(tree, &number_tree(value), budget),
        (Form::Words(gold), _) => words(gold, source),
        (_, Form::Words(_)) => words(&text::comparable(&gold.source), source),
    }
}

fn words(gold: &str, source: &str) -> Decision {
    if gold == text::comparable(source) {
        decided(Outcome::Correct, "the same words")
    } else {
        decided(Outcome::Wrong, "other words")
    }
}

/// Whether a tree is a name or word: such answers are compared without regard to case.
fn is_word(tree: &Tree) -> bool {
    matches!(
        tree.node(tree.root),
        Node::Sym(_)
            | Node::Letters(..)
            | Node::Text(_)
            | Node::Const(ast::Constant::E | ast::Constant::I)
    )
}

fn number_tree(value: &Rat) -> Tree {
    let mut tree = Tree::default();
    tree.root = tree.push(Node::Num(value.clone())).unwrap_or_default();
    tree
}

fn trees(gold: &Tree, answer: &Tree, budget: &Budget) -> Decision {
    let comparer = Comparer::new(budget);
    match comparer.same(At::root(gold), At::root(answer)) {
        Ok(true) if comparer.method.get() == Method::Values => {
            decided(Outcome::Correct, "equal values at all points")
        }
        Ok(true) => decided(Outcome::Correct, "equal exact forms"),
        Ok(false) if comparer.method.get() == Method::Values => {
            decided(Outcome::Wrong, "unequal values at a point")
        }
        Ok(false) => decided(Outcome::Wrong, "unequal exact forms"),
        Err(_) => decided(
            Outcome::TimedOut,
            "it could not be told within the limits of cost",
        ),
    }
}

/// The exact form of an answer, for people.
pub(crate) fn shown(answer: &str) -> String {
    let budget = Budget::new();
    match read(text::undressed(answer), &budget) {
        Ok(Read { form, .. }) => match form {
            Form::Number(value) => value.to_string(),
            Form::Tree(tree) => print::shown(&tree, &budget),
            Form::Words(words) => format!("text {words:?}"),
        },
        Err(_) => "too large".to_owned(),
    }
}

/// The number that an answer says.
pub(crate) enum Measured {
    /// Exact, or the nearest float of one that is irrational.
    Number(BigRational),
    TooLarge,
    None,
}

/// Reads the number that an answer says, its name and unit left aside.
pub(crate) fn measured(answer: &str) -> Measured {
    let budget = Budget::new();
    let Ok(read) = read(text::undressed(answer), &budget) else {
        return Measured::TooLarge;
    };
    match &read.form {
        Form::Number(value) => Measured::Number(value.to_big()),
        Form::Tree(tree) => {
            let comparer = Comparer::new(&budget);
            match comparer.measure(At::root(tree)) {
                Some(value) => Measured::Number(value),
                None if budget.is_spent() => Measured::TooLarge,
                None => Measured::None,
            }
        }
        Form::Words(_) => Measured::None,
    }
}

fn is_balanced(text: &str) -> bool {
    let mut depth = 0_usize;
    let mut is_escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'{' => depth += 1,
            b'}' if depth == 0 => return false,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    depth == 0
}

#[cfg(test)]
mod tests;
