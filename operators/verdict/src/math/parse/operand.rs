//! Factors: numbers, names, functions, fractions, roots, and what is written above, below and behind them.

use super::super::ast::{Constant, Function, Node, Symbol};
use super::super::lex::{Tok, Token};
use super::super::rat::Rat;
use super::{Fault, MAX_NESTING, Parsed, Parser};

/// Letters that are functions where a bracket follows at once.
const FUNCTION_LETTERS: &str = "fghFGH";

/// Longest run of letters that may be a product.
const MAX_LETTERS: usize = 3;

impl Parser<'_> {
    /// Whether a factor can begin here without a sign before it.
    pub(super) fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(
                Tok::Num(..)
                | Tok::Letter(_)
                | Tok::Word(..)
                | Tok::Text(..)
                | Tok::Function(_)
                | Tok::Frac
                | Tok::Sqrt
                | Tok::Binom
                | Tok::Infinity
                | Tok::Begin(true)
                | Tok::Bar(1)
                | Tok::Open('(' | '{' | 'f' | 'c'),
            ) => true,
            // `[0, 1[` ends with such a bracket.
            Some(Tok::Open('[')) => !matches!(
                self.token(self.at + 1).map(|token| token.tok),
                None | Some(Tok::Comma | Tok::Cup | Tok::Close(_) | Tok::Semicolon)
            ),
            Some(Tok::Bar(0)) => self.bars == 0,
            _ => false,
        }
    }

    /// A factor with its exponents, factorials and signs behind it.
    pub(super) fn power(&mut self) -> Parsed {
        let mut base = self.operand()?;
        loop {
            match self.peek() {
                Some(Tok::Caret) => {
                    self.at += 1;
                    if self.degree_sign() {
                        base = self.push(Node::Call(Function::Degrees, vec![base]))?;
                        continue;
                    }
                    let exponent = self.exponent()?;
                    base = self.push(Node::Power(base, exponent))?;
                }
                Some(Tok::Bang) => {
                    self.at += 1;
                    let function = if self.eat(Tok::Bang) {
                        Function::DoubleFactorial
                    } else {
                        Function::Factorial
                    };
                    base = self.push(Node::Call(function, vec![base]))?;
                }
                Some(Tok::Percent) => {
                    self.at += 1;
                    let hundred = self.num(Rat::int(100))?;
                    base = self.push(Node::Quotient(base, hundred))?;
                }
                Some(Tok::Degree) => {
                    self.at += 1;
                    base = self.push(Node::Call(Function::Degrees, vec![base]))?;
                }
                _ => return Ok(base),
            }
        }
    }

    /// `\circ` or `{\circ}` after `^`.
    fn degree_sign(&mut self) -> bool {
        if self.eat(Tok::Degree) {
            return true;
        }
        let tok = |at| self.token(at).map(|token| token.tok);
        let is_braced = tok(self.at) == Some(Tok::Open('{'))
            && tok(self.at + 1) == Some(Tok::Degree)
            && tok(self.at + 2) == Some(Tok::Close('}'));
        if is_braced {
            self.at += 3;
        }
        is_braced
    }

    fn exponent(&mut self) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Fault::TooLarge);
        }
        let is_negative = self.eat(Tok::Minus);
        self.eat(Tok::Plus);
        let mut exponent = self.operand()?;
        if self.eat(Tok::Caret) {
            let above = self.exponent()?;
            exponent = self.push(Node::Power(exponent, above))?;
        }
        self.nesting -= 1;
        if is_negative {
            exponent = self.push(Node::Negative(exponent))?;
        }
        Ok(exponent)
    }

    pub(super) fn operand(&mut self) -> Parsed {
        let token = self.token(self.at).ok_or(Fault::Unknown)?;
        self.at += 1;
        match token.tok {
            Tok::Num(place, is_plain) => {
                let value = self.tokens.numbers[place as usize].clone();
                if is_plain && self.peek() == Some(Tok::Under) {
                    return self.based(value);
                }
                self.num(value)
            }
            Tok::Letter(letter) => self.letter(letter),
            Tok::Word(start, end) => {
                let is_joined = matches!(
                    self.peek(),
                    Some(Tok::Caret | Tok::Under | Tok::Prime | Tok::Bang)
                );
                if is_joined && (end - start) as usize <= MAX_LETTERS {
                    return self.split(start as usize, end as usize);
                }
                self.letters(start as usize, end as usize)
            }
            Tok::Text(start, end) => {
                let text = &self.source[start as usize..end as usize];
                match text.as_bytes() {
                    [letter] => self.letter(char::from(*letter)),
                    _ => {
                        let name = text.split_whitespace().collect::<Vec<_>>().join(" ");
                        let symbol = self.tree.symbol(&name.to_lowercase());
                        self.has_symbol = true;
                        self.push(Node::Text(symbol))
                    }
                }
            }
            Tok::Function(function) => self.call(function),
            Tok::Frac => {
                let above = self.argument()?;
                let below = self.argument()?;
                self.push(Node::Quotient(above, below))
            }
            Tok::Binom => {
                let arguments = vec![self.argument()?, self.argument()?];
                self.push(Node::Call(Function::Binomial, arguments))
            }
            Tok::Sqrt => {
                let degree = if self.peek() == Some(Tok::Open('[')) {
                    self.at += 1;
                    let degree = self.sum()?;
                    if !self.eat(Tok::Close(']')) {
                        return Err(Fault::Unknown);
                    }
                    degree
                } else {
                    self.num(Rat::int(2))?
                };
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return Err(Fault::TooLarge);
                }
                let radicand = self.operand()?;
                self.nesting -= 1;
                self.push(Node::Call(Function::Root, vec![degree, radicand]))
            }
            Tok::Infinity => self.constant(Constant::Infinity),
            Tok::Empty => self.push(Node::Set(Vec::new())),
            Tok::NumberSet(letter) => {
                if self.eat(Tok::Caret) {
                    return Err(Fault::Unknown);
                }
                self.push(Node::NumberSet(letter))
            }
            Tok::Open(open) => self.bracketed(open),
            Tok::Close(']') => self.bracketed(']'),
            Tok::SetOpen => self.set(),
            Tok::Begin(is_matrix) => self.environment(is_matrix),
            Tok::Bar(0 | 1) => self.absolute(),
            _ => Err(Fault::Unknown),
        }
    }

    /// An argument of a fraction: braces, or one token, of a number only its first digit.
    fn argument(&mut self) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Fault::TooLarge);
        }
        if let Some(token) = self.token(self.at)
            && let Tok::Num(place, true) = token.tok
        {
            let start = token.at as usize;
            let rest = &self.source.as_bytes()[start..];
            let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let whole = Rat::from_digits(&rest[..count], 0);
            if count > 1 && whole == self.tokens.numbers[place as usize] {
                let first = Rat::from_digits(&rest[..1], 0);
                self.tokens.numbers[place as usize] = Rat::from_digits(&rest[1..count], 0);
                self.tokens.list[self.at].at += 1;
                self.nesting -= 1;
                return self.num(first);
            }
        }
        let argument = self.operand()?;
        self.nesting -= 1;
        Ok(argument)
    }

    /// A letter with what is written below and behind it.
    fn letter(&mut self, letter: char) -> Parsed {
        let mut name = String::new();
        let is_bare = !matches!(self.peek(), Some(Tok::Under | Tok::Prime));
        if is_bare {
            match letter {
                'e' => return self.constant(Constant::E),
                'i' => return self.constant(Constant::I),
                '\u{3c0}' => return self.constant(Constant::Pi),
                _ => {}
            }
        }
        name.push(letter);
        self.suffixes(&mut name)?;
        self.has_symbol = true;
        if FUNCTION_LETTERS.contains(letter) {
            let after = self.at;
            if self.peek() == Some(Tok::Caret) && self.inverse_sign() {
                name.push_str("^-1");
            }
            if self
                .token(self.at)
                .is_some_and(|token| token.tok == Tok::Open('(') && !token.spaced)
            {
                self.at += 1;
                let arguments = self.arguments(Tok::Close(')'))?;
                let symbol = self.tree.symbol(&name);
                return self.push(Node::Apply(symbol, arguments));
            }
            if self.at != after {
                self.at = after;
                name.truncate(name.len() - 3);
            }
        }
        let symbol = self.tree.symbol(&name);
        self.push(Node::Sym(symbol))
    }

    /// `^{-1}`, which is passed.
    fn inverse_sign(&mut self) -> bool {
        let tok = |at| self.token(at).map(|token| token.tok);
        let is_one = |at| matches!(tok(at), Some(Tok::Num(place, true)) if self.tokens.numbers[place as usize].is_one());
        let is_inverse = tok(self.at + 1) == Some(Tok::Open('{'))
            && tok(self.at + 2) == Some(Tok::Minus)
            && is_one(self.at + 3)
            && tok(self.at + 4) == Some(Tok::Close('}'));
        if is_inverse {
            self.at += 5;
        }
        is_inverse
    }

    /// Several letters: a name, or a product of variables, or a word that is none of ours.
    fn letters(&mut self, start: usize, end: usize) -> Parsed {
        let text = &self.source[start..end];
        if matches!(self.peek(), Some(Tok::Under | Tok::Prime)) {
            let mut name = text.to_owned();
            self.suffixes(&mut name)?;
            self.has_symbol = true;
            let symbol = self.tree.symbol(&name);
            return self.push(Node::Sym(symbol));
        }
        if text.len() > MAX_LETTERS {
            return Err(Fault::Unknown);
        }
        let mut all = Vec::with_capacity(text.len());
        for letter in text.chars() {
            let node = match letter {
                'e' => Node::Const(Constant::E),
                'i' => Node::Const(Constant::I),
                _ => Node::Sym(Symbol::from(u32::from(letter))),
            };
            all.push(self.push(node)?);
        }
        self.has_symbol = true;
        let symbol = self.tree.symbol(text);
        self.push(Node::Letters(all, symbol))
    }

    /// Takes letters apart: an exponent belongs to the last of them alone.
    fn split(&mut self, start: usize, end: usize) -> Parsed {
        let bytes = self.source.as_bytes();
        let letters = (start..end).map(|at| Token {
            tok: Tok::Letter(char::from(bytes[at])),
            spaced: false,
            at: at as u32,
        });
        self.tokens.list.splice(self.at - 1..self.at, letters);
        self.at -= 1;
        self.operand()
    }

    /// Subscripts and primes.
    fn suffixes(&mut self, name: &mut String) -> Parsed<()> {
        loop {
            match self.peek() {
                Some(Tok::Under) => {
                    self.at += 1;
                    name.push('_');
                    self.subscript(name)?;
                }
                Some(Tok::Prime) => {
                    self.at += 1;
                    name.push('\'');
                }
                _ => return Ok(()),
            }
        }
    }

    /// What stands below, letter by letter.
    fn subscript(&mut self, name: &mut String) -> Parsed<()> {
        let first = self.token(self.at).ok_or(Fault::Unknown)?;
        let from = self.at;
        if first.tok == Tok::Open('{') {
            let mut depth = 0_usize;
            loop {
                match self.peek().ok_or(Fault::Unknown)? {
                    Tok::Open('{') => depth += 1,
                    Tok::Close('}') => depth -= 1,
                    _ => {}
                }
                self.at += 1;
                if depth == 0 {
                    break;
                }
            }
        } else if matches!(
            first.tok,
            Tok::Num(..) | Tok::Letter(_) | Tok::Word(..) | Tok::Text(..)
        ) {
            self.at += 1;
        } else {
            return Err(Fault::Unknown);
        }
        let start = first.at as usize;
        let end = match self.token(self.at) {
            Some(next) => next.at as usize,
            None => self.source.len(),
        };
        let text = match first.tok {
            Tok::Word(start, end) | Tok::Text(start, end) => {
                &self.source[start as usize..end as usize]
            }
            Tok::Letter(letter) => {
                name.push(letter);
                return Ok(());
            }
            Tok::Num(place, true) => {
                let number = &self.tokens.numbers[place as usize];
                name.push_str(&number.to_string());
                return Ok(());
            }
            _ => self.source.get(start..end).unwrap_or_default(),
        };
        self.budget.spend((self.at - from + text.len()) as u64)?;
        name.extend(
            text.chars()
                .filter(|c| !c.is_whitespace() && !matches!(c, '{' | '}' | '\\' | '$')),
        );
        Ok(())
    }

    /// `101_2`
    fn based(&mut self, digits: Rat) -> Parsed {
        let mut base = String::new();
        self.at += 1;
        self.subscript(&mut base)?;
        let base = base.trim_start_matches("text").trim_start_matches("mathrm");
        let base = match base {
            "two" => 2,
            "eight" => 8,
            "ten" => 10,
            "sixteen" => 16,
            _ => base.parse().map_err(|_| Fault::Unknown)?,
        };
        if base == 10 {
            return self.num(digits);
        }
        self.push(Node::Based(digits, base))
    }

    /// A function: its power, its base, its argument.
    fn call(&mut self, function: Function) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Fault::TooLarge);
        }
        let mut function = function;
        let mut base = None;
        if matches!(function, Function::Log | Function::Ln) && self.eat(Tok::Under) {
            base = Some(self.operand()?);
        }
        let mut power = None;
        if self.eat(Tok::Caret) {
            let exponent = self.exponent()?;
            let is_inverse = matches!(self.tree.node(exponent), Node::Negative(one) if matches!(self.tree.node(*one), Node::Num(one) if one.is_one()));
            match inverse(function).filter(|_| is_inverse) {
                Some(inverse) => function = inverse,
                None => power = Some(exponent),
            }
        }
        let mut arguments = match (function, self.peek()) {
            (_, Some(Tok::Open('('))) => {
                self.at += 1;
                self.arguments(Tok::Close(')'))?
            }
            (Function::Max | Function::Min | Function::Gcd | Function::Lcm, Some(Tok::SetOpen)) => {
                self.at += 1;
                self.arguments(Tok::SetClose)?
            }
            (_, Some(Tok::Open(_) | Tok::Bar(_))) => vec![self.operand()?],
            _ => vec![self.bare_argument()?],
        };
        if let Some(base) = base {
            arguments.insert(0, base);
            function = Function::LogBase;
        }
        let expected = match function {
            Function::LogBase => arguments.len() == 2,
            Function::Max | Function::Min | Function::Gcd | Function::Lcm => true,
            _ => arguments.len() == 1,
        };
        if !expected {
            return Err(Fault::Unknown);
        }
        self.nesting -= 1;
        let call = self.push(Node::Call(function, arguments))?;
        match power {
            Some(exponent) => self.push(Node::Power(call, exponent)),
            None => Ok(call),
        }
    }

    /// What a function without brackets is taken of: the factors up to the next sign, function or bracket.
    fn bare_argument(&mut self) -> Parsed {
        let is_negative = self.eat(Tok::Minus);
        let mut factors = vec![self.power()?];
        while self.starts_factor()
            && !matches!(
                self.peek(),
                Some(
                    Tok::Function(_)
                        | Tok::Open(_)
                        | Tok::Bar(_)
                        | Tok::Num(..)
                        | Tok::Text(..)
                        | Tok::Begin(_)
                )
            )
        {
            factors.push(self.power()?);
        }
        let argument = self.multiply(factors)?;
        if is_negative {
            return self.push(Node::Negative(argument));
        }
        Ok(argument)
    }
}

fn inverse(function: Function) -> Option<Function> {
    Some(match function {
        Function::Sin => Function::Asin,
        Function::Cos => Function::Acos,
        Function::Tan => Function::Atan,
        Function::Cot => Function::Acot,
        Function::Sec => Function::Asec,
        Function::Csc => Function::Acsc,
        Function::Sinh => Function::Asinh,
        Function::Cosh => Function::Acosh,
        Function::Tanh => Function::Atanh,
        _ => return None,
    })
}
