//! What a verifier is asked, and what it says.

use std::borrow::Cow;

use operators_verdict::Verdict;

/// What stands for an image in a question.
const IMAGE: &str = "[image]";

/// A completion to judge.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The prompt, for messages.
    pub prompt_id: &'a str,
    /// What was asked, from [`question_text`].
    pub question: &'a str,
    /// The gold answer of the prompt.
    pub gold: Option<&'a str>,
    /// The completion.
    pub text: &'a str,
}

/// A judgement of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The judgement.
    pub verdict: Verdict,
    /// Share of the verifiers (or votes) that were asked, can judge, and say what is said together.
    pub agreement: Option<f64>,
    /// Why, for people.
    pub reason: Cow<'static, str>,
    /// Whether a judge that could not be asked may have decided it: the verdict is `failed`, and it is worth asking again.
    pub is_open: bool,
}

/// The text of the last user turns of a conversation. A turn is its role and its parts: texts, and None for an image.
pub fn question_text<'a, Parts>(turns: impl IntoIterator<Item = (&'a str, Parts)>) -> String
where
    Parts: IntoIterator<Item = Option<&'a str>>,
{
    let mut text = String::new();
    for (role, parts) in turns {
        if role == "assistant" {
            // What was asked before that has been answered.
            text.clear();
        }
        if role != "user" {
            continue;
        }
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        for part in parts {
            text.push_str(part.unwrap_or(IMAGE));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_what_was_asked_last() {
        let turns = [
            ("system", vec![Some("be brief")]),
            ("user", vec![Some("how are you?")]),
            ("assistant", vec![Some("fine")]),
            ("user", vec![None, Some(" what is it?")]),
            ("user", vec![Some("in one word")]),
        ];
        assert_eq!(question_text(turns), "[image] what is it?\n\nin one word");
    }
}
