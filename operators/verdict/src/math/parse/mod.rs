//! Reads an answer into a tree: lists, statements, set operations, sums and products. What stands between the signs is
//! in `operand`, what stands in brackets in `group`.

mod group;
mod operand;

use super::ast::{Constant, Function, Id, Join, Node, Relation, Tree};
use super::budget::{Budget, Exhausted};
use super::lex::{LexFault, Tok, Token, Tokens, lex};
use super::rat::Rat;
use super::unit;

/// Why an answer has no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is no mathematics that is known here: words, perhaps.
    Unknown,
    /// It is too large or too deep to be looked at.
    TooLarge,
}

impl From<LexFault> for Fault {
    fn from(fault: LexFault) -> Self {
        match fault {
            LexFault::Unknown => Self::Unknown,
            LexFault::TooLarge => Self::TooLarge,
        }
    }
}

impl From<Exhausted> for Fault {
    fn from(_: Exhausted) -> Self {
        Self::TooLarge
    }
}

type Parsed<T = Id> = Result<T, Fault>;

/// Levels of brackets that are read.
const MAX_NESTING: u32 = 40;

struct Parser<'a> {
    source: &'a str,
    tokens: Tokens,
    at: usize,
    tree: Tree,
    nesting: u32,
    /// Strokes that are open: the next one closes.
    bars: u32,
    /// Whether this statement has a variable: then a letter after a number is one as well, and no unit.
    has_symbol: bool,
    budget: &'a Budget,
}

/// Reads an answer.
pub(crate) fn parse(source: &str, budget: &Budget) -> Parsed<Tree> {
    budget.spend(10 + source.len() as u64)?;
    let tokens = lex(source)?;
    if tokens.list.is_empty() {
        return Err(Fault::Unknown);
    }
    let mut parser = Parser {
        source,
        tokens,
        at: 0,
        tree: Tree::default(),
        nesting: 0,
        bars: 0,
        has_symbol: false,
        budget,
    };
    let root = parser.answer()?;
    if parser.at < parser.tokens.list.len() {
        return Err(Fault::Unknown);
    }
    parser.tree.root = root;
    Ok(parser.tree)
}

