//! What a pipeline file says about a server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// A server that speaks the OpenAI protocol, instead of a model that is loaded here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Endpoint {
    /// Address of the server up to its version, for example `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// Further servers with the very same model; the questions of one that dies go to the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
    /// Name of the model there.
    pub model: String,
    /// A name of your own for the exact weights. Answers are kept by it, and then whatever the address is; without it, another
    /// address is taken for another model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name of the environment variable that has the key. The key itself is never written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Requests that each server has at the same time. Default 64.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// Requests sent in a minute, to all servers together; no limit when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens asked and answered in a minute, with all servers together; no limit when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Seconds after which a request is given up and sent again. Default 600.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u32,
    /// How often a request is sent again after a fault of the server. Default 8.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Seconds without any answer after which a server is taken for dead. Default 45.
    #[serde(default = "give_up_seconds")]
    pub give_up_seconds: u32,
    /// What tokens cost; the sum is shown while the stage runs and when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// Prices of a million tokens, in any currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Price {
    /// A million tokens of prompts.
    pub input: f64,
    /// A million tokens of answers.
    pub output: f64,
}

fn concurrency() -> u32 {
    64
}

fn timeout_seconds() -> u32 {
    600
}

fn retries() -> u32 {
    8
}

fn give_up_seconds() -> u32 {
    45
}

impl Endpoint {
    /// The model that answers, with its revision.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{}@{revision}", self.model),
            None => self.model.clone(),
        }
    }

    /// Keys that change how answers are fetched and not what they are.
    pub const HOW: [&'static str; 9] = [
        "api-key-env",
        "concurrency",
        "requests-per-minute",
        "tokens-per-minute",
        "timeout-seconds",
        "retries",
        "give-up-seconds",
        "price",
        "replicas",
    ];

    /// A server with the usual limits.
    #[must_use]
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            replicas: Vec::new(),
            model: model.into(),
            revision: None,
            api_key_env: None,
            concurrency: concurrency(),
            requests_per_minute: None,
            tokens_per_minute: None,
            timeout_seconds: timeout_seconds(),
            retries: retries(),
            give_up_seconds: give_up_seconds(),
            price: None,
        }
    }

    /// The addresses of all servers.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.url)
            .chain(&self.replicas)
            .map(String::as_str)
    }

    /// What counts for the content of answers, of a configuration as JSON: of the server its model, and its address unless it
    /// has a revision.
    pub fn retain_content(endpoint: &mut serde_json::Value) {
        if let Some(object) = endpoint.as_object_mut() {
            let is_named = object.contains_key("revision");
            object
                .retain(|key, _| !Self::HOW.contains(&key.as_str()) && (key != "url" || !is_named));
        }
    }

    /// Every value that cannot be right: its key and what is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for (key, url) in
            std::iter::once(("url", &self.url)).chain(self.replicas.iter().map(|u| ("replicas", u)))
        {
            if let Err(message) = check_url(url) {
                faults.push((key, format!("`{url}` {message}")));
            }
        }
        if self.model.is_empty() {
            faults.push((
                "model",
                "`model` is empty: write the name by which the server knows it".to_owned(),
            ));
        }
        if let Some(name) = &self.api_key_env
            && (name.is_empty()
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        {
            faults.push((
                "api-key-env",
                "`api-key-env` is the name of an environment variable, not the key itself"
                    .to_owned(),
            ));
        }
        let counts = [
            ("concurrency", Some(self.concurrency)),
            ("requests-per-minute", self.requests_per_minute),
            ("tokens-per-minute", self.tokens_per_minute),
            ("timeout-seconds", Some(self.timeout_seconds)),
            ("give-up-seconds", Some(self.give_up_seconds)),
        ];
        for (key, value) in counts {
            if value == Some(0) {
                faults.push((key, format!("`{key}` is 0 and must be at least 1")));
            }
        }
        if let Some(price) = self.price {
            let is_price = |value: f64| value.is_finite() && value >= 0.0;
            if !is_price(price.input) || !is_price(price.output) {
                faults.push(("price", "`input` and `output` of `price` are what a million tokens cost and must be at least 0".to_owned()));
            }
        }
        faults
    }
}

fn check_url(text: &str) -> Result<(), &'static str> {
    let url = Url::parse(text)
        .map_err(|_| "is no address; write for example `http://127.0.0.1:8000/v1`")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("is no address of a web server: it starts with `http://` or `https://`");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "has a user, a password or a query: keys come from the environment variable that `api-key-env` names",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_nonsense_are_faults() {
        let keys = |endpoint: &Endpoint| -> Vec<&str> {
            endpoint.faults().into_iter().map(|(key, _)| key).collect()
        };
        let good = Endpoint::new("http://127.0.0.1:8000/v1", "m");
        assert!(keys(&good).is_empty());
        for url in [
            "here",
            "ftp://a/v1",
            "http://user:pw@a/v1",
            "http://a/v1?key=1",
        ] {
            assert_eq!(keys(&Endpoint::new(url, "m")), ["url"], "{url}");
        }
        let bad = Endpoint {
            concurrency: 0,
            api_key_env: Some("sk-12345".to_owned()),
            ..good
        };
        assert_eq!(keys(&bad), ["api-key-env", "concurrency"]);
    }

    #[test]
    fn a_revision_stands_for_the_address() {
        let mut endpoint = Endpoint::new("http://a/v1", "m");
        let content = |endpoint: &Endpoint| {
            let mut value = serde_json::to_value(endpoint).unwrap();
            Endpoint::retain_content(&mut value);
            value.to_string()
        };
        assert_eq!(content(&endpoint), r#"{"url":"http://a/v1","model":"m"}"#);
        endpoint.revision = Some("r1".to_owned());
        assert_eq!(content(&endpoint), r#"{"model":"m","revision":"r1"}"#);
    }
}
