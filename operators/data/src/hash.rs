//! Hashes that are the same on every machine and in every version: by folded multiplication, eight bytes at a time. Fast, and
//! good enough for tables and sketches; nobody is kept from making two texts with one hash.

const LENGTH: u64 = 0x9e37_79b9_7f4a_7c15;
const WORD: u64 = 0xd6e8_feb8_6659_fd93;
const LAST: u64 = 0xff51_afd7_ed55_8ccd;

/// Hash of some bytes.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut state = LENGTH.wrapping_mul(bytes.len() as u64 + 1);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), WORD);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(fold(state ^ u64::from_le_bytes(last), LAST))
}

/// A number whose bits all depend on all bits of the given one.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number ^ (number >> 33);
    mixed = mixed.wrapping_mul(LAST);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(WORD);
    mixed ^ (mixed >> 32)
}

/// Both halves of a product, one over the other.
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn near_texts_have_other_hashes_and_all_bits_are_used() {
        let texts: Vec<String> = (0..20_000)
            .flat_map(|number| [format!("p{number}"), format!("prompt-{number:012}")])
            .collect();
        let hashes: BTreeSet<u64> = texts.iter().map(|text| hash(text.as_bytes())).collect();
        assert_eq!(hashes.len(), texts.len());
        for bit in 0..64 {
            let ones = hashes.iter().filter(|hash| *hash >> bit & 1 == 1).count();
            assert!((19_000..21_000).contains(&ones), "bit {bit}: {ones}");
        }
        assert_ne!(hash(b""), hash(b"\0"));
        assert_ne!(hash(b"12345678"), hash(b"12345678\0"));
    }
}
