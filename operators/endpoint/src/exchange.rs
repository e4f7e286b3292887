//! One request and its response, sorted by what it means.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use url::Url;

use crate::answer::{Answer, NoAnswer, error_message};
use crate::config::Endpoint;
use crate::{ApiKey, EndpointError};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may take to say that it lives.
const PROBE: Duration = Duration::from_secs(5);
/// The longest response that is read.
const LONGEST: usize = 64 << 20;
/// Models that a message lists.
const NAMED: usize = 8;

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Answer(Answer),
    /// The server lives and has the model.
    Models,
    /// The server lives and has too much to do.
    Busy {
        message: String,
        pause: Option<Duration>,
    },
    /// The server lives and answered what is no answer.
    Lie(String),
    /// It will not answer this question.
    Refused(String),
    /// It will not answer any question.
    Fatal(String),
    /// It did not answer as a server does that is well.
    Fault {
        message: String,
        pause: Option<Duration>,
        is_unreachable: bool,
    },
}

/// Sends requests.
#[derive(Debug)]
pub(crate) struct Wire {
    client: Client,
    model: String,
    timeout: Duration,
}

impl Wire {
    pub(crate) fn new(config: &Endpoint, key: Option<ApiKey>) -> Result<Self, EndpointError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                    EndpointError::Setting("the key has characters that no key has".to_owned())
                })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(15))
            .pool_max_idle_per_host(config.concurrency as usize)
            // A key must not follow a redirection to somewhere else.
            .redirect(reqwest::redirect::Policy::none());
        if config.urls().all(is_near) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            EndpointError::Setting(format!("could not prepare requests: {}", chain(&error)))
        })?;
        Ok(Self {
            client,
            model: config.model.clone(),
            timeout: Duration::from_secs(u64::from(config.timeout_seconds)),
        })
    }

    /// Asks a question.
    pub(crate) async fn chat(&self, url: &str, body: String) -> Outcome {
        let request = self.client.post(format!("{url}/chat/completions"));
        let (status, bytes) = match exchange(request.body(body).timeout(self.timeout)).await {
            Ok(response) => response,
            Err(outcome) => return outcome,
        };
        let message = || format!("{url} answered {status}: {}", error_message(&bytes));
        match status {
            StatusCode::OK => match Answer::parse(&bytes) {
                Ok(answer) => Outcome::Answer(answer),
                Err(NoAnswer::Lie(message)) => Outcome::Lie(message),
                Err(NoAnswer::Refusal(message)) => Outcome::Refused(message),
            },
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Outcome::Refused(message()),
            _ => Outcome::Fatal(advice(url, status, &bytes)),
        }
    }

    /// Asks whether a server lives and has the model.
    pub(crate) async fn models(&self, url: &str) -> Outcome {
        let request = self.client.get(format!("{url}/models")).timeout(PROBE);
        let (status, bytes) = match exchange(request).await {
            Ok(response) => response,
            // A server that is busy or that lists no models lives.
            Err(Outcome::Busy { .. }) => return Outcome::Models,
            Err(outcome) => return outcome,
        };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Outcome::Fatal(advice(url, status, &bytes));
        }
        let listed: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let Some(models) = listed.get("data").and_then(Value::as_array) else {
            return Outcome::Models;
        };
        let names: Vec<&str> = models
            .iter()
            .filter_map(|model| model.get("id").and_then(Value::as_str))
            .collect();
        if names.is_empty() || names.contains(&self.model.as_str()) {
            return Outcome::Models;
        }
        let mut list = names[..names.len().min(NAMED)].join(", ");
        if names.len() > NAMED {
            list.push_str(&format!(" and {} more", names.len() - NAMED));
        }
        Outcome::Fatal(format!(
            "{url} has no model `{}`; it has {list}",
            self.model
        ))
    }
}

/// Sends a request and reads the response, or says what a failure of it means.
async fn exchange(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), Outcome> {
    let fault = |error: &reqwest::Error| Outcome::Fault {
        message: chain(error),
        pause: None,
        is_unreachable: error.is_connect(),
    };
    let mut response = request.send().await.map_err(|error| fault(&error))?;
    let (status, pause) = (response.status(), retry_after(&response));
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| fault(&error))? {
        if bytes.len() + chunk.len() > LONGEST {
            return Err(Outcome::Lie("the answer is longer than 64 MiB".to_owned()));
        }
        bytes.extend_from_slice(&chunk);
    }
    let message = || format!("it answered {status}: {}", error_message(&bytes));
    match status {
        StatusCode::TOO_MANY_REQUESTS if is_out_of_quota(&bytes) => Err(Outcome::Fatal(message())),
        StatusCode::TOO_MANY_REQUESTS => Err(Outcome::Busy {
            message: message(),
            pause,
        }),
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_EARLY => {
            Err(Outcome::Fault {
                message: message(),
                pause,
                is_unreachable: false,
            })
        }
        _ if status.is_server_error() => Err(Outcome::Fault {
            message: message(),
            pause,
            is_unreachable: false,
        }),
        _ => Ok((status, bytes)),
    }
}

/// What to do about a server that refuses everything.
fn advice(url: &str, status: StatusCode, bytes: &[u8]) -> String {
    let what = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "see whether the variable that `api-key-env` names has the right key"
        }
        StatusCode::NOT_FOUND => {
            "see whether `url` goes up to the version, for example `/v1`, and whether `model` is served there"
        }
        _ => "no question can be asked like this",
    };
    format!("{url} answered {status}: {}; {what}", error_message(bytes))
}

/// Money that ran out does not come back by waiting.
fn is_out_of_quota(bytes: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    ["/error/code", "/error/type"]
        .iter()
        .any(|place| body.pointer(place).and_then(Value::as_str) == Some("insufficient_quota"))
}

/// How long the server wants to be left alone: seconds, milliseconds, or a date, which is compared with the server's own.
fn retry_after(response: &Response) -> Option<Duration> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    let milliseconds = header("retry-after-ms").and_then(|text| text.trim().parse::<f64>().ok());
    if let Some(milliseconds) = milliseconds {
        return Duration::try_from_secs_f64(milliseconds.max(0.0) / 1e3).ok();
    }
    let text = header(RETRY_AFTER.as_str())?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let (then, now) = (seconds_of_date(text)?, seconds_of_date(header("date")?)?);
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Seconds of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`, counted from some day on.
fn seconds_of_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|year| (1..10_000).contains(year))?;
    let mut clock = words.next()?.split(':').map(str::parse::<u64>);
    let mut next = || clock.next()?.ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    // Years that begin in March end with the day that not all of them have.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// An error with its causes; the address is named elsewhere.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        "the connection failed".to_owned()
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Whether a server is on this machine, where a proxy has nothing to do.
fn is_near(url: &str) -> bool {
    let host = Url::parse(url).ok();
    match host.as_ref().and_then(Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_servers_are_compared() {
        let seconds = |text: &str| seconds_of_date(text).unwrap();
        let before = seconds("Wed, 28 Feb 2024 23:59:50 GMT");
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:20 GMT") - before, 30);
        assert_eq!(
            seconds("Fri, 01 Mar 2024 23:59:50 GMT") - before,
            2 * 86_400
        );
        assert_eq!(
            seconds("Fri, 28 Feb 2025 23:59:50 GMT") - before,
            366 * 86_400
        );
        for nonsense in [
            "",
            "soon",
            "Wed, 28 Foo 2024 00:00:00 GMT",
            "Wed, 28 Feb 2024",
        ] {
            assert_eq!(seconds_of_date(nonsense), None);
        }
    }
}
