//! Multiple choice: which letters an answer names.

use crate::text::undressed;

/// Words that may stand beside the letters.
const FILLERS: &[&str] = &[
    "option", "options", "choice", "choices", "answer", "answers", "the", "is", "are", "correct",
    "and", "text", "textbf", "mathrm", "boxed",
];

/// The letters that an answer names, as bits from `A` on; none where it names none, or says anything else before them.
pub(crate) fn letters(answer: &str, allowed: u32) -> Option<u32> {
    let text = undressed(answer);
    let bytes = text.as_bytes();
    let mut chosen = 0_u32;
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if !bytes[at].is_ascii_alphanumeric() {
            if bytes[at] >= 128 {
                return None;
            }
            at += 1;
            continue;
        }
        while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
            at += 1;
        }
        let word = &text[start..at];
        let lower = word.to_ascii_lowercase();
        if FILLERS.contains(&lower.as_str()) && word.len() > 1 {
            continue;
        }
        let set = set(word, allowed)?;
        if set & chosen != 0 {
            return None;
        }
        chosen |= set;
        // `B. The blue one`, `(B) the blue one`: what is chosen is said; the rest is its text.
        let rest = text[at..].trim_start();
        let closes = bytes
            .get(at)
            .is_some_and(|byte| matches!(byte, b'.' | b':' | b')'));
        let next = rest.trim_start_matches(['.', ':', ')', ' ', '}']);
        let next_word: String = next
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let says_more = !next_word.is_empty()
            && self::set(&next_word, allowed).is_none()
            && !["and", "or"].contains(&next_word.to_ascii_lowercase().as_str());
        if closes && says_more {
            break;
        }
    }
    (chosen != 0).then_some(chosen)
}

/// One letter, or several different capitals in a row.
fn set(word: &str, allowed: u32) -> Option<u32> {
    let bit = |byte: u8| 1_u32 << (byte.to_ascii_uppercase() - b'A');
    let all_letters = word.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !all_letters
        || word.len() > 10
        || (word.len() > 1 && !word.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        return None;
    }
    let mut set = 0;
    for byte in word.bytes() {
        if set & bit(byte) != 0 {
            return None;
        }
        set |= bit(byte);
    }
    (set & !allowed == 0).then_some(set)
}

/// The letters of an option as bits; all when there is none.
pub(crate) fn allowed(letters: Option<&str>) -> u32 {
    let Some(letters) = letters else {
        return (1 << 26) - 1;
    };
    letters
        .bytes()
        .filter(u8::is_ascii_alphabetic)
        .fold(0, |set, byte| set | 1 << (byte.to_ascii_uppercase() - b'A'))
}

/// The letters of a set.
pub(crate) fn spelled(set: u32) -> String {
    (b'A'..=b'Z')
        .filter(|letter| set & 1 << (letter - b'A') != 0)
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_found_however_they_are_written() {
        let all = allowed(None);
        for (text, expected) in [
            ("B", "B"),
            ("(b)", "B"),
            ("\\text{(B)}", "B"),
            ("B.", "B"),
            ("B) the blue one", "B"),
            ("(C) 12 cm", "C"),
            ("Option D", "D"),
            ("A, C", "AC"),
            ("C and A", "AC"),
            ("(A)(C)", "AC"),
            ("ACD", "ACD"),
            ("\\textbf{E}", "E"),
        ] {
            assert_eq!(
                letters(text, all).map(spelled).as_deref(),
                Some(expected),
                "{text}"
            );
        }
        for text in ["", "blue", "12", "A or B", "AA", "not B", "none"] {
            assert_eq!(letters(text, all), None, "{text}");
        }
        assert_eq!(letters("F", allowed(Some("ABCD"))), None);
    }
}
