//! What stands in brackets: groups, tuples, intervals, sets, matrices, absolute values.

use super::super::ast::{Bracket, Function, Id, Join, Node};
use super::super::lex::Tok;
use super::{Fault, MAX_NESTING, Parsed, Parser};

impl Parser<'_> {
    fn enter(&mut self) -> Parsed<u32> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Fault::TooLarge);
        }
        Ok(std::mem::take(&mut self.bars))
    }

    fn leave(&mut self, bars: u32) {
        self.nesting -= 1;
        self.bars = bars;
    }

    /// The arguments of a function, its bracket passed.
    pub(super) fn arguments(&mut self, close: Tok) -> Parsed<Vec<Id>> {
        let bars = self.enter()?;
        let (items, _) = self.items(true)?;
        self.leave(bars);
        if self.eat(close) {
            Ok(items)
        } else {
            Err(Fault::Unknown)
        }
    }

    /// What stands in round, square, curly or angle brackets, the opening one passed.
    pub(super) fn bracketed(&mut self, open: char) -> Parsed {
        let bars = self.enter()?;
        let (mut items, join) = self.items(true)?;
        self.leave(bars);
        let close = self.peek().ok_or(Fault::Unknown)?;
        self.at += 1;
        let (left, right) = match (open, close) {
            ('{', Tok::Close('}')) => {
                return match items[..] {
                    [item] => Ok(item),
                    // Braces that somebody forgot to escape.
                    _ if join == Join::Comma => self.push(Node::Set(items)),
                    _ => self.push(Node::List(items, join)),
                };
            }
            ('f', Tok::Close('f')) | ('c', Tok::Close('c')) if items.len() == 1 => {
                let function = if open == 'f' {
                    Function::Floor
                } else {
                    Function::Ceil
                };
                return self.push(Node::Call(function, items));
            }
            ('<', Tok::Close('>')) => (Bracket::Angle, Bracket::Angle),
            ('(', Tok::Close(')')) => (Bracket::Round, Bracket::Round),
            ('(', Tok::Close(']')) => (Bracket::Round, Bracket::Square),
            ('[', Tok::Close(')')) => (Bracket::Square, Bracket::Round),
            ('[', Tok::Close(']')) => (Bracket::Square, Bracket::Square),
            // Open ends as they are written on the continent.
            (']', Tok::Open('[')) if items.len() == 2 => (Bracket::Round, Bracket::Round),
            (']', Tok::Close(']')) if items.len() == 2 => (Bracket::Round, Bracket::Square),
            ('[', Tok::Open('[')) if items.len() == 2 => (Bracket::Square, Bracket::Round),
            _ => return Err(Fault::Unknown),
        };
        if items.len() == 1 && left == right && left != Bracket::Angle {
            return items.pop().ok_or(Fault::Unknown);
        }
        if join != Join::Comma || (left != right && items.len() != 2) {
            return Err(Fault::Unknown);
        }
        self.push(Node::Tuple(left, right, items))
    }

    /// A set, by its members or by a condition.
    pub(super) fn set(&mut self) -> Parsed {
        if self.eat(Tok::SetClose) {
            return self.push(Node::Set(Vec::new()));
        }
        let bars = self.enter()?;
        self.bars = 1;
        let (items, join) = self.items(true)?;
        let condition = match self.peek() {
            Some(Tok::Bar(_) | Tok::Colon) => {
                self.at += 1;
                let (conditions, join) = self.items(true)?;
                Some(match conditions[..] {
                    [condition] => condition,
                    _ => {
                        let join = if join == Join::Comma { Join::And } else { join };
                        self.push(Node::List(conditions, join))?
                    }
                })
            }
            _ => None,
        };
        self.leave(bars);
        if !self.eat(Tok::SetClose) {
            return Err(Fault::Unknown);
        }
        match (condition, &items[..]) {
            (None, _) if join == Join::Or => Err(Fault::Unknown),
            (None, _) => self.push(Node::Set(items)),
            // All numbers for which it holds: the condition says it all.
            (Some(condition), [name]) if self.is_variable(*name) => Ok(condition),
            (Some(_), _) => Err(Fault::Unknown),
        }
    }

    fn is_variable(&self, id: Id) -> bool {
        match *self.tree.node(id) {
            Node::Sym(_) => true,
            Node::Member(name, set) => {
                matches!(self.tree.node(name), Node::Sym(_))
                    && matches!(self.tree.node(set), Node::NumberSet('R'))
            }
            _ => false,
        }
    }

    /// `|x|`, the first stroke passed.
    pub(super) fn absolute(&mut self) -> Parsed {
        let bars = self.enter()?;
        self.bars = 1;
        let inner = self.sum()?;
        self.leave(bars);
        if !matches!(self.peek(), Some(Tok::Bar(0 | 2))) {
            return Err(Fault::Unknown);
        }
        self.at += 1;
        self.push(Node::Call(Function::Abs, vec![inner]))
    }

    /// A matrix, or lines of several statements.
    pub(super) fn environment(&mut self, is_matrix: bool) -> Parsed {
        let bars = self.enter()?;
        let mut cells = Vec::new();
        let mut columns = None;
        let mut row = 0_usize;
        loop {
            if self.eat(Tok::End) {
                break;
            }
            while !is_matrix && self.eat(Tok::Amp) {}
            cells.push(if is_matrix { self.sum()? } else { self.item()? });
            row += 1;
            if is_matrix && self.eat(Tok::Amp) {
                continue;
            }
            while !is_matrix && (self.eat(Tok::Amp) || self.eat(Tok::Comma)) {}
            let is_last = !self.eat(Tok::Row);
            if is_matrix && *columns.get_or_insert(row) != row {
                return Err(Fault::Unknown);
            }
            row = 0;
            if is_last {
                if self.eat(Tok::End) {
                    break;
                }
                return Err(Fault::Unknown);
            }
        }
        self.leave(bars);
        match (cells.len(), columns) {
            (0, _) => Err(Fault::Unknown),
            (_, Some(columns)) => self.push(Node::Matrix(columns, cells)),
            (1, None) => Ok(cells[0]),
            (_, None) => self.push(Node::List(cells, Join::And)),
        }
    }
}
