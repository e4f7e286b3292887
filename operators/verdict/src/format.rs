//! The form that a completion must have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The form that a completion must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FormatRule {
    /// One `<think>` block, then one `<answer>` block, nothing but white space between them, neither empty. Text
    /// before and after is tolerated.
    #[default]
    ThinkAnswer,
    /// Something in a `\boxed{...}`.
    Boxed,
    /// Any form.
    Any,
}

impl FormatRule {
    /// Whether a completion has this form.
    #[must_use]
    pub fn holds(self, completion: &str) -> bool {
        match self {
            Self::ThinkAnswer => ThinkAnswer::parse(completion).is_some(),
            Self::Boxed => {
                crate::answer(completion).is_some()
                    && memchr::memmem::find(completion.as_bytes(), b"\\boxed").is_some()
            }
            Self::Any => true,
        }
    }
}

const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// Where each of some tags stands; None unless each is there exactly once. One pass.
fn places<const N: usize>(text: &str, tags: &[&str; N]) -> Option<[usize; N]> {
    let bytes = text.as_bytes();
    let mut places = [usize::MAX; N];
    for at in memchr::memchr_iter(b'<', bytes) {
        let rest = &bytes[at..];
        for (place, tag) in places.iter_mut().zip(tags) {
            if rest.starts_with(tag.as_bytes()) {
                if *place != usize::MAX {
                    return None;
                }
                *place = at;
            }
        }
    }
    (!places.contains(&usize::MAX)).then_some(places)
}

/// Whether blocks of these names stand one after another, each exactly once, with nothing but white space between
/// them and something in each.
pub(crate) fn has_blocks(text: &str, names: &[String]) -> bool {
    let bytes = text.as_bytes();
    let mut tags: Vec<(String, Option<usize>)> = Vec::with_capacity(2 * names.len());
    for name in names {
        tags.push((format!("<{name}>"), None));
        tags.push((format!("</{name}>"), None));
    }
    for at in memchr::memchr_iter(b'<', bytes) {
        for (tag, place) in &mut tags {
            if bytes[at..].starts_with(tag.as_bytes()) && place.replace(at).is_some() {
                return false;
            }
        }
    }
    let mut end = None;
    for pair in tags.chunks(2) {
        let (Some(open), Some(close)) = (pair[0].1, pair[1].1) else {
            return false;
        };
        let inner = text.get(open + pair[0].0.len()..close);
        if inner.is_none_or(|inner| inner.trim().is_empty()) {
            return false;
        }
        if let Some(end) = end
            && text
                .get(end..open)
                .is_none_or(|between: &str| !between.trim().is_empty())
        {
            return false;
        }
        end = Some(close + pair[1].0.len());
    }
    true
}

/// The two blocks of a well-formed completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinkAnswer<'a> {
    /// Content of the `<think>` block.
    pub think: &'a str,
    /// Content of the `<answer>` block.
    pub answer: &'a str,
}

impl<'a> ThinkAnswer<'a> {
    /// Reads the blocks; None when a tag is missing, doubled or out of order, or a block is empty.
    #[must_use]
    pub fn parse(completion: &'a str) -> Option<Self> {
        let [think, think_end, answer, answer_end] = places(completion, &TAGS)?;
        // A range that runs backwards, because tags are out of order, gives None.
        let blocks = Self {
            think: completion.get(think + "<think>".len()..think_end)?,
            answer: completion.get(answer + "<answer>".len()..answer_end)?,
        };
        let between = completion.get(think_end + "</think>".len()..answer)?;
        let is_filled = !blocks.think.trim().is_empty() && !blocks.answer.trim().is_empty();
        (is_filled && between.trim().is_empty()).then_some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_blocks_once_in_order_and_filled() {
        for good in [
            "<think>a</think><answer>b</answer>",
            "Sure. <think>a\nb</think>\n <answer>\\boxed{1}</answer> done",
        ] {
            assert!(FormatRule::ThinkAnswer.holds(good), "{good}");
        }
        for bad in [
            "",
            "<think>a</think>",
            "<answer>b</answer>",
            "<think></think><answer>b</answer>",
            "<think>a</think><answer> </answer>",
            "<answer>b</answer><think>a</think>",
            "<think>a</think> so <answer>b</answer>",
            "<think>a</think><answer>b</answer><answer>c</answer>",
            "<think>a</think><answer>b</answer><think>c</think>",
            "<think>a<think>b</think><answer>c</answer>",
            "<think>a<answer>b</answer></think>",
            "</answer><think>a</think><answer>b</answer>",
            "</think><think>a</think><answer>b</answer>",
        ] {
            assert!(!FormatRule::ThinkAnswer.holds(bad), "{bad}");
        }
    }
}
