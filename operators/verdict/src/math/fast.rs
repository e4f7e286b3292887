//! The numbers that nearly all answers are, without a tree: digits, a sign, a point, a stroke.

use super::rat::Rat;

/// `-12`, `3.5`, `7/8`: nothing before, behind or between. None for whatever else, numbers included.
pub(crate) fn number(text: &str) -> Option<Rat> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes.len() > 24 {
        return None;
    }
    let is_negative = bytes[0] == b'-';
    let (value, decimals, rest) = digits(&bytes[usize::from(is_negative)..])?;
    let sign = if is_negative { -1 } else { 1 };
    match rest {
        [] if decimals == 0 => Some(Rat::Small(sign * value, 1)),
        [] => Rat::ratio((sign * value).into(), 10_i128.pow(decimals)),
        [b'/', below @ ..] if decimals == 0 => match digits(below)? {
            (below, 0, []) => Rat::ratio((sign * value).into(), below.into()),
            _ => None,
        },
        _ => None,
    }
}

/// Up to eighteen digits, how many of them stand behind a point, and the rest.
fn digits(bytes: &[u8]) -> Option<(i64, u32, &[u8])> {
    let mut value = 0_i64;
    let mut decimals = None;
    let mut count = 0;
    let mut end = 0;
    for byte in bytes {
        match byte {
            b'0'..=b'9' => {
                value = value * 10 + i64::from(byte - b'0');
                count += 1;
                decimals = decimals.map(|decimals| decimals + 1);
            }
            b'.' if decimals.is_none() && count > 0 => decimals = Some(0),
            _ => break,
        }
        end += 1;
        if count > 18 {
            return None;
        }
    }
    // A point at the end is a full stop, which the parser knows.
    if count == 0 || decimals == Some(0) {
        return None;
    }
    Some((value, decimals.unwrap_or(0), &bytes[end..]))
}
