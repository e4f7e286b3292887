//! The part `language`: whether a completion keeps to the expected scripts.

use std::sync::LazyLock;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Faults;

/// The share of letters that are of the expected scripts, from 0 to 1. Not counted are tags such as `<think>`, LaTeX
/// commands such as `\frac`, single Latin and Greek letters (variables), and letters of no script. A completion without a letter
/// that counts has 1.
///
/// # Source
/// The share of words in the target language is the language consistency reward of DeepSeek-R1 (arXiv 2501.12948), section 2.3.2;
/// letters by script need no model and no dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Language {
    /// Weight of the part.
    pub weight: f64,
    /// Scripts of the expected language: `[latin]` for English, `[han, hiragana, katakana]` for Japanese.
    pub scripts: Vec<Script>,
}

/// A script, as Unicode has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names of scripts say it")]
pub enum Script {
    Latin,
    Greek,
    Cyrillic,
    Armenian,
    Georgian,
    Hebrew,
    Arabic,
    Ethiopic,
    Devanagari,
    Bengali,
    Gurmukhi,
    Gujarati,
    Tamil,
    Telugu,
    Kannada,
    Malayalam,
    Sinhala,
    Thai,
    Lao,
    Khmer,
    Myanmar,
    Hangul,
    Hiragana,
    Katakana,
    Han,
}

impl Script {
    const ALL: [Self; 25] = [
        Self::Latin,
        Self::Greek,
        Self::Cyrillic,
        Self::Armenian,
        Self::Georgian,
        Self::Hebrew,
        Self::Arabic,
        Self::Ethiopic,
        Self::Devanagari,
        Self::Bengali,
        Self::Gurmukhi,
        Self::Gujarati,
        Self::Tamil,
        Self::Telugu,
        Self::Kannada,
        Self::Malayalam,
        Self::Sinhala,
        Self::Thai,
        Self::Lao,
        Self::Khmer,
        Self::Myanmar,
        Self::Hangul,
        Self::Hiragana,
        Self::Katakana,
        Self::Han,
    ];
}

/// What a letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    Of(Script),
    /// Of a script that no configuration can name.
    Other,
    /// Shared by scripts, so that it says nothing.
    Shared,
}

/// Letters in a row that are of one script: first, last, which.
type Run = (char, char, Letter);

/// All letters beyond ASCII, in order.
static RUNS: LazyLock<Vec<Run>> = LazyLock::new(|| {
    let letters: String = ('\u{80}'..=char::MAX)
        .filter(|letter| letter.is_alphabetic())
        .collect();
    let mut runs = Vec::new();
    let mut find = |class: &str, letter: Letter| {
        let pattern = Regex::new(&format!("{class}+")).expect("the class is one of Unicode's");
        for found in pattern.find_iter(&letters) {
            let text = found.as_str();
            let ends = text.chars().next().zip(text.chars().next_back());
            let (first, last) = ends.expect("a match has a letter");
            runs.push((first, last, letter));
        }
    };
    for script in Script::ALL {
        find(&format!("\\p{{{script:?}}}"), Letter::Of(script));
    }
    find(r"[\p{Common}\p{Inherited}]", Letter::Shared);
    runs.sort_unstable_by_key(|run| run.0);
    runs
});

/// What a letter is.
fn letter(letter: char) -> Letter {
    if letter.is_ascii() {
        return Letter::Of(Script::Latin);
    }
    let after = RUNS.partition_point(|run| run.0 <= letter);
    match after.checked_sub(1).map(|place| RUNS[place]) {
        Some((_, last, of)) if letter <= last => of,
        _ => Letter::Other,
    }
}

impl Language {
    pub(super) fn check(&self, faults: &mut Faults) {
        faults.finite("language.weight", self.weight);
        if self.scripts.is_empty() {
            faults.range("language.scripts", "names no script");
        }
    }

    pub(super) fn value(&self, text: &str) -> f64 {
        let mut counts = Counts::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if first.is_alphabetic() {
                let end = rest
                    .find(|letter: char| !letter.is_alphabetic())
                    .unwrap_or(rest.len());
                counts.word(&rest[..end], &self.scripts);
                rest = &rest[end..];
                continue;
            }
            let skipped = match first {
                '\\' => command(rest),
                '<' => tag(rest),
                _ => 0,
            };
            rest = &rest[skipped.max(first.len_utf8())..];
        }
        if counts.letters == 0 {
            return 1.0;
        }
        counts.expected as f64 / counts.letters as f64
    }
}

#[derive(Default)]
struct Counts {
    expected: usize,
    letters: usize,
}

