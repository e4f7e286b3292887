//! Words of a text and their n-grams, for telling near duplicates and copied passages.
//!
//! A word is a run of letters and digits, in lower case; each Chinese or Japanese character is a word, since none are written
//! between spaces; so is each sign of arithmetic. Punctuation, spaces and markup do not count.

use std::cmp::Ordering;

use crate::hash::{hash, mix};

/// Factor between the places of an n-gram.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The words of a text.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// The words with a space between two.
    text: String,
    /// Where each word ends in `text`.
    ends: Vec<u32>,
    hashes: Vec<u64>,
}

impl Words {
    /// The words of some text.
    pub(crate) fn of(text: &str) -> Self {
        let mut words = Self::default();
        words.read(text);
        words
    }

    /// Takes the words of another text in the place of its own.
    pub(crate) fn read(&mut self, text: &str) {
        self.text.clear();
        self.ends.clear();
        self.hashes.clear();
        let mut start = 0;
        for letter in text.chars() {
            match kind(letter) {
                Kind::Letter => {
                    if letter.is_ascii() {
                        self.text.push(letter.to_ascii_lowercase());
                    } else {
                        self.text.extend(letter.to_lowercase());
                    }
                }
                Kind::Alone => {
                    start = self.end_word(start);
                    self.text.push(letter);
                    start = self.end_word(start);
                }
                Kind::Between => start = self.end_word(start),
            }
        }
        self.end_word(start);
        self.text
            .truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// Ends the word that begins there, if it has letters, and says where the next one begins.
    fn end_word(&mut self, start: usize) -> usize {
        if self.text.len() == start {
            return start;
        }
        self.hashes.push(hash(&self.text.as_bytes()[start..]));
        self.ends.push(self.text.len() as u32);
        self.text.push(' ');
        self.text.len()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Some words that follow each other, with a space between two.
    pub(crate) fn span(&self, start: usize, count: usize) -> &str {
        let from = start
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize + 1);
        &self.text[from..self.ends[start + count - 1] as usize]
    }

    /// The hash of every n-gram, by place.
    pub(crate) fn ngrams(&self, n: usize) -> impl Iterator<Item = u64> {
        let top = BASE.wrapping_pow(n as u32);
        let mut sum = 0_u64;
        self.hashes
            .iter()
            .enumerate()
            .filter_map(move |(place, word)| {
                sum = sum.wrapping_mul(BASE).wrapping_add(*word);
                if place >= n {
                    sum = sum.wrapping_sub(self.hashes[place - n].wrapping_mul(top));
                }
                (place + 1 >= n).then(|| mix(sum))
            })
    }

    /// The hash of all words as one n-gram.
    pub(crate) fn whole(&self) -> u64 {
        let add = |sum: u64, word: &u64| sum.wrapping_mul(BASE).wrapping_add(*word);
        mix(self.hashes.iter().fold(0, add))
    }

    /// The n-grams as a set: sorted, each once. A text that is shorter has one: itself.
    pub(crate) fn shingles(&self, n: usize) -> Vec<u64> {
        if self.hashes.is_empty() {
            return Vec::new();
        }
        if self.len() < n {
            return vec![self.whole()];
        }
        let mut all: Vec<u64> = self.ngrams(n).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

enum Kind {
    Letter,
    Alone,
    Between,
}

fn kind(letter: char) -> Kind {
    if letter.is_ascii() {
        return if letter.is_ascii_alphanumeric() {
            Kind::Letter
        } else if "+-*/=<>^%".contains(letter) {
            Kind::Alone
        } else {
            Kind::Between
        };
    }
    match u32::from(letter) {
        // Kana, Han; arithmetic.
        0x3040..=0x30ff
        | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff
        | 0xf900..=0xfaff
        | 0x2_0000..=0x2_fa1f
        | 0xb1
        | 0xd7
        | 0xf7
        | 0x2200..=0x22ff => Kind::Alone,
        _ if letter.is_alphanumeric() => Kind::Letter,
        _ => Kind::Between,
    }
}

/// The share of what two sorted sets have in common among all that is in either.
pub(crate) fn jaccard(left: &[u64], right: &[u64]) -> f64 {
    let (mut at_left, mut at_right, mut common) = (0, 0, 0_usize);
    while at_left < left.len() && at_right < right.len() {
        match left[at_left].cmp(&right[at_right]) {
            Ordering::Less => at_left += 1,
            Ordering::Greater => at_right += 1,
            Ordering::Equal => {
                common += 1;
                at_left += 1;
                at_right += 1;
            }
        }
    }
    let all = left.len() + right.len() - common;
    if all == 0 {
        1.0
    } else {
        common as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<String> {
        let words = Words::of(text);
        (0..words.len())
            .map(|place| words.span(place, 1).to_owned())
            .collect()
    }

    #[test]
    fn words_are_what_counts_of_a_text() {
        assert_eq!(
            listed(" What is\n$3.5+4$? ÉTÉ: \\frac{1}{2} "),
            ["what", "is", "3", "5", "+", "4", "été", "frac", "1", "2"]
        );
        assert_eq!(listed("求和。abc"), ["求", "和", "abc"]);
        assert_eq!(listed(""), [""; 0]);
        assert_eq!(listed("..."), [""; 0]);
        let words = Words::of("The cat, the DOG!");
        assert_eq!(words.span(1, 3), "cat the dog");
        assert_eq!(words.span(0, 4), "the cat the dog");
    }

    #[test]
    fn ngrams_are_equal_where_the_words_are() {
        let one = Words::of("a b c d e a b c");
        let grams: Vec<u64> = one.ngrams(3).collect();
        assert_eq!(grams.len(), 6);
        assert_eq!(grams[0], grams[5]);
        assert_eq!(grams[1], Words::of("x y z b c d").ngrams(3).last().unwrap());
        assert_eq!(grams[0], Words::of("A, B: C").whole());
        assert_ne!(grams[0], Words::of("c b a").whole());
        assert_eq!(one.ngrams(9).count(), 0);
        assert_eq!(one.shingles(3).len(), 5);
        assert_eq!(one.shingles(9), [one.whole()]);
    }

    #[test]
    fn jaccard_is_common_by_all() {
        assert_eq!(jaccard(&[1, 2, 3], &[2, 3, 4]), 0.5);
        assert_eq!(jaccard(&[], &[]), 1.0);
        assert_eq!(jaccard(&[], &[1]), 0.0);
        assert_eq!(jaccard(&[1, 5], &[1, 5]), 1.0);
    }
}
