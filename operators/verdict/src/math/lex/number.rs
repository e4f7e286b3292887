//! Numbers as people write them: groups of digits, decimals, repeating decimals, exponents.

use super::{LexFault, Lexer, MAX_DIGITS, Tok};
use crate::math::rat::Rat;

impl Lexer<'_> {
    /// A number: groups of digits, a decimal point, an exponent.
    pub(super) fn number(&mut self, end: usize) -> Result<(), LexFault> {
        let start = self.at;
        let count = |at: usize| {
            let rest = &self.bytes[at.min(end)..end];
            rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
        };
        let first = count(start);
        let mut digits: Vec<u8> = Vec::new();
        let mut at = start + first;
        let mut plain = true;
        if (1..=3).contains(&first) && self.bytes[start] != b'0' {
            while let Some(length) = self.separator(at, end)
                && count(at + length) == 3
                && (self.depth == 0
                    || self.bytes[at] != b','
                    || &self.bytes[at + length..at + length + 3] == b"000")
            {
                if digits.is_empty() {
                    digits.extend_from_slice(&self.bytes[start..at]);
                }
                digits.extend_from_slice(&self.bytes[at + length..at + length + 3]);
                at += length + 3;
            }
        }
        let mut decimals = 0;
        let mut span = start..at;
        if self.bytes.get(at) == Some(&b'.') && at < end {
            let more = count(at + 1);
            let repeated = self.repeated(at + 1 + more, end);
            // A point that no digit follows ends the sentence.
            if more > 0 || repeated.is_some() {
                plain = false;
                decimals = more;
                if digits.is_empty() {
                    digits.extend_from_slice(&self.bytes[start..at]);
                }
                digits.extend_from_slice(&self.bytes[at + 1..at + 1 + more]);
                at += 1 + more;
                if let Some((block, length)) = repeated {
                    return self.repeating(start, &digits, decimals, block, at + length);
                }
            } else if self.bytes.get(at + 1) != Some(&b'.') {
                at += 1;
            } else {
                return Err(LexFault::Unknown);
            }
        }
        if digits.is_empty() {
            span.end = span.end.min(at);
            digits.extend_from_slice(&self.bytes[span]);
        }
        if digits.len() > MAX_DIGITS {
            return Err(LexFault::TooLarge);
        }
        let mut value = Rat::from_digits(&digits, decimals);
        if let Some((exponent, length)) = self.exponent(at, end)? {
            plain = false;
            let power = Rat::int(10).pow(exponent).ok_or(LexFault::TooLarge)?;
            value = value.mul(&power);
            at += length;
        }
        self.at = at;
        self.out.numbers.push(value);
        let place = self.out.numbers.len() as u32 - 1;
        self.push(Tok::Num(place, plain), start);
        Ok(())
    }

    /// The digits under a bar, and the length of the command.
    fn repeated(&self, at: usize, end: usize) -> Option<(std::ops::Range<usize>, usize)> {
        let rest = &self.bytes[at.min(end)..end];
        let name = [&b"\\overline{"[..], b"\\bar{"]
            .into_iter()
            .find(|name| rest.starts_with(name))?;
        let digits = rest[name.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let length = name.len() + digits + 1;
        (digits > 0 && rest.get(length - 1) == Some(&b'}'))
            .then_some((at + name.len()..at + name.len() + digits, length))
    }

    fn repeating(
        &mut self,
        start: usize,
        digits: &[u8],
        decimals: usize,
        block: std::ops::Range<usize>,
        after: usize,
    ) -> Result<(), LexFault> {
        if digits.len() + block.len() > 200 {
            return Err(LexFault::TooLarge);
        }
        let block = &self.bytes[block];
        let plain = Rat::from_digits(digits, decimals);
        // 0.00ddd... is d / (10^r - 1) / 10^decimals.
        let nines = vec![b'9'; block.len()];
        let tail = Rat::from_digits(block, 0)
            .div(&Rat::from_digits(&nines, 0))
            .and_then(|tail| tail.div(&Rat::int(10).pow(decimals as i64)?))
            .ok_or(LexFault::TooLarge)?;
        self.at = after;
        self.out.numbers.push(plain.add(&tail));
        let place = self.out.numbers.len() as u32 - 1;
        self.push(Tok::Num(place, false), start);
        Ok(())
    }

    /// Length of what may set groups of three digits apart.
    fn separator(&self, at: usize, end: usize) -> Option<usize> {
        let rest = &self.bytes[at..end];
        for separator in [
            &b",\\! "[..],
            b",\\!",
            b"{,}",
            b"\\,",
            b"{,\\!}",
            b"\\ ",
            b"\xe2\x80\x89",
            b"\xe2\x80\xaf",
            b"\xc2\xa0",
            b",",
        ] {
            if rest.starts_with(separator) {
                return Some(separator.len());
            }
        }
        // A plain space does so only where nothing else stands before the number.
        let mut before = self.out.list.iter();
        let is_alone = self.depth == 0 && before.all(|token| token.tok == Tok::Open('{'));
        (is_alone && rest.first() == Some(&b' ')).then_some(1)
    }

    /// `e-3`, `E+3`: the exponent and its length.
    fn exponent(&self, at: usize, end: usize) -> Result<Option<(i64, usize)>, LexFault> {
        let rest = &self.bytes[at..end];
        if !matches!(rest.first(), Some(b'e' | b'E')) {
            return Ok(None);
        }
        let signs = usize::from(matches!(rest.get(1), Some(b'+' | b'-')));
        let digits = rest[1 + signs..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let length = 1 + signs + digits;
        // `2e3x` is no number, and `2e-3` may be Euler's number less three only with spaces.
        if digits == 0 || rest.get(length).is_some_and(u8::is_ascii_alphabetic) {
            return Ok(None);
        }
        let value: i64 = self.source[at + 1 + signs..at + length]
            .parse()
            .map_err(|_| LexFault::TooLarge)?;
        if value as usize > MAX_DIGITS {
            return Err(LexFault::TooLarge);
        }
        Ok(Some((if rest[1] == b'-' { -value } else { value }, length)))
    }
}
