//! Right answers in the form of the pipeline.

use engine_core::Fault;

const THINK: [&str; 2] = ["<think>", "</think>"];
const ANSWER: [&str; 2] = ["<answer>", "</answer>"];

/// What is wrong with a form.
pub(super) fn fault(template: &str) -> Option<Fault> {
    let has_answer = template.contains("{answer}") || template.contains("{text}");
    (!has_answer).then(|| {
        Fault::at("wrong-value", "rewrite", "`rewrite` has no place for the answer").with_help(
            "write for example `<think>{reasoning}</think><answer>{answer}</answer>`, or `{text}` for the whole",
        )
    })
}

/// The text in another form; None when the form needs an answer or reasoning that is not there.
pub(super) fn rewritten(template: &str, text: &str, answer: Option<&str>) -> Option<String> {
    let mut whole = String::with_capacity(template.len() + text.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        whole.push_str(&rest[..at]);
        rest = &rest[at..];
        let marks = [
            ("{answer}", answer.map(str::trim)),
            (
                "{reasoning}",
                Some(reasoning(text)).filter(|found| !found.is_empty()),
            ),
            ("{text}", Some(text.trim())),
        ];
        match marks.into_iter().find(|(mark, _)| rest.starts_with(mark)) {
            Some((mark, value)) => {
                whole.push_str(value?);
                rest = &rest[mark.len()..];
            }
            None => {
                whole.push('{');
                rest = &rest[1..];
            }
        }
    }
    whole.push_str(rest);
    Some(whole)
}

/// What leads to the answer: the thoughts where they are marked, else what stands before the answer's tag, else everything.
fn reasoning(text: &str) -> &str {
    if let Some(end) = text.find(THINK[1]) {
        // Some servers leave the first tag out.
        let start = text[..end]
            .find(THINK[0])
            .map_or(0, |at| at + THINK[0].len());
        return text[start..end].trim();
    }
    let start = text.find(THINK[0]).map_or(0, |at| at + THINK[0].len());
    let text = &text[start..];
    let end = text.rfind(ANSWER[0]).unwrap_or(text.len());
    text[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "<think>{reasoning}</think><answer>{answer}</answer>";

    #[test]
    fn thoughts_and_answer_are_put_into_the_form() {
        let cases = [
            ("3 + 4 = 7, so \\boxed{7}.", "3 + 4 = 7, so \\boxed{7}."),
            ("<think>\n3 + 4\n</think>\nIt is 7.", "3 + 4"),
            ("3 + 4</think>7", "3 + 4"),
            ("Let me see. <answer>7</answer>", "Let me see."),
        ];
        for (text, thoughts) in cases {
            let expected = format!("<think>{thoughts}</think><answer>7</answer>");
            assert_eq!(rewritten(FORM, text, Some(" 7 ")), Some(expected));
        }
        assert_eq!(
            rewritten(FORM, "<answer>7</answer>", Some("7")),
            None,
            "no reasoning"
        );
        assert_eq!(rewritten(FORM, "so", None), None, "no answer");
        let boxed = rewritten("{text} \\boxed{{answer}} {x}", "{answer} is", Some("7"));
        assert_eq!(boxed.as_deref(), Some("{answer} is \\boxed{7} {x}"));
        assert!(fault("{reasoning}").is_some() && fault(FORM).is_none());
    }
}
