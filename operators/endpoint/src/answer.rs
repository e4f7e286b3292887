//! What servers answer, checked.

use serde::Deserialize;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or at a stop text.
    Stop,
    /// At the limit of tokens.
    Length,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its tokens, where the server gives them.
    pub token_ids: Option<Vec<u32>>,
    /// The log-probability of each token, where the server gives them.
    pub logprobs: Option<Vec<f32>>,
    /// Length of the prompt, as far as the server says.
    pub prompt_tokens: u32,
    /// Length of the answer, as far as the server says.
    pub completion_tokens: u32,
}

/// Why there is no answer in what came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The server did not keep to the protocol: it may do better the next time.
    Lie(String),
    /// It will not answer this question.
    Refusal(String),
}

#[derive(Deserialize)]
struct Body {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<String>,
    token_ids: Option<Vec<u32>>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    /// What the model wrote before, where the server takes it apart.
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Logprob>>,
}

#[derive(Deserialize)]
struct Logprob {
    logprob: f32,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

impl Answer {
    /// Reads the body of an answer with status 200.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, NoAnswer> {
        let lie = |what: &str| NoAnswer::Lie(format!("{what}: {}", excerpt(body)));
        let read: Body = serde_json::from_slice(body)
            .map_err(|_| lie("the answer is not what the protocol says"))?;
        let mut choices = read.choices.unwrap_or_default();
        let (Some(choice), true) = (choices.pop(), choices.is_empty()) else {
            return Err(lie(
                "the answer does not have the one choice that was asked for",
            ));
        };
        let finish = match choice.finish_reason.as_deref() {
            Some("stop") => Finish::Stop,
            Some("length") => Finish::Length,
            Some("content_filter") => {
                return Err(NoAnswer::Refusal(
                    "the server's filter held the answer back".to_owned(),
                ));
            }
            _ => return Err(lie("the answer has no finish_reason `stop` or `length`")),
        };
        let text = choice.message.and_then(Message::text);
        let usage = read.usage.unwrap_or_default();
        let text = match text {
            Some(text) if !text.is_empty() || usage.completion_tokens > 0 => text,
            _ => return Err(lie("the answer has no text")),
        };
        let is_whole = |tokens: usize| {
            tokens > 0
                && (usage.completion_tokens == 0 || tokens == usage.completion_tokens as usize)
        };
        let token_ids = choice.token_ids.filter(|ids| is_whole(ids.len()));
        let logprobs = choice.logprobs.and_then(|logprobs| logprobs.content);
        let logprobs = logprobs
            .map(|tokens| tokens.iter().map(|token| token.logprob).collect())
            .filter(|values: &Vec<f32>| {
                is_whole(values.len())
                    && values.iter().all(|value| value.is_finite())
                    && token_ids
                        .as_ref()
                        .is_none_or(|ids| ids.len() == values.len())
            });
        Ok(Self {
            text,
            finish,
            token_ids,
            logprobs,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
        })
    }
}

impl Message {
    /// Everything that the model wrote: thoughts that the server took apart stand in their tags again.
    fn text(self) -> Option<String> {
        match self.reasoning_content {
            Some(thoughts) if !thoughts.trim().is_empty() => {
                let answer = self.content.unwrap_or_default();
                Some(format!("<think>{thoughts}</think>{answer}"))
            }
            _ => self.content,
        }
    }
}

/// The message of an error's body, or the start of whatever it is.
pub(crate) fn error_message(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let found = places
        .iter()
        .find_map(|place| value.pointer(place).and_then(serde_json::Value::as_str));
    found.map_or_else(|| excerpt(body), |text| excerpt(text.as_bytes()))
}

/// The start of a body, on one line.
fn excerpt(body: &[u8]) -> String {
    const CHARACTERS: usize = 300;
    if body.is_empty() {
        return "it is empty".to_owned();
    }
    let start = &body[..body.len().min(4 * CHARACTERS)];
    let text = String::from_utf8_lossy(start);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().take(CHARACTERS).collect();
    line.chars()
        .filter(|character| !character.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_do_not_fit_each_other_are_not_taken() {
        let body = |ids: &str, logprobs: &str| {
            format!(
                r#"{{"choices": [{{"message": {{"content": "hi"}}, "finish_reason": "stop", "token_ids": {ids},
                "logprobs": {{"content": {logprobs}}}}}], "usage": {{"prompt_tokens": 3, "completion_tokens": 2}}}}"#
            )
        };
        let both = r#"[{"logprob": -0.5, "token": "h"}, {"logprob": -1}]"#;
        let answer = Answer::parse(body("[7, 2]", both).as_bytes()).unwrap();
        assert_eq!(answer.token_ids, Some(vec![7, 2]));
        assert_eq!(answer.logprobs, Some(vec![-0.5, -1.0]));
        let answer = Answer::parse(body("[7]", both).as_bytes()).unwrap();
        assert_eq!(
            (answer.token_ids, answer.logprobs),
            (None, Some(vec![-0.5, -1.0]))
        );
        let answer = Answer::parse(body("null", "null").as_bytes()).unwrap();
        assert_eq!((answer.token_ids, answer.logprobs), (None, None));
    }

    #[test]
    fn thoughts_that_a_server_takes_apart_are_put_back() {
        for key in ["reasoning_content", "reasoning"] {
            let body = format!(
                r#"{{"choices": [{{"message": {{"content": "7", "{key}": "3 + 4"}}, "finish_reason": "stop"}}]}}"#
            );
            let answer = Answer::parse(body.as_bytes()).unwrap();
            assert_eq!(answer.text, "<think>3 + 4</think>7");
        }
    }

    #[test]
    fn lies_are_told_from_answers() {
        let lies = [
            "",
            "<html>",
            "{}",
            r#"{"choices": []}"#,
            r#"{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}, {"message": {"content": "b"}, "finish_reason": "stop"}]}"#,
            r#"{"choices": [{"message": {"content": "a"}}]}"#,
            r#"{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}"#,
            r#"{"choices": [{"message": {"content": "a"}, "finish_reason": "st"#,
        ];
        for lie in lies {
            assert!(
                matches!(Answer::parse(lie.as_bytes()), Err(NoAnswer::Lie(_))),
                "{lie}"
            );
        }
        let empty = r#"{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}"#;
        assert_eq!(Answer::parse(empty.as_bytes()).unwrap().text, "");
    }
}
