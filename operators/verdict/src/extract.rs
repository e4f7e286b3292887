//! Finds the answer of a completion.

/// Longest answer that is looked at.
pub(crate) const MAX_ANSWER_BYTES: usize = 4096;

const OPEN: &str = "<answer>";
const CLOSE: &str = "</answer>";
const BOXED: &str = "\\boxed";

/// What a completion offers as its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extraction<'a> {
    /// Nothing, or an answer that was cut off.
    None,
    /// An answer longer than [`MAX_ANSWER_BYTES`].
    TooLong,
    /// The answer, trimmed, not empty.
    Answer(&'a str),
}

/// The answer of a completion: the last `\boxed{...}` of the last `<answer>` block, or the whole block when nothing is
/// boxed there; without such a block the last `\boxed{...}` of the text. None when there is no answer or it was cut off.
#[must_use]
pub fn answer(completion: &str) -> Option<&str> {
    match extract(completion) {
        Extraction::Answer(answer) => Some(answer),
        Extraction::None | Extraction::TooLong => None,
    }
}

pub(crate) fn extract(completion: &str) -> Extraction<'_> {
    let Some(start) = completion.rfind(OPEN) else {
        return last_boxed(completion).map_or(Extraction::None, limited);
    };
    let block = &completion[start + OPEN.len()..];
    // A block that was never closed may have been cut in the middle of a number; only a complete box counts there.
    let (block, is_closed) = block
        .find(CLOSE)
        .map_or((block, false), |end| (&block[..end], true));
    if block.contains(BOXED) {
        return last_boxed(block).map_or(Extraction::None, limited);
    }
    if is_closed {
        limited(block)
    } else {
        Extraction::None
    }
}

fn limited(answer: &str) -> Extraction<'_> {
    let answer = answer.trim();
    if answer.is_empty() {
        Extraction::None
    } else if answer.len() > MAX_ANSWER_BYTES {
        Extraction::TooLong
    } else {
        Extraction::Answer(answer)
    }
}

/// Content of the last box. None when its braces are never closed: earlier boxes are not the final answer.
fn last_boxed(text: &str) -> Option<&str> {
    let after = text[text.rfind(BOXED)? + BOXED.len()..].trim_start();
    let body = after.strip_prefix('{')?;
    let mut depth = 1_usize;
    let mut is_escaped = false;
    for (index, byte) in body.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&body[..index]);
                }
            }
            _ => {}
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
