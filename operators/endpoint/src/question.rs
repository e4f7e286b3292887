//! What is asked, as the protocol spells it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::image::data_url;

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Some text.
    Text(String),
    /// The bytes of an image file.
    Image(Vec<u8>),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: Vec<Part>,
}

/// A conversation as JSON. Images are in it as `data:` addresses.
#[must_use]
pub fn messages(turns: &[Turn]) -> Arc<str> {
    let content = |turn: &Turn| match &turn.content[..] {
        [] => json!(""),
        [Part::Text(text)] => json!(text),
        parts => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => json!({ "type": "text", "text": text }),
                Part::Image(bytes) => {
                    json!({ "type": "image_url", "image_url": { "url": data_url(bytes) } })
                }
            })
            .collect(),
    };
    let messages: Vec<Value> = turns
        .iter()
        .map(|turn| json!({ "role": turn.role, "content": content(turn) }))
        .collect();
    Value::from(messages).to_string().into()
}

/// One answer that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The conversation, from [`messages`].
    pub messages: Arc<str>,
    /// What the server draws by, if it can.
    pub seed: u64,
}

/// How the server samples. What has its neutral value is not sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy decoding.
    pub temperature: f64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Nucleus sampling; 1: off.
    pub top_p: f64,
    /// Most likely tokens that are kept; 0: all. Not part of OpenAI's own protocol.
    pub top_k: u32,
    /// Least share of the largest probability; 0: off. Not part of OpenAI's own protocol.
    pub min_p: f64,
    /// As in CTRL; 1: off. Not part of OpenAI's own protocol.
    pub repetition_penalty: f64,
    /// 0: off.
    pub presence_penalty: f64,
    /// 0: off.
    pub frequency_penalty: f64,
    /// Least tokens of an answer; 0: off. Not part of OpenAI's own protocol.
    pub min_tokens: u32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

impl Sampling {
    /// Samples from the model as it is.
    #[must_use]
    pub fn new(temperature: f64, max_tokens: u32) -> Self {
        Self {
            temperature,
            max_tokens,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_tokens: 0,
            stop: Vec::new(),
        }
    }
}

/// Which keys a server was found not to take.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of the protocol"
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dialect {
    no_token_ids: bool,
    no_logprobs: bool,
    no_seed: bool,
    /// OpenAI's newer models want the limit under another name.
    max_completion_tokens: bool,
}

impl Dialect {
    /// Learns from a refusal; whether the same question may be asked again in other words.
    pub(crate) fn learn(&mut self, refusal: &str) -> bool {
        let before = *self;
        if refusal.contains("return_token_ids") {
            self.no_token_ids = true;
        } else if refusal.contains("logprobs") {
            self.no_logprobs = true;
        } else if refusal.contains("max_completion_tokens") {
            self.max_completion_tokens = true;
        } else if refusal.contains("'seed'") || refusal.contains("`seed`") {
            self.no_seed = true;
        }
        *self != before
    }

    /// The body of a request.
    pub(crate) fn body(self, model: &str, question: &Question, sampling: &Sampling) -> String {
        let mut keys = Map::new();
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        put("model", json!(model));
        put("temperature", json!(sampling.temperature));
        let limit = if self.max_completion_tokens {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        put(limit, json!(sampling.max_tokens));
        if !self.no_seed && sampling.temperature > 0.0 {
            // Servers take signed numbers.
            put("seed", json!(question.seed >> 1));
        }
        if !self.no_logprobs {
            put("logprobs", json!(true));
        }
        if !self.no_token_ids {
            put("return_token_ids", json!(true));
        }
        let options = [
            ("top_p", sampling.top_p, 1.0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
            ("presence_penalty", sampling.presence_penalty, 0.0),
            ("frequency_penalty", sampling.frequency_penalty, 0.0),
        ];
        for (key, value, neutral) in options {
            if value != neutral {
                put(key, json!(value));
            }
        }
        for (key, value) in [
            ("top_k", sampling.top_k),
            ("min_tokens", sampling.min_tokens),
        ] {
            if value > 0 {
                put(key, json!(value));
            }
        }
        if !sampling.stop.is_empty() {
            put("stop", json!(sampling.stop));
        }
        let keys = Value::from(keys).to_string();
        // The conversation is JSON already, and with its images too long to be read once more for each answer.
        let rest = keys.strip_prefix('{').unwrap_or_default();
        format!("{{\"messages\":{},{rest}", question.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        let turns = [
            Turn {
                role: "system".to_owned(),
                content: vec![Part::Text("be \"brief\"".to_owned())],
            },
            Turn {
                role: "user".to_owned(),
                content: vec![
                    Part::Image(b"\x89PNG\r\n\x1a\n".to_vec()),
                    Part::Text("what is it?".to_owned()),
                ],
            },
        ];
        Question {
            messages: messages(&turns),
            seed: u64::MAX,
        }
    }

    #[test]
    fn a_question_is_one_object_with_images_inside() {
        let body = Dialect::default().body("m", &question(), &Sampling::new(0.5, 7));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["messages"][0]["content"], "be \"brief\"");
        let url = &body["messages"][1]["content"][0]["image_url"]["url"];
        assert_eq!(url, "data:image/png;base64,iVBORw0KGgo=");
        assert_eq!(body["seed"], i64::MAX);
        assert_eq!(body["return_token_ids"], true);
        assert_eq!(body["max_tokens"], 7);
        assert!(body.get("top_p").is_none() && body.get("stop").is_none());
    }

    #[test]
    fn what_a_server_does_not_know_is_left_out_the_next_time() {
        let mut dialect = Dialect::default();
        assert!(dialect.learn("Unrecognized request argument supplied: return_token_ids"));
        assert!(!dialect.learn("Unrecognized request argument supplied: return_token_ids"));
        assert!(
            dialect
                .learn("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        );
        assert!(!dialect.learn("the prompt is too long"));
        let body = dialect.body("m", &question(), &Sampling::new(0.0, 7));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["max_completion_tokens"], 7);
        assert!(body.get("return_token_ids").is_none() && body.get("seed").is_none());
    }
}
