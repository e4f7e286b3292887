//! What may follow a number without changing it: a unit. Conservative, since a wrong reward costs more than a missed
//! one. Units of one kind are converted: 100 cm are 1 m.

use super::ast::{Symbol, symbol};
use super::lex::{Tok, Tokens};
use super::rat::Rat;

/// A unit: how many base units it is, and of what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub(crate) factor: Rat,
    pub(crate) dimension: Symbol,
}

/// Units of one or two letters, and others without a vowel. Longer words are recognised by their form.
const SHORT_UNITS: &[&str] = &[
    "m", "g", "s", "h", "L", "J", "W", "cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "in", "mi",
    "yd", "lb", "lbs", "oz", "hr", "hrs", "min", "mph", "kmh", "Hz", "dm", "nm", "ms", "kW", "sq",
    "cu",
];

/// Units of one letter that pass in a text command. Others are constants and variables, as the upright imaginary unit.
const LETTER_UNITS: &[&str] = &[
    "A", "C", "F", "J", "K", "L", "N", "V", "W", "g", "h", "l", "m", "s",
];

/// Words that change the number before them or join it with something else.
#[rustfmt::skip]
const NO_UNITS: &[&str] = &[
    "and", "or", "to", "not", "than", "maybe", "negative", "percent", "percents", "percentage",
    "half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "sixth", "sixths",
    "seventh", "sevenths", "eighth", "eighths", "ninth", "ninths", "tenth", "tenths", "hundredth", "hundredths",
    "thousandth", "thousandths", "zero", "one", "ones", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "tens", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "dozen", "dozens", "hundred", "hundreds", "thousand", "thousands", "million", "millions", "billion", "billions",
    "trillion", "trillions", "squared", "cubed", "root", "sqrt", "factorial", "plus", "minus", "times", "multiplied",
    "divided", "over", "mod", "choose", "power", "pi", "alpha", "beta", "theta", "lambda", "sigma", "omega", "infinity",
    "sin", "cos", "tan", "cot", "log", "ln", "exp", "cis", "approximately", "about", "almost", "either", "but", "except",
    "point", "isn", "false", "wrong", "incorrect", "remainder", "modulo", "base",
];

/// Name, how many of the base unit (above and below), base unit.
#[rustfmt::skip]
const KNOWN: &[(&str, i64, i64, &str)] = &[
    ("m", 1, 1, "m"), ("meter", 1, 1, "m"), ("metre", 1, 1, "m"), ("cm", 1, 100, "m"), ("centimeter", 1, 100, "m"),
    ("centimetre", 1, 100, "m"), ("dm", 1, 10, "m"), ("mm", 1, 1000, "m"), ("millimeter", 1, 1000, "m"),
    ("millimetre", 1, 1000, "m"), ("km", 1000, 1, "m"), ("kilometer", 1000, 1, "m"), ("kilometre", 1000, 1, "m"),
    ("nm", 1, 1_000_000_000, "m"),
    ("in", 1, 1, "inch"), ("inch", 1, 1, "inch"), ("inche", 1, 1, "inch"), ("ft", 12, 1, "inch"), ("foot", 12, 1, "inch"),
    ("feet", 12, 1, "inch"), ("yd", 36, 1, "inch"), ("yard", 36, 1, "inch"), ("mi", 63360, 1, "inch"),
    ("mile", 63360, 1, "inch"),
    ("g", 1, 1, "g"), ("gram", 1, 1, "g"), ("kg", 1000, 1, "g"), ("kilogram", 1000, 1, "g"), ("mg", 1, 1000, "g"),
    ("milligram", 1, 1000, "g"),
    ("oz", 1, 1, "ounce"), ("ounce", 1, 1, "ounce"), ("lb", 16, 1, "ounce"), ("pound", 16, 1, "ounce"),
    ("s", 1, 1, "s"), ("sec", 1, 1, "s"), ("second", 1, 1, "s"), ("ms", 1, 1000, "s"), ("millisecond", 1, 1000, "s"),
    ("min", 60, 1, "s"), ("minute", 60, 1, "s"), ("h", 3600, 1, "s"), ("hr", 3600, 1, "s"), ("hour", 3600, 1, "s"),
    ("day", 86400, 1, "s"), ("week", 604_800, 1, "s"), ("year", 1, 1, "year"), ("month", 1, 12, "year"),
    ("l", 1, 1, "l"), ("liter", 1, 1, "l"), ("litre", 1, 1, "l"), ("ml", 1, 1000, "l"), ("milliliter", 1, 1000, "l"),
    ("dollar", 1, 1, "dollar"), ("cent", 1, 100, "dollar"), ("euro", 1, 1, "euro"), ("pence", 1, 100, "sterling"),
    ("unit", 1, 1, "unit"), ("w", 1, 1, "watt"), ("watt", 1, 1, "watt"), ("kw", 1000, 1, "watt"),
];

