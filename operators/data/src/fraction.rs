//! Shares and rates as the user writes them, kept exactly: `0.75`, `1`, or `"2/3"`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Digits that a number may have.
const MOST_DIGITS: usize = 18;

/// A rational number that is not negative, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction {
    top: u64,
    bottom: u64,
}

impl Fraction {
    /// Nothing.
    pub const ZERO: Self = Self { top: 0, bottom: 1 };
    /// The whole.
    pub const ONE: Self = Self { top: 1, bottom: 1 };

    /// `top / bottom`; nothing when the latter is 0.
    #[must_use]
    pub fn new(top: u64, bottom: u64) -> Option<Self> {
        let divisor = gcd(top, bottom);
        (bottom > 0).then(|| Self {
            top: top / divisor,
            bottom: bottom / divisor,
        })
    }

    /// Whether it is 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.top == 0
    }

    /// How `part / whole` compares with it; exact. `whole` is not 0.
    #[must_use]
    pub fn compare(self, part: u64, whole: u64) -> Ordering {
        let left = u128::from(part) * u128::from(self.bottom);
        left.cmp(&(u128::from(self.top) * u128::from(whole)))
    }

    /// The sum, if it can be told exactly.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.bottom, other.bottom);
        let scale = other.bottom / divisor;
        let top = self
            .top
            .checked_mul(scale)?
            .checked_add(other.top.checked_mul(self.bottom / divisor)?)?;
        Self::new(top, self.bottom.checked_mul(scale)?)
    }

    /// Of `whole` things so many, rounded down. Never more than `whole` for fractions up to 1.
    #[must_use]
    pub fn floor_of(self, whole: u64) -> u64 {
        let product = u128::from(self.top) * u128::from(whole) / u128::from(self.bottom);
        u64::try_from(product).unwrap_or(u64::MAX)
    }

    /// Some fractions as whole numbers in the same proportion; nothing when these become too large.
    pub(crate) fn proportions(fractions: &[Self]) -> Option<Vec<u64>> {
        let mut common = 1_u64;
        for fraction in fractions {
            common = (common / gcd(common, fraction.bottom)).checked_mul(fraction.bottom)?;
        }
        let whole = fractions
            .iter()
            .map(|fraction| fraction.top.checked_mul(common / fraction.bottom));
        whole.collect()
    }
}

impl Ord for Fraction {
    fn cmp(&self, other: &Self) -> Ordering {
        other.compare(self.top, self.bottom)
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bottom == 1 {
            write!(formatter, "{}", self.top)
        } else {
            write!(formatter, "{}/{}", self.top, self.bottom)
        }
    }
}

/// A text that is no share or rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFraction(String);

impl fmt::Display for NoFraction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "`{}` is neither a number such as 0.75 nor a fraction such as \"2/3\": write one of them, from 0 on and with at most {MOST_DIGITS} digits",
            self.0
        )
    }
}

impl std::error::Error for NoFraction {}

impl FromStr for Fraction {
    type Err = NoFraction;

    fn from_str(text: &str) -> Result<Self, NoFraction> {
        let parse = || {
            if let Some((top, bottom)) = text.split_once('/') {
                return Self::new(digits(top.trim())?, digits(bottom.trim())?);
            }
            let (whole, decimals) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
            let bottom = 10_u64.checked_pow(u32::try_from(decimals.len()).ok()?)?;
            let all = format!("{whole}{decimals}");
            let all = all.trim_start_matches('0');
            let top = if all.is_empty() && !(whole.is_empty() && decimals.is_empty()) {
                0
            } else {
                digits(all)?
            };
            Self::new(top, bottom)
        };
        parse().ok_or_else(|| NoFraction(text.to_owned()))
    }
}

fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty()
        && text.len() <= MOST_DIGITS
        && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn gcd(left: u64, right: u64) -> u64 {
    let (mut left, mut right) = (left, right);
    while right > 0 {
        (left, right) = (right, left % right);
    }
    left.max(1)
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Fraction;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number such as 0.75 or a fraction such as 2/3")
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Fraction, E> {
                // The shortest decimal that gives this number is what was written.
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Fraction, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Fraction, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Fraction, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for Fraction {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Fraction".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number from 0, such as `0.75`, or a fraction, such as `\"2/3\"`; kept exactly.",
            "type": ["number", "string"],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<Fraction, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_are_what_was_written() {
        for (value, text) in [
            (json!(0.1), "1/10"),
            (json!(0.3333), "3333/10000"),
            (json!(1.0), "1"),
            (json!(0), "0"),
            (json!("2/6"), "1/3"),
            (json!("0.750"), "3/4"),
            (json!(1e-7), "1/10000000"),
            (json!(".5"), "1/2"),
        ] {
            let fraction = read(value.clone()).unwrap();
            assert_eq!(fraction.to_string(), text, "{value}");
            assert_eq!(read(json!(fraction)).unwrap(), fraction);
        }
        for wrong in [
            json!(-0.5),
            json!("1/0"),
            json!(""),
            json!("."),
            json!("half"),
            json!(f64::MAX),
            json!("1/+2"),
            json!(true),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn comparisons_are_exact() {
        let third = Fraction::new(1, 3).unwrap();
        assert_eq!(third.compare(1, 3), Ordering::Equal);
        assert_eq!(third.compare(333_333_333, 1_000_000_000), Ordering::Less);
        assert_eq!(third.compare(u64::MAX / 3 + 1, u64::MAX), Ordering::Greater);
        // 0.1 + 0.2 is 0.3.
        let sum = "0.1"
            .parse::<Fraction>()
            .unwrap()
            .plus("0.2".parse().unwrap());
        assert_eq!(sum, "0.3".parse().ok());
        assert!(Fraction::ZERO < third && third < Fraction::ONE);
    }

    #[test]
    fn proportions_are_whole_numbers() {
        let fractions = ["0.5", "1/3", "0"].map(|text| text.parse().unwrap());
        assert_eq!(Fraction::proportions(&fractions), Some(vec![3, 2, 0]));
        assert_eq!(Fraction::new(2, 3).unwrap().floor_of(10), 6);
        assert_eq!(Fraction::ONE.floor_of(u64::MAX), u64::MAX);
    }
}