impl Counts {
    /// Counts letters that stand together, script by script: a Latin letter between two Han letters stands alone.
    fn word(&mut self, word: &str, scripts: &[Script]) {
        let mut letters = word.chars().map(letter).peekable();
        while let Some(first) = letters.next() {
            let mut length = 1;
            while letters.next_if_eq(&first).is_some() {
                length += 1;
            }
            match first {
                Letter::Shared => {}
                Letter::Of(Script::Latin | Script::Greek) if length == 1 => {}
                Letter::Other => self.letters += length,
                Letter::Of(script) => {
                    self.letters += length;
                    if scripts.contains(&script) {
                        self.expected += length;
                    }
                }
            }
        }
    }
}

/// Bytes of the LaTeX command that a text starts with: the backslash and its letters.
fn command(text: &str) -> usize {
    let name = &text[1..];
    1 + name
        .find(|letter: char| !letter.is_ascii_alphabetic())
        .unwrap_or(name.len())
}

/// Longest name of a tag, so that a lone `<` costs nothing.
const TAG_BYTES: usize = 32;

/// Bytes of the tag that a text starts with, or 0.
fn tag(text: &str) -> usize {
    let bytes = text.as_bytes();
    let start = if bytes.get(1) == Some(&b'/') { 2 } else { 1 };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let name = bytes[start..]
        .iter()
        .take(TAG_BYTES)
        .take_while(|byte| is_name(**byte))
        .count();
    if name > 0 && bytes.get(start + name) == Some(&b'>') {
        start + name + 1
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(scripts: &[Script], text: &str) -> f64 {
        let language = Language {
            weight: 1.0,
            scripts: scripts.to_vec(),
        };
        language.value(text)
    }

    #[test]
    fn letters_of_other_scripts_lower_the_share() {
        let latin = &[Script::Latin];
        assert_eq!(share(latin, "The answer is 12."), 1.0);
        assert_eq!(share(latin, "Der größte Öltank, naïve"), 1.0);
        assert_eq!(share(latin, "So the sum 是"), 8.0 / 9.0);
        assert_eq!(share(latin, "ответ"), 0.0);
        assert_eq!(share(&[Script::Cyrillic, Script::Latin], "ответ is"), 1.0);
        assert_eq!(share(latin, ""), 1.0);
        assert_eq!(share(latin, "12 + 30 = 42 ✓"), 1.0);
    }

    #[test]
    fn maths_and_tags_are_of_no_language() {
        let han = &[Script::Han];
        let text =
            r"<think>设x和 y，所以 $\frac{x}{y} = \sin α$。</think><answer>\boxed{3}</answer>";
        assert_eq!(share(han, text), 1.0);
        // What only looks like a tag is text.
        assert_eq!(share(han, "三<five or six>"), 1.0 / 10.0);
        assert_eq!(share(han, "三 < nine"), 1.0 / 5.0);
    }

    #[test]
    fn japanese_has_three_scripts_and_a_mark_that_both_syllabaries_share() {
        let text = "コーヒーを三杯のみました";
        let all = [Script::Han, Script::Hiragana, Script::Katakana];
        assert_eq!(share(&all, text), 1.0);
        // Two letters of katakana, six of hiragana, two of han; the two marks count for nobody.
        assert_eq!(share(&[Script::Han], text), 2.0 / 10.0);
    }

    #[test]
    fn every_script_is_told_apart() {
        let samples = [
            'ａ', 'ω', 'ж', 'ա', 'ა', 'א', 'ب', 'አ', 'अ', 'অ', 'ਅ', 'અ', 'அ', 'అ', 'ಅ', 'അ', 'අ',
            'ก', 'ກ', 'ក', 'က', '가', 'あ', 'ア', '漢',
        ];
        for (script, sample) in Script::ALL.into_iter().zip(samples) {
            assert_eq!(letter(sample), Letter::Of(script), "{sample}");
        }
        assert_eq!(letter('ᠠ'), Letter::Other, "Mongolian");
        assert_eq!(letter('𝑥'), Letter::Shared, "mathematical");
    }

    #[test]
    fn every_letter_is_where_the_tables_of_unicode_have_it() {
        let han = Regex::new(r"^\p{Han}$").unwrap();
        let mut text = [0; 4];
        for each in ('\u{2e80}'..'\u{a4d0}').filter(|each| each.is_alphabetic()) {
            let expected = han.is_match(each.encode_utf8(&mut text));
            assert_eq!(letter(each) == Letter::Of(Script::Han), expected, "{each}");
        }
    }
}
