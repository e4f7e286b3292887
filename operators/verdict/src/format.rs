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
            Self::Boxed => completion.contains("\\boxed") && crate::answer(completion).is_some(),
            Self::Any => true,
        }
    }
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
        let only = |tag: &str| {
            completion
                .find(tag)
                .filter(|place| completion.rfind(tag) == Some(*place))
        };
        let [think, think_end, answer, answer_end] = [
            only("<think>")?,
            only("</think>")?,
            only("<answer>")?,
            only("</answer>")?,
        ];
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
