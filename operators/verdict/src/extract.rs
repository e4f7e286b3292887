//! Finds the answer of a completion. Linear: each byte is looked at a few times at most.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest answer that a rule looks at.
pub(crate) const MAX_ANSWER_BYTES: usize = 4096;

const OPEN: &str = "<answer>";
const CLOSE: &str = "</answer>";
const BOXED: &str = "\\boxed";

/// What a completion offers as its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extraction<'a> {
    /// Nothing, or an answer that was cut off.
    None,
    /// A longer answer than is looked at.
    TooLong,
    /// The answer, trimmed, not empty.
    Answer(Cow<'a, str>),
}

/// The answer of a completion: the last `\boxed{...}` of the last `<answer>` block, or the whole block when nothing is
/// boxed there; without such a block the last `\boxed{...}` of the text. None when there is no answer or it was cut off.
#[must_use]
pub fn answer(completion: &str) -> Option<&str> {
    match extract(completion) {
        Extraction::Answer(Cow::Borrowed(answer)) => Some(answer),
        Extraction::Answer(Cow::Owned(_)) | Extraction::None | Extraction::TooLong => None,
    }
}

/// Where answers are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The last `<answer>` block, or without one the last `\boxed{...}`.
    #[default]
    Marked,
    /// Where nothing is marked, what follows the last "answer is" up to the end of its line.
    Stated,
    /// Where nothing is marked or stated, the last number.
    Number,
}

/// Which of several boxes count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Boxes {
    /// The last one.
    #[default]
    Last,
    /// All of them, as a list.
    All,
}

/// How the answer of a completion is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExtractOptions {
    /// Where answers are looked for; each place includes those before it.
    #[serde(default)]
    pub from: Source,
    /// Which of several boxes count.
    #[serde(default)]
    pub boxes: Boxes,
}

pub(crate) fn extract(completion: &str) -> Extraction<'_> {
    extract_with(completion, ExtractOptions::default())
}

pub(crate) fn extract_with(completion: &str, options: ExtractOptions) -> Extraction<'_> {
    extract_within(completion, options, MAX_ANSWER_BYTES)
}

/// Finds the answer of a completion, up to this many bytes.
#[must_use]
pub fn extract_within(completion: &str, options: ExtractOptions, most: usize) -> Extraction<'_> {
    let marked = marked(completion, options.boxes, most);
    if marked != Extraction::None || options.from == Source::Marked {
        return marked;
    }
    // A box or block that was begun and not ended was cut off: what stands before it is not the answer.
    if last_place(completion, BOXED).is_some() || last_place(completion, OPEN).is_some() {
        return Extraction::None;
    }
    if let Some(stated) = stated(completion) {
        return limited(stated, most);
    }
    match options.from {
        Source::Number => {
            last_number(completion).map_or(Extraction::None, |number| limited(number, most))
        }
        _ => Extraction::None,
    }
}

fn marked(completion: &str, boxes: Boxes, most: usize) -> Extraction<'_> {
    let Some(start) = last_place(completion, OPEN) else {
        return boxed(completion, boxes, most);
    };
    let block = &completion[start + OPEN.len()..];
    // A block that was never closed may have been cut in the middle of a number; only a complete box counts there.
    let (block, is_closed) =
        first_place(block, CLOSE).map_or((block, false), |end| (&block[..end], true));
    if last_place(block, BOXED).is_some() {
        return boxed(block, boxes, most);
    }
    if is_closed {
        limited(block, most)
    } else {
        Extraction::None
    }
}

fn boxed(text: &str, boxes: Boxes, most: usize) -> Extraction<'_> {
    match boxes {
        Boxes::Last => last_boxed(text).map_or(Extraction::None, |answer| limited(answer, most)),
        Boxes::All => all_boxed(text, most),
    }
}

/// Where a mark stands last. Marks begin with a byte that is rare in text.
fn last_place(text: &str, mark: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    memchr::memrchr_iter(mark.as_bytes()[0], bytes)
        .find(|&at| bytes[at..].starts_with(mark.as_bytes()))
}

fn first_place(text: &str, mark: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(mark.as_bytes()[0], bytes)
        .find(|&at| bytes[at..].starts_with(mark.as_bytes()))
}

/// What follows the last "answer is", up to the end of the line or of the sentence.
fn stated(text: &str) -> Option<&str> {
    const PHRASE: &[u8] = b"answer is";
    let bytes = text.as_bytes();
    let at = memchr::memrchr_iter(b'w', bytes).find_map(|at| {
        // The `w` of "answer" is its fourth letter.
        let start = at.checked_sub(3)?;
        let found = bytes.get(start..start + PHRASE.len())?;
        found
            .eq_ignore_ascii_case(PHRASE)
            .then_some(start + PHRASE.len())
    })?;
    let rest = text[at..].trim_start_matches([':', ' ', '\u{a0}']);
    let line = rest.lines().next().unwrap_or_default();
    let end = line.find(". ").unwrap_or(line.len());
    let sentence = line[..end].trim().trim_end_matches('.');
    (!sentence.is_empty()).then_some(sentence)
}

/// The last number, with its sign, point, stroke and percent sign.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let last = bytes.iter().rposition(u8::is_ascii_digit)?;
    let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b',' | b'/');
    let mut start = bytes[..=last]
        .iter()
        .rposition(|byte| !is_part(*byte))
        .map_or(0, |before| before + 1);
    let begins = |at: usize| {
        bytes[at].is_ascii_digit() || (bytes[at] == b'.' && bytes[at + 1].is_ascii_digit())
    };
    while !begins(start) {
        start += 1;
    }
    // A stroke before the sign would be a range: 3-5.
    if start > 0
        && bytes[start - 1] == b'-'
        && (start < 2 || !bytes[start - 2].is_ascii_alphanumeric())
    {
        start -= 1;
    }
    let end = last + 1 + usize::from(bytes.get(last + 1) == Some(&b'%'));
    Some(&text[start..end])
}