impl Parser<'_> {
    fn token(&self, at: usize) -> Option<Token> {
        self.tokens.list.get(at).copied()
    }

    fn peek(&self) -> Option<Tok> {
        self.token(self.at).map(|token| token.tok)
    }

    fn eat(&mut self, tok: Tok) -> bool {
        let is_there = self.peek() == Some(tok);
        self.at += usize::from(is_there);
        is_there
    }

    fn push(&mut self, node: Node) -> Parsed {
        self.budget.spend(5)?;
        self.tree.push(node).ok_or(Fault::TooLarge)
    }

    fn num(&mut self, value: Rat) -> Parsed {
        self.push(Node::Num(value))
    }

    /// Groups of statements set apart by semicolons, or lists, or one statement.
    fn answer(&mut self) -> Parsed {
        let mut groups = vec![self.list()?];
        while self.eat(Tok::Semicolon) {
            if self.peek().is_some() {
                groups.push(self.list()?);
            }
        }
        if groups.len() == 1 {
            return Ok(groups[0]);
        }
        self.push(Node::List(groups, Join::Comma))
    }

    fn list(&mut self) -> Parsed {
        let (items, join) = self.items(false)?;
        match items[..] {
            [] => Err(Fault::Unknown),
            [item] => Ok(item),
            _ => self.push(Node::List(items, join)),
        }
    }

    /// Statements set apart by commas, "and", "or"; within brackets also by semicolons.
    fn items(&mut self, in_brackets: bool) -> Parsed<(Vec<Id>, Join)> {
        let mut items = Vec::new();
        let mut join = Join::Comma;
        loop {
            items.push(self.item()?);
            let mut is_separated = false;
            while let Some(tok) = self.peek() {
                match tok {
                    Tok::Comma => {}
                    Tok::And => join = Join::And,
                    Tok::Or => join = Join::Or,
                    Tok::Semicolon | Tok::Row if in_brackets => {}
                    _ => break,
                }
                is_separated = true;
                self.at += 1;
            }
            if !is_separated {
                return Ok((items, join));
            }
            if self.ends_item() {
                return Err(Fault::Unknown);
            }
        }
    }

    /// Whether nothing of the statement is left.
    fn ends_item(&self) -> bool {
        matches!(
            self.peek(),
            None | Some(
                Tok::Comma
                    | Tok::Semicolon
                    | Tok::And
                    | Tok::Or
                    | Tok::Row
                    | Tok::Amp
                    | Tok::End
                    | Tok::Close(_)
                    | Tok::SetClose
                    | Tok::Relation(_)
            )
        )
    }

    /// One side, or several with relations between them.
    fn item(&mut self) -> Parsed {
        let outer = std::mem::take(&mut self.has_symbol);
        let mut sides = vec![self.side()?];
        let mut relations = Vec::new();
        loop {
            match self.peek() {
                Some(Tok::Relation(relation)) => {
                    self.at += 1;
                    // `<=` with a space, `&=` of aligned lines.
                    self.eat(Tok::Amp);
                    self.has_symbol = false;
                    sides.push(self.side()?);
                    relations.push(relation);
                }
                Some(Tok::Colon) if self.nesting == 0 || self.bars == 0 => {
                    return self.ratio(sides, &relations, outer);
                }
                Some(Tok::In) if relations.is_empty() => {
                    self.at += 1;
                    let set = self.side()?;
                    self.has_symbol = outer;
                    return self.push(Node::Member(sides[0], set));
                }
                _ => break,
            }
        }
        self.has_symbol = outer;
        self.chain(sides, relations)
    }

    /// `1:2:3`, whose first part has been read.
    fn ratio(&mut self, sides: Vec<Id>, relations: &[Relation], outer: bool) -> Parsed {
        let [first] = sides[..] else {
            return Err(Fault::Unknown);
        };
        let mut parts = vec![first];
        let mut is_time = true;
        while self.eat(Tok::Colon) {
            let start = self.token(self.at).map_or(0, |token| token.at as usize);
            parts.push(self.sum()?);
            let end = self
                .token(self.at)
                .map_or(self.source.len(), |token| token.at as usize);
            let digits = self.source.get(start..end).map_or("", str::trim);
            is_time &= digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        }
        debug_assert!(relations.is_empty(), "one side has no relation");
        self.has_symbol = outer;
        self.push(Node::Ratio(parts, is_time))
    }

    /// Drops approximations: what is exact stands before them.
    fn chain(&mut self, mut sides: Vec<Id>, mut relations: Vec<Relation>) -> Parsed {
        if let Some(place) = relations
            .iter()
            .position(|relation| *relation == Relation::Approximate)
        {
            if place == 0 && self.is_name(sides[0]) {
                relations[0] = Relation::Equal;
                let next = relations[1..]
                    .iter()
                    .position(|relation| *relation == Relation::Approximate);
                let keep = next.map_or(relations.len(), |next| next + 1);
                relations.truncate(keep);
            } else {
                relations.truncate(place);
            }
            sides.truncate(relations.len() + 1);
        }
        match sides[..] {
            [side] => Ok(side),
            _ => self.push(Node::Chain(sides, relations)),
        }
    }

    fn is_name(&self, id: Id) -> bool {
        matches!(
            self.tree.node(id),
            Node::Sym(_) | Node::Letters(..) | Node::Apply(..) | Node::Text(_)
        )
    }

    /// Sums joined by set operations, the last perhaps with a unit.
    fn side(&mut self) -> Parsed {
        let mut left = self.quantity()?;
        loop {
            let tok = self.peek();
            match tok {
                Some(Tok::Cup | Tok::Cap) => {
                    let mut all = vec![left];
                    while self.peek() == tok {
                        self.at += 1;
                        all.push(self.quantity()?);
                    }
                    left = self.push(if tok == Some(Tok::Cup) {
                        Node::Union(all)
                    } else {
                        Node::Intersection(all)
                    })?;
                }
                Some(Tok::SetMinus) => {
                    self.at += 1;
                    let right = self.quantity()?;
                    left = self.push(Node::Without(left, right))?;
                }
                _ => return Ok(left),
            }
        }
    }

    /// A sum and what it is counted in.
    fn quantity(&mut self) -> Parsed {
        let currency = match self.peek() {
            Some(Tok::Currency(sign)) => {
                self.at += 1;
                Some(sign)
            }
            Some(Tok::Minus | Tok::Plus)
                if matches!(
                    self.token(self.at + 1),
                    Some(Token {
                        tok: Tok::Currency(_),
                        ..
                    })
                ) =>
            {
                let Some(Token {
                    tok: Tok::Currency(sign),
                    ..
                }) = self.token(self.at + 1)
                else {
                    return Err(Fault::Unknown);
                };
                self.tokens.list.remove(self.at + 1);
                Some(sign)
            }
            _ => None,
        };
        let value = self.sum()?;
        if let Some(sign) = currency {
            // `$5 dollars` says it twice.
            if let Some((length, _)) = unit::read(self.source, &self.tokens, self.at)
                && length > 0
            {
                return Err(Fault::Unknown);
            }
            return self.push(Node::Quantity(value, Rat::ONE, unit::currency(sign)));
        }
        if let Some(Tok::Currency(sign)) = self.peek() {
            self.at += 1;
            return self.push(Node::Quantity(value, Rat::ONE, unit::currency(sign)));
        }
        let is_degrees = |node: &Node| matches!(node, Node::Call(Function::Degrees, _));
        let (bare, is_negative) = match self.tree.node(value) {
            Node::Negative(inner) => (*inner, true),
            _ => (value, false),
        };
        if is_degrees(self.tree.node(bare)) {
            return self.degrees(bare, is_negative);
        }
        match unit::read(self.source, &self.tokens, self.at) {
            Some((length, unit)) if length > 0 => {
                self.at += length;
                self.push(Node::Quantity(value, unit.factor, unit.dimension))
            }
            _ => Ok(value),
        }
    }

    /// An angle, or a temperature when a scale follows.
    fn degrees(&mut self, value: Id, is_negative: bool) -> Parsed {
        let Node::Call(_, arguments) = self.tree.node(value) else {
            return Err(Fault::Unknown);
        };
        let mut count = arguments[0];
        if is_negative {
            count = self.push(Node::Negative(count))?;
        }
        let scale = match self.peek() {
            Some(Tok::Letter(scale @ ('C' | 'F' | 'K'))) => {
                self.at += 1;
                Some(scale)
            }
            Some(Tok::Text(start, end))
                if matches!(&self.source[start as usize..end as usize], "C" | "F") =>
            {
                self.at += 1;
                self.source[start as usize..].chars().next()
            }
            Some(Tok::Word(start, end)) => {
                let name = &self.source[start as usize..end as usize];
                let scale = match name {
                    "Celsius" | "celsius" => 'C',
                    "Fahrenheit" | "fahrenheit" => 'F',
                    _ => return Err(Fault::Unknown),
                };
                self.at += 1;
                Some(scale)
            }
            _ => None,
        };
        self.push(Node::Quantity(count, Rat::ONE, unit::degree(scale)))
    }

    /// Terms with signs between them.
    fn sum(&mut self) -> Parsed {
        let mut terms = Vec::new();
        loop {
            let sign = match self.peek() {
                Some(sign @ (Tok::Plus | Tok::Minus | Tok::PlusMinus | Tok::MinusPlus)) => {
                    self.at += 1;
                    sign
                }
                _ if terms.is_empty() => Tok::Plus,
                _ => break,
            };
            let term = self.product()?;
            terms.push(match sign {
                Tok::Minus => self.push(Node::Negative(term))?,
                Tok::PlusMinus => self.push(Node::PlusMinus(false, term))?,
                Tok::MinusPlus => self.push(Node::PlusMinus(true, term))?,
                _ => term,
            });
        }
        match terms[..] {
            [term] => Ok(term),
            _ => self.push(Node::Sum(terms)),
        }
    }

    /// Factors side by side or with signs between them, from left to right.
    fn product(&mut self) -> Parsed {
        let mut factors = vec![self.signed_factor()?];
        loop {
            match self.peek() {
                Some(Tok::Times) => {
                    self.at += 1;
                    factors.push(self.signed_factor()?);
                }
                Some(Tok::Slash) => {
                    self.at += 1;
                    let above = self.multiply(factors)?;
                    let below = self.signed_factor()?;
                    factors = vec![self.push(Node::Quotient(above, below))?];
                }
                // The scale of a temperature.
                Some(Tok::Letter('C' | 'F' | 'K') | Tok::Text(..) | Tok::Word(..))
                    if factors.last().is_some_and(|last| {
                        matches!(self.tree.node(*last), Node::Call(Function::Degrees, _))
                    }) =>
                {
                    break;
                }
                Some(_) if self.starts_factor() => {
                    if let [whole] = factors[..]
                        && let Some(mixed) = self.mixed(whole)?
                    {
                        factors = vec![mixed];
                        continue;
                    }
                    let previous = self.token(self.at - 1).map(|token| token.tok);
                    if matches!(self.peek(), Some(Tok::Num(..)))
                        && !matches!(previous, Some(Tok::Close(')' | ']')))
                    {
                        // `1 2` and `x2` say nothing certain.
                        return Err(Fault::Unknown);
                    }
                    if self.unit_stands_here() {
                        break;
                    }
                    factors.push(self.power()?);
                }
                _ => break,
            }
        }
        self.multiply(factors)
    }

    fn multiply(&mut self, factors: Vec<Id>) -> Parsed {
        match factors[..] {
            [factor] => Ok(factor),
            _ => self.push(Node::Product(factors)),
        }
    }

    fn signed_factor(&mut self) -> Parsed {
        match self.peek() {
            Some(Tok::Minus) => {
                self.at += 1;
                let factor = self.power()?;
                self.push(Node::Negative(factor))
            }
            Some(Tok::Plus) => {
                self.at += 1;
                self.power()
            }
            _ => self.power(),
        }
    }

    /// An integer before a proper fraction is added to it.
    fn mixed(&mut self, whole: Id) -> Parsed<Option<Id>> {
        let previous = self.token(self.at - 1).map(|token| token.tok);
        let Some(Tok::Num(place, true)) = previous else {
            return Ok(None);
        };
        let number = self.tokens.numbers[place as usize].clone();
        if !matches!(self.tree.node(whole), Node::Num(value) if *value == number)
            || number.is_zero()
        {
            return Ok(None);
        }
        let start = self.at;
        let part = match self.peek() {
            Some(Tok::Frac) => self.power()?,
            Some(Tok::Num(above, true))
                if self.token(self.at).is_some_and(|token| token.spaced) =>
            {
                let slash = self.token(self.at + 1).map(|token| token.tok);
                let Some(Tok::Num(below, true)) = self.token(self.at + 2).map(|token| token.tok)
                else {
                    return Ok(None);
                };
                if slash != Some(Tok::Slash) {
                    return Ok(None);
                }
                self.at += 3;
                let above = self.num(self.tokens.numbers[above as usize].clone())?;
                let below = self.num(self.tokens.numbers[below as usize].clone())?;
                self.push(Node::Quotient(above, below))?
            }
            _ => return Ok(None),
        };
        let is_proper = match *self.tree.node(part) {
            Node::Quotient(above, below) => {
                let parts = (self.tree.node(above), self.tree.node(below));
                let (Node::Num(above), Node::Num(below)) = parts else {
                    self.at = start;
                    return Ok(None);
                };
                let is_whole = above.is_integer() && below.is_integer();
                is_whole && !above.is_zero() && above.compare(below).is_lt()
            }
            _ => false,
        };
        if !is_proper {
            // Five times seven halves looks like five and seven halves: neither is certain.
            let is_plain_text =
                matches!(self.token(start).map(|token| token.tok), Some(Tok::Num(..)));
            if is_plain_text {
                return Err(Fault::Unknown);
            }
            self.at = start;
            return Ok(None);
        }
        Ok(Some(self.push(Node::Sum(vec![whole, part]))?))
    }

    fn unit_stands_here(&self) -> bool {
        let is_marked = matches!(self.peek(), Some(Tok::Text(..)));
        (is_marked || !self.has_symbol)
            && unit::read(self.source, &self.tokens, self.at).is_some_and(|(length, _)| length > 0)
    }

    fn constant(&mut self, constant: Constant) -> Parsed {
        self.push(Node::Const(constant))
    }
}
