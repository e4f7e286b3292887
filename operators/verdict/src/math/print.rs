//! Exact forms for people.

use std::fmt::Write as _;

use super::ast::{Bracket, Constant, Function, Id, Node, Tree};
use super::budget::Budget;
use super::canon::{Canon, Kernel, NoForm};
use super::fraction::Fraction;
use super::poly::Poly;

/// Longest text that is made; what is longer is cut.
const MAX_LENGTH: usize = 2000;

/// The exact form of an answer.
pub(crate) fn shown(tree: &Tree, budget: &Budget) -> String {
    let mut out = String::new();
    Printer { tree, budget }.node(tree.root, &mut out);
    if out.len() > MAX_LENGTH {
        let end = (0..=MAX_LENGTH)
            .rev()
            .find(|end| out.is_char_boundary(*end));
        out.truncate(end.unwrap_or(0));
        out.push_str("...");
    }
    out
}

struct Printer<'a> {
    tree: &'a Tree,
    budget: &'a Budget,
}

impl Printer<'_> {
    fn list(&self, ids: &[Id], between: &str, out: &mut String) {
        for (index, id) in ids.iter().enumerate() {
            if index > 0 {
                out.push_str(between);
            }
            if out.len() > MAX_LENGTH {
                return;
            }
            self.node(*id, out);
        }
    }

    fn node(&self, id: Id, out: &mut String) {
        match self.tree.node(id) {
            Node::List(items, _) => self.list(items, ", ", out),
            Node::Set(items) => {
                out.push('{');
                self.list(items, ", ", out);
                out.push('}');
            }
            Node::Tuple(left, right, items) => {
                out.push(match left {
                    Bracket::Round => '(',
                    Bracket::Square => '[',
                    Bracket::Angle => '<',
                });
                self.list(items, ", ", out);
                out.push(match right {
                    Bracket::Round => ')',
                    Bracket::Square => ']',
                    Bracket::Angle => '>',
                });
            }
            Node::Matrix(columns, cells) => {
                for (index, row) in cells.chunks(*columns).enumerate() {
                    out.push_str(if index == 0 { "[[" } else { ", [" });
                    self.list(row, ", ", out);
                    out.push(']');
                }
                out.push(']');
            }
            Node::Union(all) => self.list(all, " or ", out),
            Node::Intersection(all) => self.list(all, " and ", out),
            Node::Without(a, b) => self.list(&[*a, *b], " without ", out),
            Node::Member(a, b) => self.list(&[*a, *b], " in ", out),
            Node::Ratio(parts, _) => self.list(parts, ":", out),
            Node::Chain(sides, relations) => {
                self.node(sides[0], out);
                for (relation, side) in relations.iter().zip(&sides[1..]) {
                    out.push(' ');
                    out.push_str(relation.sign());
                    out.push(' ');
                    self.node(*side, out);
                }
            }
            Node::Quantity(value, factor, _) => {
                self.node(*value, out);
                if factor.is_one() {
                    out.push_str(" unit");
                } else {
                    let _ = write!(out, " unit of {factor}");
                }
            }
            Node::Based(digits, base) => {
                let _ = write!(out, "{digits} in base {base}");
            }
            Node::NumberSet(letter) => {
                let _ = write!(out, "all of {letter}");
            }
            Node::Text(symbol) | Node::Letters(_, symbol) => out.push_str(&self.tree.name(*symbol)),
            Node::Const(Constant::Infinity) => out.push_str("oo"),
            Node::Negative(inner)
                if matches!(self.tree.node(*inner), Node::Const(Constant::Infinity)) =>
            {
                out.push_str("-oo");
            }
            _ => self.expression(id, out),
        }
    }

    fn expression(&self, id: Id, out: &mut String) {
        let mut canon = Canon::new(self.budget);
        match canon.form(self.tree, id, 1) {
            Ok(form) => self.fraction(&form, &canon.kernels, out),
            Err(NoForm::Undefined) => out.push_str("undefined"),
            Err(NoForm::TooLarge) => out.push_str("(an expression too large to be multiplied out)"),
            Err(NoForm::Other) => out.push_str("(an expression without an exact form)"),
        }
    }

    fn fraction(&self, form: &Fraction, kernels: &[Kernel], out: &mut String) {
        if form.below.as_number().is_some_and(|below| below.is_one()) {
            return self.poly(&form.above, kernels, out);
        }
        out.push('(');
        self.poly(&form.above, kernels, out);
        out.push_str(")/(");
        self.poly(&form.below, kernels, out);
        out.push(')');
    }

    fn poly(&self, poly: &Poly, kernels: &[Kernel], out: &mut String) {
        if poly.is_zero() {
            out.push('0');
        }
        for (index, (powers, value)) in poly.terms.iter().rev().enumerate() {
            if out.len() > MAX_LENGTH {
                return;
            }
            out.push_str(match (index, value.is_negative()) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            });
            let size = value.abs();
            if powers.is_empty() || !size.is_one() {
                let _ = write!(out, "{size}");
                if !powers.is_empty() {
                    out.push('*');
                }
            }
            for (place, (kernel, power)) in powers.iter().enumerate() {
                if place > 0 {
                    out.push('*');
                }
                self.kernel(&kernels[*kernel as usize], kernels, out);
                if *power > 1 {
                    let _ = write!(out, "^{power}");
                }
            }
        }
    }

    fn kernel(&self, kernel: &Kernel, kernels: &[Kernel], out: &mut String) {
        match kernel {
            Kernel::Sym(symbol) => out.push_str(&self.tree.name(*symbol)),
            Kernel::Const(Constant::Pi) => out.push_str("pi"),
            Kernel::Const(Constant::E) => out.push('e'),
            Kernel::Const(Constant::I) => out.push('i'),
            Kernel::Const(Constant::Infinity) => out.push_str("oo"),
            Kernel::Root(degree, radicand, _) => {
                if *degree == 2 {
                    out.push_str("sqrt(");
                } else {
                    let _ = write!(out, "root{degree}(");
                }
                self.fraction(radicand, kernels, out);
                out.push(')');
            }
            Kernel::Call(function, arguments) => {
                let name = match function {
                    Function::LogBase => "log_base".to_owned(),
                    other => format!("{other:?}").to_lowercase(),
                };
                self.arguments(&name, arguments, kernels, out);
            }
            Kernel::Apply(symbol, arguments) => {
                self.arguments(&self.tree.name(*symbol), arguments, kernels, out);
            }
            Kernel::Power(base, exponent) => {
                out.push('(');
                self.fraction(base, kernels, out);
                out.push_str(")^(");
                self.fraction(exponent, kernels, out);
                out.push(')');
            }
        }
    }

    fn arguments(&self, name: &str, arguments: &[Fraction], kernels: &[Kernel], out: &mut String) {
        out.push_str(name);
        out.push('(');
        for (index, argument) in arguments.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            self.fraction(argument, kernels, out);
        }
        out.push(')');
    }
}
