//! What may follow a number without changing it: a unit. Conservative, since a wrong reward costs more than a missed one.

use crate::clean::{TEXT_MARK, THIN_SPACE};

/// What follows a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Suffix {
    /// Nothing.
    None,
    /// A percent sign: the number counts hundredths.
    Percent,
    /// A unit, spelled for comparison.
    Unit(String),
    /// Something else: the answer is no plain number.
    Other,
}

/// Units of one or two letters, and others without a vowel. Longer words are recognised by their form.
const SHORT_UNITS: [&str; 27] = [
    "m", "g", "s", "h", "L", "J", "W", "cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "in", "mi",
    "yd", "lb", "lbs", "oz", "hr", "hrs", "min", "mph", "kmh", "Hz",
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
    "sin", "cos", "tan", "cot", "log", "ln", "exp", "cis",
];

/// Reads what follows a number in a cleaned answer.
pub(crate) fn suffix(rest: &str) -> Suffix {
    let is_spaced =
        rest.starts_with(|c: char| c.is_whitespace() || c == THIN_SPACE || c == TEXT_MARK);
    let is_marked = rest.trim_start().starts_with(TEXT_MARK);
    let text: String = rest.replace([TEXT_MARK, THIN_SPACE], " ");
    let text = text.trim().trim_end_matches('.');
    if text.is_empty() {
        return Suffix::None;
    }
    if text == "%" || text.eq_ignore_ascii_case("percent") {
        return Suffix::Percent;
    }
    if let Some(scale) = degrees(text) {
        return scale;
    }
    let (words, power) = split_power(text);
    // The stroke stays: metres a second are not metre-seconds.
    let words = words.replace('/', " / ");
    let words: Vec<&str> = words.split_whitespace().collect();
    let is_word = |word: &&str| is_unit_word(word, is_marked, is_spaced);
    let is_unit = words.first().is_some_and(is_word)
        && words.last().is_some_and(is_word)
        && words.iter().filter(|word| **word != "/").count() <= 4
        && words.iter().all(|word| *word == "/" || is_word(word));
    if !is_unit {
        return Suffix::Other;
    }
    let spelled: Vec<String> = words.iter().map(|word| singular(word)).collect();
    Suffix::Unit(format!("{}{power}", spelled.join(" ")))
}

fn degrees(text: &str) -> Option<Suffix> {
    let after = text.trim_start_matches(['^', '{']).strip_prefix('\u{b0}')?;
    let scale = after.trim_start_matches('}').trim();
    match scale {
        "" => Some(Suffix::Unit("degree".to_owned())),
        "C" | "F" => Some(Suffix::Unit(format!("degree {scale}"))),
        _ => Some(Suffix::Other),
    }
}

/// Splits `cm^2`, `cm^{2}` into the words and the power.
fn split_power(text: &str) -> (&str, &str) {
    for (written, power) in [
        ("^2", "^2"),
        ("^{2}", "^2"),
        ("\u{b2}", "^2"),
        ("^3", "^3"),
        ("^{3}", "^3"),
        ("\u{b3}", "^3"),
    ] {
        if let Some(words) = text.strip_suffix(written) {
            return (words, power);
        }
    }
    (text, "")
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

fn singular(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    match lower.strip_suffix('s') {
        Some(stem) if stem.len() >= 2 => stem.to_owned(),
        _ => lower,
    }
}
