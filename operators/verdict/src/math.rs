//! Equality of two mathematical answers: as exact rational numbers with units, else as text.

use num_bigint::BigInt;
use num_rational::BigRational;

use crate::clean::{TEXT_MARK, clean, comparable};
use crate::number::{NumberFault, number};
use crate::unit::{Suffix, suffix};
use crate::verify::{GoldError, Outcome};

/// An answer in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// A number, perhaps with a unit.
    Number(BigRational, Option<String>),
    /// Anything else.
    Text(String),
}

/// Whether a gold answer can be compared with anything.
pub(crate) fn check(gold: &str) -> Result<(), GoldError> {
    let cleaned = clean(gold);
    if comparable(&cleaned).is_empty() {
        return Err(GoldError::Empty);
    }
    if !is_balanced(gold) {
        return Err(GoldError::Unbalanced);
    }
    match value(&cleaned) {
        Ok((_, Value::Text(text))) if text.is_empty() => Err(GoldError::Empty),
        Ok(_) => Ok(()),
        Err(NumberFault::TooLarge) => Err(GoldError::TooLarge),
        Err(NumberFault::ZeroDenominator) => Err(GoldError::ZeroDenominator),
    }
}

/// Compares a gold answer that passed [`check`] with an answer.
pub(crate) fn compare(gold: &str, answer: &str) -> Outcome {
    let Ok((gold_name, gold)) = value(&clean(gold)) else {
        return Outcome::Failed;
    };
    let (name, answer) = match value(&clean(answer)) {
        Ok(said) => said,
        Err(NumberFault::TooLarge) => return Outcome::TimedOut,
        Err(NumberFault::ZeroDenominator) => return Outcome::Wrong,
    };
    let is_equal = match (gold, answer) {
        (Value::Number(left, left_unit), Value::Number(right, right_unit)) => {
            left == right && agree(left_unit.as_ref(), right_unit.as_ref())
        }
        (Value::Text(left), Value::Text(right)) => left == right,
        (Value::Number(..), Value::Text(_)) | (Value::Text(_), Value::Number(..)) => false,
    };
    if is_equal && agree(gold_name.as_ref(), name.as_ref()) {
        Outcome::Correct
    } else {
        Outcome::Wrong
    }
}

/// A unit or a variable may be left out, but two different ones are two different quantities.
fn agree<T: PartialEq>(left: Option<&T>, right: Option<&T>) -> bool {
    left.is_none() || right.is_none() || left == right
}

/// What an answer says, and of which variable, where it names one.
fn value(cleaned: &str) -> Result<(Option<u8>, Value), NumberFault> {
    // A number may stand in a text command from its first digit on.
    let (name, body) = split_assignment(cleaned.trim_start_matches([TEXT_MARK, ' ']));
    if let Some((value, rest)) = number(body.trim_start_matches([TEXT_MARK, ' ']))? {
        let unit = match suffix(rest) {
            Suffix::None => Some((value, None)),
            Suffix::Percent => Some((value / BigInt::from(100), None)),
            Suffix::Unit(unit) => Some((value, Some(unit))),
            Suffix::Other => None,
        };
        if let Some((value, unit)) = unit {
            return Ok((name, Value::Number(value, unit)));
        }
    }
    Ok((name, Value::Text(comparable(body))))
}

/// `x = 5` says 5, of `x`.
fn split_assignment(text: &str) -> (Option<u8>, &str) {
    match text.split_once('=') {
        Some((name, value)) if !value.trim().is_empty() => match name.trim().as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => {
                (Some(letter.to_ascii_lowercase()), value.trim_start())
            }
            _ => (None, text),
        },
        _ => (None, text),
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
