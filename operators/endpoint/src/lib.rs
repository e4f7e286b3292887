//! A client of servers that speak the OpenAI protocol (vLLM, SGLang, `metis-flow serve`, OpenAI): many questions at a time, with
//! limits, retries and an eye on the health of each server. It knows neither tables nor models.

mod answer;
mod client;
mod config;
mod exchange;
mod image;
mod log;
mod pace;
mod question;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;

pub use answer::{Answer, Finish};
pub use client::{Answers, Client, Tally};
pub use config::{Endpoint, Price};
pub use question::{Part, Question, Sampling, Turn, messages};

/// Why nothing can be asked at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The configuration or the environment is not as it must be.
    #[error("{0}")]
    Setting(String),
    /// The server refuses whatever is asked.
    #[error("{0}")]
    Refused(String),
    /// No server answers any more.
    #[error("{0}")]
    Gone(String),
    /// The caller broke off.
    #[error("interrupted")]
    Interrupted,
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Keeps a key.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The key in an environment variable.
    ///
    /// # Errors
    /// When it is not set or is no text.
    pub fn from_environment(variable: &str) -> Result<Self, EndpointError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "secrets come from the environment alone, and this is where they are read"
        )]
        let value = std::env::var(variable).unwrap_or_default();
        let is_text = |byte: u8| byte.is_ascii_graphic();
        if !value.is_empty() && value.bytes().all(is_text) {
            return Ok(Self(value));
        }
        let what = if value.is_empty() {
            "is not set"
        } else {
            "has characters that a key cannot have"
        };
        Err(EndpointError::Setting(format!(
            "the environment variable `{variable}`, which `api-key-env` names, {what}: export it where metis-flow is started"
        )))
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKey(..)")
    }
}