/// The unit of a sign of currency.
pub(crate) fn currency(sign: char) -> Symbol {
    symbol(match sign {
        '$' => "dollar^1",
        '\u{20ac}' => "euro^1",
        '\u{a3}' => "sterling^1",
        _ => "yen^1",
    })
}

/// The unit of an angle, or of a temperature on a scale.
pub(crate) fn degree(scale: Option<char>) -> Symbol {
    match scale {
        None => symbol("degree"),
        Some(scale) => symbol(&format!("degree {scale}")),
    }
}

/// Reads a unit between a token and the end of its statement: how many tokens it takes, and what it is. None, or no
/// tokens, where there is none.
pub(crate) fn read(source: &str, tokens: &Tokens, from: usize) -> Option<(usize, Unit)> {
    let first = tokens.list.get(from)?;
    let is_marked = matches!(first.tok, Tok::Text(..));
    if !is_marked && !matches!(first.tok, Tok::Word(..) | Tok::Letter(_)) {
        return None;
    }
    let mut reader = Reader {
        powers: Vec::new(),
        is_below: false,
        pending: 1,
        words: 0,
    };
    let mut at = from;
    while let Some(token) = tokens.list.get(at) {
        let is_spaced = token.spaced;
        match token.tok {
            Tok::Word(start, end) => {
                reader.word(&source[start as usize..end as usize], is_marked, is_spaced)?;
            }
            Tok::Letter(letter) => {
                let mut buffer = [0; 4];
                reader.word(letter.encode_utf8(&mut buffer), is_marked, is_spaced)?;
            }
            Tok::Text(start, end) => {
                for word in source[start as usize..end as usize].split_whitespace() {
                    reader.word(word.trim_end_matches('.'), true, true)?;
                }
            }
            Tok::Slash if at > from && !reader.is_below => reader.is_below = true,
            Tok::Caret => {
                let (power, length) = power(tokens, at + 1)?;
                let (_, last) = reader.powers.last_mut()?;
                *last *= power;
                at += length;
            }
            Tok::Comma | Tok::Semicolon | Tok::And | Tok::Or | Tok::Row | Tok::Amp | Tok::End => {
                break;
            }
            Tok::Close(_) | Tok::SetClose | Tok::Relation(_) | Tok::Cup => break,
            _ => return None,
        }
        at += 1;
        if at - from > 12 {
            return None;
        }
    }
    Some((at - from, reader.finish()?))
}

/// An exponent of a unit, and its tokens.
fn power(tokens: &Tokens, at: usize) -> Option<(i64, usize)> {
    let tok = |at: usize| tokens.list.get(at).map(|token| token.tok);
    let number = |at: usize| match tok(at) {
        Some(Tok::Num(place, true)) => tokens.numbers[place as usize]
            .to_int()
            .filter(|power| (1..=4).contains(power)),
        _ => None,
    };
    match tok(at)? {
        Tok::Open('{') => match tok(at + 1)? {
            Tok::Minus if tok(at + 3)? == Tok::Close('}') => Some((-number(at + 2)?, 4)),
            _ if tok(at + 2)? == Tok::Close('}') => Some((number(at + 1)?, 3)),
            _ => None,
        },
        Tok::Minus => Some((-number(at + 1)?, 2)),
        _ => Some((number(at)?, 1)),
    }
}

