//! Numbers within a tolerance.

use num_rational::BigRational;
use num_traits::{Signed, Zero};

use crate::math::{Measured, measured};
use crate::outcome::{GoldError, Outcome};

/// The number that a gold answer says.
pub(crate) fn gold(text: &str) -> Result<BigRational, GoldError> {
    match measured(text) {
        Measured::Number(value) => Ok(value),
        Measured::TooLarge => Err(GoldError::TooLarge),
        Measured::None => Err(GoldError::NoNumber),
    }
}

/// Compares an answer with the number of a gold answer.
pub(crate) fn compare(
    gold: &BigRational,
    answer: &str,
    absolute: f64,
    relative: f64,
) -> (Outcome, &'static str) {
    let value = match measured(answer) {
        Measured::Number(value) => value,
        Measured::TooLarge => {
            return (Outcome::TimedOut, "the answer is beyond the limits of size");
        }
        Measured::None => return (Outcome::Wrong, "the answer is no number"),
    };
    let limit = |share: f64| BigRational::from_float(share).unwrap_or_else(BigRational::zero);
    let allowed = limit(absolute).max(limit(relative) * gold.abs());
    if (value - gold).abs() <= allowed {
        (Outcome::Correct, "within the tolerance")
    } else {
        (Outcome::Wrong, "beyond the tolerance")
    }
}
