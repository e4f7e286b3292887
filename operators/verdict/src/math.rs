//! Equality of two mathematical answers: as exact rational numbers with units, else as text.

use num_bigint::BigInt;
use num_rational::BigRational;

use crate::clean::{clean, comparable};
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
        Ok(_) => Ok(()),
        Err(NumberFault::TooLarge) => Err(GoldError::TooLarge),
        Err(NumberFault::ZeroDenominator) => Err(GoldError::ZeroDenominator),
    }
}

/// Compares a gold answer that passed [`check`] with an answer.
pub(crate) fn compare(gold: &str, answer: &str) -> Outcome {
    let Ok(gold) = value(&clean(gold)) else {
        return Outcome::Failed;
    };
    let is_equal = match (gold, value(&clean(answer))) {
        (_, Err(NumberFault::TooLarge)) => return Outcome::TimedOut,
        (_, Err(NumberFault::ZeroDenominator)) => false,
        (Value::Number(left, left_unit), Ok(Value::Number(right, right_unit))) => {
            // A unit may be left out, but two different ones are two different quantities.
            left == right
                && (left_unit.is_none() || right_unit.is_none() || left_unit == right_unit)
        }
        (Value::Text(left), Ok(Value::Text(right))) => left == right,
        (Value::Number(..), Ok(Value::Text(_))) | (Value::Text(_), Ok(Value::Number(..))) => false,
    };
    if is_equal {
        Outcome::Correct
    } else {
        Outcome::Wrong
    }
}

fn value(cleaned: &str) -> Result<Value, NumberFault> {
    let body = strip_assignment(cleaned);
    if let Some((value, rest)) = number(body)? {
        match suffix(rest) {
            Suffix::None => return Ok(Value::Number(value, None)),
            Suffix::Percent => return Ok(Value::Number(value / BigInt::from(100), None)),
            Suffix::Unit(unit) => return Ok(Value::Number(value, Some(unit))),
            Suffix::Other => {}
        }
    }
    Ok(Value::Text(comparable(body)))
}

/// `x = 5` says 5.
fn strip_assignment(text: &str) -> &str {
    match text.split_once('=') {
        Some((name, value))
            if matches!(name.trim().as_bytes(), [letter] if letter.is_ascii_alphabetic())
                && !value.trim().is_empty() =>
        {
            value.trim_start()
        }
        _ => text,
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
