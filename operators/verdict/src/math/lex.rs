//! Splits an answer into tokens, LaTeX or plain, in one pass.

mod number;

use super::ast::{Function, Relation};
use super::names::{Meaning, command, word};
use super::rat::Rat;

/// Longest number, digits and exponent together.
pub(crate) const MAX_DIGITS: usize = 4096;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tok {
    /// Place in the table of numbers, and whether it is written with digits alone.
    Num(u32, bool),
    Letter(char),
    /// Several letters in a row: where in the source.
    Word(u32, u32),
    /// Words of a text command: where in the source.
    Text(u32, u32),
    Function(Function),
    Relation(Relation),
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
    Times,
    Slash,
    Caret,
    Under,
    Bang,
    Prime,
    Percent,
    Degree,
    Currency(char),
    Comma,
    Semicolon,
    Colon,
    /// A stroke, and whether it is known to open (1) or close (2).
    Bar(u8),
    Open(char),
    Close(char),
    SetOpen,
    SetClose,
    Amp,
    Row,
    And,
    Or,
    In,
    Cup,
    Cap,
    SetMinus,
    Infinity,
    Empty,
    Frac,
    Sqrt,
    Binom,
    /// A matrix begins (true), or lines of several statements (false).
    Begin(bool),
    End,
    NumberSet(char),
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) tok: Tok,
    /// Whether white space stands before it.
    pub(crate) spaced: bool,
    /// Where in the source it begins.
    pub(crate) at: u32,
}

/// Why an answer has no tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LexFault {
    /// It is no mathematics that is known here.
    Unknown,
    /// A number beyond [`MAX_DIGITS`].
    TooLarge,
}

/// The tokens of an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) list: Vec<Token>,
    pub(crate) numbers: Vec<Rat>,
}

struct Lexer<'a> {
    source: &'a str,
    bytes: &'a [u8],
    at: usize,
    out: Tokens,
    /// Brackets that are open: within them a comma separates.
    depth: u32,
    spaced: bool,
    /// Whether a dollar sign is a delimiter.
    dollars_delimit: bool,
    /// 1 after `\left`, 2 after `\right`.
    side: u8,
    /// Text commands within text commands.
    nested: u8,
}

/// Splits an answer.
pub(crate) fn lex(source: &str) -> Result<Tokens, LexFault> {
    let mut lexer = Lexer {
        source,
        bytes: source.as_bytes(),
        at: 0,
        out: Tokens::default(),
        depth: 0,
        spaced: false,
        dollars_delimit: dollars(source).is_multiple_of(2),
        side: 0,
        nested: 0,
    };
    lexer.out.list.reserve(source.len().min(64));
    lexer.run(source.len())?;
    Ok(lexer.out)
}

/// Dollar signs that are not escaped.
fn dollars(source: &str) -> usize {
    let bytes = source.as_bytes();
    memchr::memchr_iter(b'$', bytes)
        .filter(|&at| at == 0 || bytes[at - 1] != b'\\')
        .count()
}

impl<'a> Lexer<'a> {
    fn push(&mut self, tok: Tok, at: usize) {
        self.out.list.push(Token {
            tok,
            spaced: self.spaced,
            at: at as u32,
        });
        self.spaced = false;
        self.side = 0;
    }

    fn run(&mut self, end: usize) -> Result<(), LexFault> {
        while self.at < end {
            let start = self.at;
            let byte = self.bytes[start];
            match byte {
                b'0'..=b'9' => self.number(end)?,
                b'.' if self.digit_at(start + 1) => self.number(end)?,
                b'.' if self.side != 0 => {
                    self.side = 0;
                    self.at += 1;
                }
                b'a'..=b'z' | b'A'..=b'Z' => self.letters(end),
                b'\\' => self.command(end)?,
                b' ' | b'\t' | b'\n' | b'\r' | b'~' => {
                    self.spaced = true;
                    self.at += 1;
                }
                0..128 => self.sign(byte, end)?,
                _ => self.unicode()?,
            }
        }
        Ok(())
    }

    fn digit_at(&self, at: usize) -> bool {
        self.bytes.get(at).is_some_and(u8::is_ascii_digit)
    }