struct Reader {
    powers: Vec<(String, i64)>,
    is_below: bool,
    /// Power of the next word: 2 after "square".
    pending: i64,
    words: usize,
}

impl Reader {
    fn word(&mut self, word: &str, is_marked: bool, is_spaced: bool) -> Option<()> {
        if word == "per" {
            if self.is_below || self.powers.is_empty() {
                return None;
            }
            self.is_below = true;
            return Some(());
        }
        if let Some((above, below)) = word.split_once('/') {
            if self.is_below {
                return None;
            }
            self.word(above, is_marked, is_spaced)?;
            self.is_below = true;
            return self.word(below, is_marked, is_spaced);
        }
        let is_first = self.powers.is_empty() && self.words == 0;
        if !is_unit_word(word, is_marked, is_spaced || !is_first) {
            return None;
        }
        self.words += 1;
        match word.to_ascii_lowercase().as_str() {
            "square" | "sq" => self.pending = 2,
            "cubic" | "cu" => self.pending = 3,
            _ => {
                let sign = if self.is_below { -1 } else { 1 };
                let power = sign * std::mem::replace(&mut self.pending, 1);
                // What the word is comes last, when its exponent is known.
                self.powers.push((word.to_owned(), power));
            }
        }
        (self.words <= 4).then_some(())
    }

    fn finish(self) -> Option<Unit> {
        if self.powers.is_empty() || self.pending != 1 {
            return None;
        }
        let mut factor = Rat::ONE;
        let mut bases: Vec<(String, i64)> = Vec::with_capacity(self.powers.len());
        for (name, power) in self.powers {
            let (base, above, below) = base(&name);
            let one = Rat::ratio(above.into(), below.into())?;
            factor = factor.mul(&one.pow(power)?);
            match bases.iter_mut().find(|(known, _)| *known == base) {
                Some((_, total)) => *total += power,
                None => bases.push((base, power)),
            }
        }
        bases.sort();
        let mut spelled = String::new();
        for (base, power) in bases {
            spelled.push_str(&base);
            spelled.push('^');
            spelled.push_str(&power.to_string());
        }
        Some(Unit {
            factor,
            dimension: symbol(&spelled),
        })
    }
}

/// The base unit of a word, and how many of it the word says.
fn base(word: &str) -> (String, i64, i64) {
    let lower = word.to_ascii_lowercase();
    let stem = match lower.strip_suffix('s') {
        Some(stem) if stem.len() >= 2 => stem,
        _ => lower.as_str(),
    };
    let stem = if stem == "inche" { "inch" } else { stem };
    match KNOWN.iter().find(|known| known.0 == stem) {
        Some(&(_, above, below, base)) => (base.to_owned(), above, below),
        None => (stem.to_owned(), 1, 1),
    }
}

fn is_unit_word(word: &str, is_marked: bool, is_spaced: bool) -> bool {
    let lower = word.to_ascii_lowercase();
    if !word.bytes().all(|byte| byte.is_ascii_alphabetic()) || NO_UNITS.contains(&lower.as_str()) {
        return false;
    }
    if is_marked {
        return word.len() > 1 || LETTER_UNITS.contains(&word);
    }
    // One letter without `\text` is a variable as often as a unit (5 m, 5 x), so only listed ones pass, and only apart.
    if SHORT_UNITS.contains(&word) {
        return is_spaced || word.len() > 1;
    }
    is_spaced && word.len() >= 3 && lower.contains(['a', 'e', 'i', 'o', 'u'])
}
