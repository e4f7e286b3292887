//! Errors as clients of the OpenAI protocol expect them.

use serde_json::json;

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiFault {
    pub(super) status: u16,
    kind: &'static str,
    message: String,
    parameter: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    pub(super) retry_after: Option<u32>,
}

impl ApiFault {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            parameter: None,
            code: None,
            retry_after: None,
        }
    }

    /// The request is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// One key of the request is wrong.
    pub(super) fn parameter(name: &str, message: impl Into<String>) -> Self {
        Self {
            parameter: Some(name.to_owned()),
            ..Self::invalid(message)
        }
    }

    /// Prompt and answer are too long together.
    pub(super) fn too_long(message: impl Into<String>) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::parameter("messages", message)
        }
    }

    /// No key, or a wrong one.
    pub(super) fn unauthorised() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                401,
                "invalid_request_error",
                "the key is missing or wrong: send `Authorization: Bearer KEY` with the key that the server was started with",
            )
        }
    }

    /// Nothing is here.
    pub(super) fn no_path(path: &str) -> Self {
        let message = format!(
            "there is nothing at {path}; there are /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics"
        );
        Self::new(404, "invalid_request_error", message)
    }

    /// Another model is asked for than the one that is served.
    pub(super) fn no_model(asked: &str, served: &str) -> Self {
        Self {
            parameter: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::new(
                404,
                "invalid_request_error",
                format!("there is no model `{asked}` here; this server has `{served}`"),
            )
        }
    }

    /// The path does not take this method.
    pub(super) fn method(path: &str, method: &str) -> Self {
        Self::new(
            405,
            "invalid_request_error",
            format!("{path} takes {method}"),
        )
    }

    /// The body is too large.
    pub(super) fn too_large(mib: u32) -> Self {
        let message = format!(
            "the request is larger than {mib} MiB: send fewer or smaller images, or start the server with a larger --max-body-mib"
        );
        Self::new(413, "invalid_request_error", message)
    }

    /// As much is waiting as may wait.
    pub(super) fn busy() -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(1),
            ..Self::new(
                429,
                "rate_limit_error",
                "too many requests are waiting; try again in a moment, or start the server with a larger --max-waiting",
            )
        }
    }

    /// Not yet, or not any more.
    pub(super) fn unavailable(message: &str) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(503, "server_error", message)
        }
    }

    /// Ours.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", message)
    }

    /// The body of the response.
    pub(super) fn body(&self) -> String {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        })
        .to_string()
    }
}
