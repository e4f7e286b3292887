//! Exact rational numbers out of the ways in which answers write them.

use num_bigint::{BigInt, BigUint};
use num_rational::BigRational;
use num_traits::{One, Zero};

use crate::clean::THIN_SPACE;

/// Most digits of a number, exponent included: `1e999` has a thousand.
pub(crate) const MAX_DIGITS: usize = 1000;

/// Why a text that begins like a number is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberFault {
    /// Beyond [`MAX_DIGITS`].
    TooLarge,
    /// A fraction over zero.
    ZeroDenominator,
}

/// Reads a number at the start of a cleaned answer. Returns it with the rest of the text; None when there is none.
pub(crate) fn number(text: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    let (is_negative, rest) = sign(text.trim_start());
    let rest = rest
        .trim_start_matches(['$', '\u{20ac}', '\u{a3}', '\u{a5}'])
        .trim_start();
    let (is_negative, rest) = if is_negative {
        (true, rest)
    } else {
        sign(rest)
    };
    let Some((magnitude, rest)) = magnitude(rest.trim_start())? else {
        return Ok(None);
    };
    Ok(Some((
        if is_negative { -magnitude } else { magnitude },
        rest,
    )))
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// A fraction, a decimal, a ratio of two decimals, a mixed number, or a decimal times a power of ten.
fn magnitude(text: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    if let Some(rest) = text.strip_prefix("\\frac") {
        return fraction(rest);
    }
    let Some((value, rest)) = decimal(text)? else {
        return Ok(None);
    };
    let next = rest.trim_start();
    if let Some(after) = next.strip_prefix('/')
        && let Some((denominator, rest)) = decimal(after.trim_start())?
    {
        return ratio(value, denominator).map(|value| Some((value, rest)));
    }
    if let Some(after) = next.strip_prefix(['\u{d7}', '*'])
        && let Some(power) = after.trim_start().strip_prefix("10^")
    {
        return scientific(value, power);
    }
    if value.is_integer() && value != BigRational::zero() {
        return mixed(value, rest);
    }
    Ok(Some((value, rest)))
}

/// An integer followed by a proper fraction is their sum.
fn mixed(whole: BigRational, rest: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    // Five times seven halves is written like five and seven halves, so only a proper fraction is added.
    let sum = |part: BigRational, rest| {
        let is_proper = part > BigRational::zero() && part < BigRational::one();
        is_proper.then(|| (&whole + part, rest))
    };
    let next = rest.trim_start();
    if let Some(after) = next.strip_prefix("\\frac") {
        return Ok(fraction(after)?.and_then(|(part, rest)| sum(part, rest)));
    }
    if next.len() < rest.len()
        && let Some((numerator, after)) = decimal(next)?
        && let Some(after) = after.strip_prefix('/')
        && let Some((denominator, rest)) = decimal(after)?
    {
        return ratio(numerator, denominator).map(|part| sum(part, rest));
    }
    Ok(Some((whole, rest)))
}

fn scientific(value: BigRational, power: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    let (body, rest) = match power.strip_prefix('{') {
        Some(inner) => match inner.split_once('}') {
            Some(parts) => parts,
            None => return Ok(None),
        },
        None => power.split_at(
            power.len()
                - power
                    .trim_start_matches(|c: char| c.is_ascii_digit() || c == '-')
                    .len(),
        ),
    };
    let Ok(exponent) = body.trim().trim_start_matches('+').parse::<i64>() else {
        return Ok(None);
    };
    Ok(Some((value * power_of_ten(exponent)?, rest)))
}

/// `{a}{b}` or `ab` after `\frac`.
fn fraction(text: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    let Some((numerator, rest)) = argument(text.trim_start())? else {
        return Ok(None);
    };
    let Some((denominator, rest)) = argument(rest.trim_start())? else {
        return Ok(None);
    };
    ratio(numerator, denominator).map(|value| Some((value, rest)))
}

/// A decimal in braces, or one digit.
fn argument(text: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    let Some(inner) = text.strip_prefix('{') else {
        let Some(digit) = text.chars().next().and_then(|c| c.to_digit(10)) else {
            return Ok(None);
        };
        return Ok(Some((BigRational::from_integer(digit.into()), &text[1..])));
    };
    let (is_negative, inner) = sign(inner.trim_start());
    let Some((value, rest)) = decimal(inner.trim_start())? else {
        return Ok(None);
    };
    let Some(rest) = rest.trim_start().strip_prefix('}') else {
        return Ok(None);
    };
    Ok(Some((if is_negative { -value } else { value }, rest)))
}

fn ratio(numerator: BigRational, denominator: BigRational) -> Result<BigRational, NumberFault> {
    if denominator.is_zero() {
        Err(NumberFault::ZeroDenominator)
    } else {
        Ok(numerator / denominator)
    }
}

/// Digits with thousands separators, a decimal point, an exponent: `1,234.5`, `.5`, `5.`, `1e-3`.
fn decimal(text: &str) -> Result<Option<(BigRational, &str)>, NumberFault> {
    let (mut digits, rest) = integer_digits(text);
    let mut scale = 0_usize;
    let mut rest = rest;
    if let Some(after) = rest.strip_prefix('.') {
        let count = after.bytes().take_while(u8::is_ascii_digit).count();
        if count > 0 || !digits.is_empty() {
            digits.push_str(&after[..count]);
            scale = count;
            rest = &after[count..];
        }
    }
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > MAX_DIGITS {
        return Err(NumberFault::TooLarge);
    }
    let unscaled =
        BigUint::parse_bytes(digits.as_bytes(), 10).map_or_else(BigInt::zero, BigInt::from);
    let (exponent, rest) = exponent(rest)?;
    let value = BigRational::from_integer(unscaled)
        * power_of_ten(-i64::try_from(scale).unwrap_or(i64::MAX))?;
    Ok(Some((value * power_of_ten(exponent)?, rest)))
}

/// Digits before the point. Groups of three may be set apart by `,`, `{,}` or a thin space, one kind per number.
fn integer_digits(text: &str) -> (String, &str) {
    let count = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let first = count(text);
    let mut digits = text[..first].to_owned();
    let mut rest = &text[first..];
    if !(1..=3).contains(&first) || digits.starts_with('0') {
        return (digits, rest);
    }
    let separators = [",", "{,}", "\u{2009}"];
    debug_assert!(
        separators[2].starts_with(THIN_SPACE),
        "the thin space is the one that cleaning writes"
    );
    for separator in separators {
        while let Some(group) = rest.strip_prefix(separator)
            && count(group) == 3
        {
            digits.push_str(&group[..3]);
            rest = &group[3..];
        }
        if digits.len() > first {
            break;
        }
    }
    (digits, rest)
}

/// `e-3` or `E+3`.
fn exponent(text: &str) -> Result<(i64, &str), NumberFault> {
    let Some(after) = text.strip_prefix(['e', 'E']) else {
        return Ok((0, text));
    };
    let (is_negative, body) = sign(after);
    let count = body.bytes().take_while(u8::is_ascii_digit).count();
    if count == 0 {
        return Ok((0, text));
    }
    let value: i64 = body[..count].parse().map_err(|_| NumberFault::TooLarge)?;
    Ok((if is_negative { -value } else { value }, &body[count..]))
}

fn power_of_ten(exponent: i64) -> Result<BigRational, NumberFault> {
    let size = u32::try_from(exponent.unsigned_abs())
        .ok()
        .filter(|size| *size as usize <= MAX_DIGITS)
        .ok_or(NumberFault::TooLarge)?;
    let power = BigRational::from_integer(BigInt::from(10).pow(size));
    Ok(if exponent < 0 {
        BigRational::one() / power
    } else {
        power
    })
}
