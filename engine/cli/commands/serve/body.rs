//! The body of a request, key by key: each is checked, and one that is not known is an error, not a surprise.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::fault::ApiFault;

/// Keys that change nothing here.
const WITHOUT_EFFECT: [&str; 12] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "request_id",
    "priority",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "verbosity",
];

/// Answers to one prompt.
const MOST_ANSWERS: u64 = 128;
/// Most likely tokens that may be asked for.
const MOST_TOP_LOGPROBS: u64 = 20;
/// Stop strings.
const MOST_STOPS: usize = 16;

/// The keys of a body that have not been read yet.
#[derive(Debug)]
pub(super) struct Body(Map<String, Value>);

/// What the two ways to ask have in common.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of the protocol"
)]
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    /// Answers for each prompt.
    pub(super) n: usize,
    pub(super) max_tokens: Option<usize>,
    pub(super) min_tokens: usize,
    pub(super) temperature: f64,
    pub(super) top_p: f64,
    pub(super) top_k: usize,
    pub(super) min_p: f64,
    pub(super) repetition_penalty: f64,
    pub(super) presence_penalty: f64,
    pub(super) frequency_penalty: f64,
    pub(super) seed: Option<u64>,
    pub(super) stop: Vec<String>,
    pub(super) stop_token_ids: Vec<u32>,
    pub(super) allowed_token_ids: Vec<u32>,
    pub(super) ignore_eos: bool,
    /// How many of the most likely tokens are told at each place, where log-probabilities are wanted.
    pub(super) logprobs: Option<usize>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) return_token_ids: bool,
}

impl Body {
    /// Reads the JSON.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ApiFault> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(keys)) => Ok(Self(keys)),
            Ok(_) => Err(ApiFault::invalid("the body is JSON, but no object")),
            Err(error) => Err(ApiFault::invalid(format!("the body is no JSON: {error}"))),
        }
    }

    /// A value, unless it is missing or null.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ApiFault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiFault::parameter(key, format!("`{key}` must be a text"))),
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, ApiFault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(ApiFault::parameter(key, format!("`{key}` must be a list"))),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, ApiFault> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(ApiFault::parameter(
                key,
                format!("`{key}` must be true or false"),
            )),
        }
    }

    fn number(&mut self, key: &str, default: f64, least: f64, most: f64) -> Result<f64, ApiFault> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let number = value
            .as_f64()
            .filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| {
            ApiFault::parameter(
                key,
                format!("`{key}` must be a number from {least} to {most}, not {value}"),
            )
        })
    }

    fn count(&mut self, key: &str, least: u64, most: u64) -> Result<Option<usize>, ApiFault> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .filter(|number| (least..=most).contains(number));
        match number.and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiFault::parameter(
                key,
                format!("`{key}` must be a whole number from {least} to {most}, not {value}"),
            )),
        }
    }

    fn token_ids(&mut self, key: &str) -> Result<Vec<u32>, ApiFault> {
        let list = self.list(key)?.unwrap_or_default();
        token_ids(&list)
            .ok_or_else(|| ApiFault::parameter(key, format!("`{key}` must be a list of token ids")))
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiFault> {
        let wrong = || {
            ApiFault::parameter(
                "stop",
                format!(
                    "`stop` must be a text or a list of at most {MOST_STOPS} texts, none of them empty"
                ),
            )
        };
        let list = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let stops: Option<Vec<String>> = list
            .into_iter()
            .map(|stop| match stop {
                Value::String(stop) if !stop.is_empty() => Some(stop),
                _ => None,
            })
            .collect();
        stops
            .filter(|stops| stops.len() <= MOST_STOPS)
            .ok_or_else(wrong)
    }

    /// Reads what both ways to ask have in common. `logprobs` differs between them.
    pub(super) fn options(
        &mut self,
        limit_keys: &[&str],
        logprobs: Option<usize>,
    ) -> Result<Options, ApiFault> {
        let mut max_tokens = None;
        for key in limit_keys {
            let count = self.count(key, 1, u64::from(u32::MAX))?;
            max_tokens = max_tokens.or(count);
        }
        let n = self.count("n", 1, MOST_ANSWERS)?.unwrap_or(1);
        if let Some(best_of) = self.count("best_of", 1, MOST_ANSWERS)?
            && best_of != n
        {
            return Err(ApiFault::parameter(
                "best_of",
                "`best_of` other than `n` is not supported: all answers are returned",
            ));
        }
        let seed = match self.take("seed") {
            None => None,
            Some(value) => {
                let seed = value
                    .as_u64()
                    .or_else(|| value.as_i64().map(i64::cast_unsigned));
                Some(seed.ok_or_else(|| {
                    ApiFault::parameter("seed", "`seed` must be a whole number of 64 bits")
                })?)
            }
        };
        let stream = self.flag("stream")?;
        let include_usage = match self.take("stream_options") {
            None => false,
            Some(_) if !stream => {
                return Err(ApiFault::parameter(
                    "stream_options",
                    "`stream_options` goes with `stream: true`",
                ));
            }
            Some(options) => options.get("include_usage").and_then(Value::as_bool) == Some(true),
        };
        let options = Options {
            n,
            max_tokens,
            min_tokens: self
                .count("min_tokens", 0, u64::from(u32::MAX))?
                .unwrap_or(0),
            temperature: self.number("temperature", 1.0, 0.0, 100.0)?,
            top_p: self.number("top_p", 1.0, 1e-9, 1.0)?,
            top_k: self.top_k()?,
            min_p: self.number("min_p", 0.0, 0.0, 1.0)?,
            repetition_penalty: self.number("repetition_penalty", 1.0, 1e-3, 1e3)?,
            presence_penalty: self.number("presence_penalty", 0.0, -2.0, 2.0)?,
            frequency_penalty: self.number("frequency_penalty", 0.0, -2.0, 2.0)?,
            seed,
            stop: self.stop()?,
            stop_token_ids: self.token_ids("stop_token_ids")?,
            allowed_token_ids: self.token_ids("allowed_token_ids")?,
            ignore_eos: self.flag("ignore_eos")?,
            logprobs,
            stream,
            include_usage,
            return_token_ids: self.flag("return_token_ids")?,
        };
        if options.temperature == 0.0 && options.seed.is_none() {
            // Greedy answers are drawn from nothing.
            return Ok(Options {
                seed: Some(0),
                ..options
            });
        }
        Ok(options)
    }

    fn top_k(&mut self) -> Result<usize, ApiFault> {
        match self.0.get("top_k").and_then(Value::as_i64) {
            // What other servers write for all.
            Some(-1) => {
                self.take("top_k");
                Ok(0)
            }
            _ => Ok(self.count("top_k", 0, u64::from(u32::MAX))?.unwrap_or(0)),
        }
    }

    /// How many top tokens a chat wants, where it wants log-probabilities.
    pub(super) fn chat_logprobs(&mut self) -> Result<Option<usize>, ApiFault> {
        let is_wanted = self.flag("logprobs")?;
        let top = self.count("top_logprobs", 0, MOST_TOP_LOGPROBS)?;
        match (is_wanted, top) {
            (false, Some(1..)) => Err(ApiFault::parameter(
                "top_logprobs",
                "`top_logprobs` goes with `logprobs: true`",
            )),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.unwrap_or(0))),
        }
    }

    /// How many top tokens a completion wants, where it wants log-probabilities.
    pub(super) fn completion_logprobs(&mut self) -> Result<Option<usize>, ApiFault> {
        self.count("logprobs", 0, MOST_TOP_LOGPROBS)
    }

    /// Refuses keys that would change the answer and that nothing here knows.
    pub(super) fn finish(mut self) -> Result<(), ApiFault> {
        for key in WITHOUT_EFFECT {
            self.0.remove(key);
        }
        // Values that change nothing.
        for (key, neutral) in [
            ("logit_bias", Value::Object(Map::new())),
            ("echo", Value::Bool(false)),
            ("suffix", Value::from("")),
            ("response_format", serde_json::json!({ "type": "text" })),
            ("include_stop_str_in_output", Value::Bool(false)),
            ("use_beam_search", Value::Bool(false)),
        ] {
            if let Some(value) = self.take(key)
                && value != neutral
            {
                return Err(ApiFault::parameter(
                    key,
                    format!("`{key}: {value}` is not supported here"),
                ));
            }
        }
        self.0.retain(|_, value| !value.is_null());
        let unknown: BTreeSet<&String> = self.0.keys().collect();
        match unknown.into_iter().next() {
            Some(key) => Err(ApiFault::parameter(
                key,
                format!("`{key}` is not known here; leave it out"),
            )),
            None => Ok(()),
        }
    }
}