    fn sign(&mut self, byte: u8, end: usize) -> Result<(), LexFault> {
        let start = self.at;
        let rest = &self.bytes[start..end];
        self.at += 1;
        let two = |second: u8| rest.get(1) == Some(&second);
        let tok = match byte {
            b'+' if two(b'-') => {
                self.at += 1;
                Tok::PlusMinus
            }
            b'+' => Tok::Plus,
            b'-' => Tok::Minus,
            b'*' if two(b'*') => {
                self.at += 1;
                Tok::Caret
            }
            b'*' => Tok::Times,
            b'/' => Tok::Slash,
            b'^' => Tok::Caret,
            b'_' => Tok::Under,
            b'!' if two(b'=') => {
                self.at += 1;
                Tok::Relation(Relation::NotEqual)
            }
            b'!' => Tok::Bang,
            b'\'' => Tok::Prime,
            b'%' => Tok::Percent,
            b',' => Tok::Comma,
            b';' => Tok::Semicolon,
            b':' => Tok::Colon,
            b'&' => Tok::Amp,
            b'|' => Tok::Bar(self.side),
            b'<' | b'>' => {
                let is_closed = two(b'=');
                self.at += usize::from(is_closed);
                Tok::Relation(match (byte, is_closed) {
                    (b'<', false) => Relation::Less,
                    (b'<', true) => Relation::LessEqual,
                    (_, false) => Relation::Greater,
                    (_, true) => Relation::GreaterEqual,
                })
            }
            b'=' => {
                let extra = match rest.get(1) {
                    Some(b'=') => 1,
                    _ => 0,
                };
                self.at += extra;
                Tok::Relation(match rest.get(1) {
                    Some(b'<') => Relation::LessEqual,
                    Some(b'>') => return Err(LexFault::Unknown),
                    _ => Relation::Equal,
                })
            }
            b'(' | b'[' => {
                self.depth += 1;
                Tok::Open(char::from(byte))
            }
            b')' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                Tok::Close(char::from(byte))
            }
            b'{' => Tok::Open('{'),
            b'}' => Tok::Close('}'),
            b'$' if self.dollars_delimit => return Ok(()),
            b'$' => Tok::Currency('$'),
            _ => return Err(LexFault::Unknown),
        };
        if matches!(tok, Tok::Relation(Relation::LessEqual)) && rest.get(1) == Some(&b'<') {
            self.at += 1;
        }
        self.push(tok, start);
        Ok(())
    }

    fn unicode(&mut self) -> Result<(), LexFault> {
        let start = self.at;
        let letter = self.source[start..].chars().next().unwrap_or('\0');
        self.at += letter.len_utf8();
        let tok = match letter {
            '\u{2212}' | '\u{2013}' => Tok::Minus,
            '\u{d7}' | '\u{b7}' | '\u{22c5}' | '\u{2217}' => Tok::Times,
            '\u{f7}' | '\u{2044}' | '\u{2215}' => Tok::Slash,
            '\u{b1}' => Tok::PlusMinus,
            '\u{2213}' => Tok::MinusPlus,
            '\u{2264}' | '\u{2a7d}' => Tok::Relation(Relation::LessEqual),
            '\u{2265}' | '\u{2a7e}' => Tok::Relation(Relation::GreaterEqual),
            '\u{2260}' => Tok::Relation(Relation::NotEqual),
            '\u{2248}' => Tok::Relation(Relation::Approximate),
            '\u{221e}' => Tok::Infinity,
            '\u{221a}' => Tok::Sqrt,
            '\u{b0}' => Tok::Degree,
            '\u{222a}' => Tok::Cup,
            '\u{2229}' => Tok::Cap,
            '\u{2208}' => Tok::In,
            '\u{2205}' => Tok::Empty,
            '\u{2216}' => Tok::SetMinus,
            '\u{211d}' => Tok::NumberSet('R'),
            '\u{2032}' | '\u{2019}' => Tok::Prime,
            '\u{20ac}' | '\u{a3}' | '\u{a5}' => Tok::Currency(letter),
            '\u{b2}' | '\u{b3}' => {
                self.push(Tok::Caret, start);
                self.out
                    .numbers
                    .push(Rat::int(if letter == '\u{b2}' { 2 } else { 3 }));
                Tok::Num(self.out.numbers.len() as u32 - 1, true)
            }
            _ if letter.is_whitespace() => {
                self.spaced = true;
                return Ok(());
            }
            _ if letter.is_alphabetic() => Tok::Letter(letter),
            _ => return Err(LexFault::Unknown),
        };
        self.push(tok, start);
        Ok(())
    }

    fn letters(&mut self, end: usize) {
        let start = self.at;
        let count = self.bytes[start..end]
            .iter()
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
        self.at += count;
        if count == 1 {
            return self.push(Tok::Letter(char::from(self.bytes[start])), start);
        }
        match word(&self.source[start..self.at]) {
            Some(Meaning::Token(tok)) => self.push(tok, start),
            _ => self.push(Tok::Word(start as u32, self.at as u32), start),
        }
    }

    fn command(&mut self, end: usize) -> Result<(), LexFault> {
        let start = self.at;
        let rest = &self.bytes[start + 1..end];
        let letters = rest
            .iter()
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
        if letters == 0 {
            let Some(&byte) = rest.first() else {
                return Err(LexFault::Unknown);
            };
            self.at += 2;
            let tok = match byte {
                b'{' => {
                    self.depth += 1;
                    Tok::SetOpen
                }
                b'}' => {
                    self.depth = self.depth.saturating_sub(1);
                    Tok::SetClose
                }
                b'\\' => Tok::Row,
                b'%' => Tok::Percent,
                b'$' => Tok::Currency('$'),
                b'&' => Tok::And,
                b'|' => Tok::Bar(self.side),
                b'!' | b'(' | b')' | b'[' | b']' => return Ok(()),
                b',' | b';' | b':' | b'>' | b' ' | b'\n' => {
                    self.spaced = true;
                    return Ok(());
                }
                _ => return Err(LexFault::Unknown),
            };
            self.push(tok, start);
            return Ok(());
        }
        let name = &self.source[start + 1..start + 1 + letters];
        self.at += 1 + letters;
        match command(name).ok_or(LexFault::Unknown)? {
            Meaning::Token(tok) => self.push(tok, start),
            Meaning::Ignored => {}
            Meaning::Space => self.spaced = true,
            Meaning::Side(side) => self.side = side,
            Meaning::Text => self.text(end)?,
            Meaning::NumberSet => {
                let name = self.braced(end).and_then(|name| name.trim().chars().next());
                self.push(Tok::NumberSet(name.ok_or(LexFault::Unknown)?), start);
            }
            Meaning::Begin => {
                let name = self.braced(end).ok_or(LexFault::Unknown)?;
                let tok = match name.trim_end_matches('*') {
                    "pmatrix" | "bmatrix" | "matrix" | "smallmatrix" | "Bmatrix" => {
                        Tok::Begin(true)
                    }
                    "array" => {
                        self.braced(end).ok_or(LexFault::Unknown)?;
                        Tok::Begin(true)
                    }
                    "cases" | "aligned" | "align" | "gathered" | "split" => Tok::Begin(false),
                    _ => return Err(LexFault::Unknown),
                };
                self.depth += 1;
                self.push(tok, start);
            }
            Meaning::End => {
                self.braced(end).ok_or(LexFault::Unknown)?;
                self.depth = self.depth.saturating_sub(1);
                self.push(Tok::End, start);
            }
        }
        Ok(())
    }

    /// The content of the braces that stand here, which are passed.
    fn braced(&mut self, end: usize) -> Option<&'a str> {
        while self.bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        let inner = &self.bytes[self.at..end];
        if inner.first() != Some(&b'{') {
            return None;
        }
        let mut depth = 0_usize;
        for (index, byte) in inner.iter().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        let start = self.at + 1;
                        self.at += index + 1;
                        return Some(&self.source[start..self.at - 1]);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// A text command: words stay words; what has digits or signs in it is read as if it stood outside.
    fn text(&mut self, end: usize) -> Result<(), LexFault> {
        let before = self.at;
        let Some(content) = self.braced(end) else {
            // `\mathrm e`, `\text B`
            self.at = before;
            return Ok(());
        };
        let after = self.at;
        let inner_end = after - 1;
        let inner_start = inner_end - content.len();
        let trimmed = content.trim();
        let is_words = trimmed
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b' ' | b'-' | b'.' | b'\''));
        self.spaced |= content.starts_with(' ');
        let spaced_after = content.ends_with(' ');
        if trimmed.is_empty() {
            self.spaced = true;
            return Ok(());
        }
        if is_words {
            match word(trimmed) {
                Some(Meaning::Token(tok)) => self.push(tok, inner_start),
                _ => {
                    let lead = content.len() - content.trim_start().len();
                    let start = inner_start + lead;
                    let tok = Tok::Text(start as u32, (start + trimmed.len()) as u32);
                    self.push(tok, start);
                }
            }
        } else {
            if self.nested == 8 {
                return Err(LexFault::Unknown);
            }
            self.nested += 1;
            self.at = inner_start;
            self.run(inner_end)?;
            self.at = after;
            self.nested -= 1;
        }
        self.spaced |= spaced_after;
        Ok(())
    }
}
