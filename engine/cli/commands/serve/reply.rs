//! Answers as JSON, whole and in pieces.

use engine_core::policy::FinishReason;
use operators_model::processor::Processor;
use serde_json::{Map, Value, json};

use super::answer::TokenInfo;
use super::body::Options;

/// Which of the two ways to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Chat,
    Completion,
}

/// What all pieces of a response share.
pub(super) struct Reply<'a> {
    pub(super) way: Way,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) processor: &'a Processor,
    pub(super) options: &'a Options,
}

/// Tokens that were read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
}

/// A whole answer.
pub(super) struct Whole<'a> {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenInfo>,
    pub(super) finish: FinishReason,
    pub(super) prompt: &'a [u32],
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

impl Reply<'_> {
    fn envelope(&self, is_piece: bool) -> Map<String, Value> {
        let object = match (self.way, is_piece) {
            (Way::Chat, true) => "chat.completion.chunk",
            (Way::Chat, false) => "chat.completion",
            (Way::Completion, _) => "text_completion",
        };
        let mut envelope = Map::new();
        envelope.insert("id".to_owned(), json!(self.id));
        envelope.insert("object".to_owned(), json!(object));
        envelope.insert("created".to_owned(), json!(self.created));
        envelope.insert("model".to_owned(), json!(self.model));
        envelope
    }

    /// The whole response.
    pub(super) fn whole(&self, answers: Vec<Whole<'_>>, usage: Usage) -> Value {
        let mut envelope = self.envelope(false);
        if self.options.return_token_ids
            && self.way == Way::Chat
            && let Some(answer) = answers.first()
        {
            envelope.insert("prompt_token_ids".to_owned(), json!(answer.prompt));
        }
        let choices: Vec<Value> = answers
            .into_iter()
            .enumerate()
            .map(|(index, answer)| {
                let mut choice = match self.way {
                    Way::Chat => {
                        json!({ "index": index, "message": { "role": "assistant", "content": answer.text, "refusal": null } })
                    }
                    Way::Completion => json!({ "index": index, "text": answer.text }),
                };
                choice["logprobs"] = self.logprobs(&answer.tokens);
                choice["finish_reason"] = json!(answer.finish.as_str());
                self.add_token_ids(&mut choice, &answer.tokens);
                if self.options.return_token_ids && self.way == Way::Completion {
                    choice["prompt_token_ids"] = json!(answer.prompt);
                }
                choice
            })
            .collect();
        envelope.insert("choices".to_owned(), choices.into());
        envelope.insert("usage".to_owned(), usage.json());
        Value::Object(envelope)
    }

    /// The first piece of an answer: who speaks.
    pub(super) fn opening(&self, index: usize, prompt: &[u32]) -> Option<Value> {
        let has_ids = self.options.return_token_ids;
        match self.way {
            Way::Chat => {
                let choice = json!({ "index": index, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null });
                let mut piece = self.piece(choice);
                if has_ids {
                    piece["prompt_token_ids"] = json!(prompt);
                }
                Some(piece)
            }
            Way::Completion if has_ids => {
                let choice = json!({ "index": index, "text": "", "logprobs": null, "finish_reason": null, "prompt_token_ids": prompt });
                Some(self.piece(choice))
            }
            Way::Completion => None,
        }
    }

    /// A further piece.
    pub(super) fn delta(
        &self,
        index: usize,
        text: &str,
        tokens: &[TokenInfo],
        finish: Option<FinishReason>,
    ) -> Value {
        let mut choice = match self.way {
            Way::Chat if text.is_empty() => json!({ "index": index, "delta": {} }),
            Way::Chat => json!({ "index": index, "delta": { "content": text } }),
            Way::Completion => json!({ "index": index, "text": text }),
        };
        choice["logprobs"] = self.logprobs(tokens);
        choice["finish_reason"] = json!(finish.map(FinishReason::as_str));
        self.add_token_ids(&mut choice, tokens);
        self.piece(choice)
    }

    /// The last piece where it is wanted: what it cost.
    pub(super) fn usage(&self, usage: Usage) -> Value {
        let mut piece = self.envelope(true);
        piece.insert("choices".to_owned(), json!([]));
        piece.insert("usage".to_owned(), usage.json());
        Value::Object(piece)
    }

    fn piece(&self, choice: Value) -> Value {
        let mut piece = self.envelope(true);
        piece.insert("choices".to_owned(), json!([choice]));
        if self.options.include_usage {
            piece.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(piece)
    }

    fn add_token_ids(&self, choice: &mut Value, tokens: &[TokenInfo]) {
        if self.options.return_token_ids {
            choice["token_ids"] = tokens.iter().map(|token| token.id).collect();
        }
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        match (self.options.logprobs, self.way) {
            (None, _) => Value::Null,
            (Some(_), Way::Chat) => {
                let content: Vec<Value> = tokens
                    .iter()
                    .map(|token| {
                        let mut entry = self.token(token.id, token.logprob);
                        let top = token
                            .top
                            .iter()
                            .map(|(id, logprob)| self.token(*id, *logprob));
                        entry["top_logprobs"] = top.collect();
                        entry
                    })
                    .collect();
                json!({ "content": content, "refusal": null })
            }
            (Some(_), Way::Completion) => {
                let text = |id: u32| self.processor.token_text(id);
                let top = |token: &TokenInfo| -> Value {
                    let mut top = Map::new();
                    for (id, logprob) in &token.top {
                        top.entry(text(*id))
                            .or_insert_with(|| json!(finite(*logprob)));
                    }
                    Value::Object(top)
                };
                json!({
                    "tokens": tokens.iter().map(|token| text(token.id)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|token| finite(token.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
                })
            }
        }
    }

    fn token(&self, id: u32, logprob: f32) -> Value {
        let text = self.processor.token_text(id);
        json!({ "token": text, "logprob": finite(logprob), "bytes": text.as_bytes() })
    }
}

/// JSON has no infinities; this is what other servers write for a token that cannot come.
fn finite(logprob: f32) -> f32 {
    const NEVER: f32 = -9999.0;
    if logprob.is_finite() { logprob } else { NEVER }
}