/// A list as token ids.
pub(super) fn token_ids(list: &[Value]) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(body: &Value) -> Result<Options, String> {
        let mut body = Body::read(body.to_string().as_bytes()).unwrap();
        let options = body.options(&["max_completion_tokens", "max_tokens"], None);
        let finished = options.and_then(|options| body.finish().map(|()| options));
        finished.map_err(|fault| fault.body())
    }

    #[test]
    fn options_of_openai_and_vllm_are_read() {
        let read = options(&json!({
            "n": 3, "max_tokens": 9, "temperature": 0.5, "top_k": -1, "min_p": 0.1, "seed": -1, "stop": "x",
            "stop_token_ids": [7], "stream": true, "stream_options": {"include_usage": true}, "user": "me",
            "response_format": {"type": "text"}, "logit_bias": {}, "top_p": null,
        }))
        .unwrap();
        assert_eq!(
            (read.n, read.max_tokens, read.top_k, read.seed),
            (3, Some(9), 0, Some(u64::MAX))
        );
        assert_eq!(
            (read.stop, read.stop_token_ids),
            (vec!["x".to_owned()], vec![7])
        );
        assert!(read.stream && read.include_usage);
        assert_eq!(read.top_p, 1.0);
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        let wrong = [
            (json!({"temperature": -1}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"n": 0}), "n"),
            (json!({"stop": ["a", ""]}), "stop"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"stream_options": {}}), "stream_options"),
            (json!({"logit_bias": {"5": 1}}), "logit_bias"),
            (json!({"temprature": 1}), "temprature"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
        ];
        for (body, key) in wrong {
            let fault: Value = serde_json::from_str(&options(&body).unwrap_err()).unwrap();
            assert_eq!(fault["error"]["param"], key);
            assert_eq!(fault["error"]["type"], "invalid_request_error");
        }
    }
}