/// All boxes that are closed, as a list.
fn all_boxed(text: &str, most: usize) -> Extraction<'_> {
    let mut found: Vec<&str> = Vec::new();
    let mut at = 0;
    while let Some(place) = first_place(&text[at..], BOXED) {
        let after = text[at + place + BOXED.len()..].trim_start();
        let start = text.len() - after.len();
        let Some(body) = after.strip_prefix('{').and_then(closed) else {
            return Extraction::None;
        };
        found.push(body.trim());
        at = start + 1 + body.len();
        if found.len() > 64 {
            return Extraction::TooLong;
        }
    }
    match found[..] {
        [] => Extraction::None,
        [one] => limited(one, most),
        _ if found.iter().any(|answer| answer.is_empty()) => Extraction::None,
        _ => {
            let joined = found.join(", ");
            if joined.len() > most {
                Extraction::TooLong
            } else {
                Extraction::Answer(joined.into())
            }
        }
    }
}

fn limited(answer: &str, most: usize) -> Extraction<'_> {
    let answer = answer.trim();
    if answer.is_empty() {
        Extraction::None
    } else if answer.len() > most {
        Extraction::TooLong
    } else {
        Extraction::Answer(answer.into())
    }
}

/// Content of the last box. None when its braces are never closed: earlier boxes are not the final answer.
fn last_boxed(text: &str) -> Option<&str> {
    let after = text[last_place(text, BOXED)? + BOXED.len()..].trim_start();
    closed(after.strip_prefix('{')?)
}

/// The text up to the brace that closes what was opened before it.
fn closed(body: &str) -> Option<&str> {
    let bytes = body.as_bytes();
    let mut depth = 1_usize;
    let mut skip = 0;
    for index in memchr::memchr3_iter(b'{', b'}', b'\\', bytes) {
        if index < skip {
            continue;
        }
        match bytes[index] {
            b'\\' => skip = index + 2,
            b'{' => depth += 1,
            _ => {
                depth -= 1;
                if depth == 0 {
                    return Some(&body[..index]);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_block_goes_before_any_other_box() {
        assert_eq!(
            answer("<think>\\boxed{1}</think><answer>\\boxed{2}</answer>"),
            Some("2")
        );
        assert_eq!(
            answer("<answer>\\boxed{2}</answer> so \\boxed{3}"),
            Some("2")
        );
        assert_eq!(answer("<answer> 7 </answer>"), Some("7"));
        assert_eq!(
            answer("<answer>1</answer> no: <answer>2</answer>"),
            Some("2")
        );
        assert_eq!(answer("the result is \\boxed{ 5 }."), Some("5"));
    }

    #[test]
    fn the_last_of_several_boxes_counts_with_its_nested_braces() {
        assert_eq!(
            answer("\\boxed{1} or \\boxed{\\frac{3}{4}}"),
            Some("\\frac{3}{4}")
        );
        assert_eq!(answer("\\boxed {\\{1, 2\\}}"), Some("\\{1, 2\\}"));
        assert_eq!(answer("\\boxed{\\boxed{5}}"), Some("5"));
    }

    fn with(text: &str, from: Source, boxes: Boxes) -> Option<String> {
        match extract_with(text, ExtractOptions { from, boxes }) {
            Extraction::Answer(answer) => Some(answer.into_owned()),
            _ => None,
        }
    }

    #[test]
    fn statements_and_numbers_count_only_where_they_are_asked_for() {
        let (last, all) = (Boxes::Last, Boxes::All);
        let text = "So 3 + 4 = 7. The final answer is $7$. I hope it is correct.";
        assert_eq!(with(text, Source::Marked, last), None);
        assert_eq!(with(text, Source::Stated, last).as_deref(), Some("$7$"));
        assert_eq!(
            with("The Answer is: 1,000\nbye", Source::Stated, last).as_deref(),
            Some("1,000")
        );
        assert_eq!(
            with("it is 12 of 3.5.", Source::Number, last).as_deref(),
            Some("3.5")
        );
        assert_eq!(with("from 3-5", Source::Number, last).as_deref(), Some("5"));
        assert_eq!(
            with("x = -1/2", Source::Number, last).as_deref(),
            Some("-1/2")
        );
        assert_eq!(
            with("about .5, 40%", Source::Number, last).as_deref(),
            Some("40%")
        );
        assert_eq!(with("5 \\boxed{", Source::Number, last), None);
        assert_eq!(
            with("\\boxed{1} and \\boxed{\\frac{1}{2}}", Source::Marked, all).as_deref(),
            Some("1, \\frac{1}{2}")
        );
        assert_eq!(with("\\boxed{1} and \\boxed{2", Source::Marked, all), None);
    }

    #[test]
    fn what_was_cut_off_is_no_answer() {
        for text in [
            "",
            "5",
            "<answer>12",
            "<answer>\\boxed{1",
            "\\boxed{3} and \\boxed{4",
            "\\boxed",
            "\\boxed 5",
            "<answer>  </answer>",
            "\\boxed{ }",
        ] {
            assert_eq!(answer(text), None, "{text}");
        }
        assert_eq!(answer("<answer>\\boxed{12}"), Some("12"));
    }
}
