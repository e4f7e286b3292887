//! What each path answers.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use engine_core::seed;
use operators_model::processor::Processor;
use serde_json::json;

use super::engine::Engine;
use super::fault::ApiFault;
use super::generation::Generation;
use super::http::{BodyFault, Connection, Head};
use super::reply::Way;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) api_key: Option<String>,
    pub(super) body_mib: u32,
    pub(super) engine: Arc<Engine>,
    /// When the server began, in seconds since 1970.
    pub(super) created: u64,
    /// Makes names of responses and seeds that were not there before.
    pub(super) fresh: Fresh,
    /// Set when the model is loaded.
    pub(super) loaded: OnceLock<Loaded>,
    pub(super) ending: std::sync::atomic::AtomicBool,
}

/// What is known of a model that is loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) processor: Processor,
    /// Tokens of a prompt and its answer.
    pub(super) max_tokens: usize,
}

/// Numbers that differ from start to start and from call to call.
#[derive(Debug)]
pub(super) struct Fresh {
    start: u64,
    next: std::sync::atomic::AtomicU64,
}

impl Fresh {
    pub(super) fn new(start: u64) -> Self {
        Self {
            start,
            next: 0.into(),
        }
    }

    pub(super) fn draw(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        seed::derive(self.start, &number.to_string())
    }
}

/// A response that is a whole.
pub(super) struct Plain {
    content_type: &'static str,
    body: String,
}

/// Requests of one connection, one after the other.
pub(super) fn serve_connection(connection: &mut Connection, service: &Service) -> io::Result<()> {
    loop {
        let head = match connection.read_head() {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let fault = ApiFault::invalid(format!("this is no request: {error}"));
                return refuse(connection, &fault, false);
            }
            Err(error) => return Err(error),
        };
        service
            .engine
            .counters
            .requests
            .fetch_add(1, Ordering::Relaxed);
        let keep_alive = head.keep_alive && !service.ending.load(Ordering::SeqCst);
        match answer(connection, &head, service, keep_alive) {
            Ok(None) => {}
            Ok(Some(plain)) => connection.respond(
                200,
                plain.content_type,
                "",
                plain.body.as_bytes(),
                keep_alive,
            )?,
            Err(Ended::Fault(fault, is_read)) => {
                service
                    .engine
                    .counters
                    .refused
                    .fetch_add(1, Ordering::Relaxed);
                let keep_alive = keep_alive && is_read;
                refuse(connection, &fault, keep_alive)?;
                if !keep_alive {
                    return Ok(());
                }
            }
            Err(Ended::Gone) => return Ok(()),
        }
        if !keep_alive {
            return Ok(());
        }
    }
}

/// Sends an error.
pub(super) fn refuse(
    connection: &mut Connection,
    fault: &ApiFault,
    keep_alive: bool,
) -> io::Result<()> {
    let mut more = String::new();
    if let Some(seconds) = fault.retry_after {
        more.push_str(&format!("Retry-After: {seconds}\r\n"));
    }
    if fault.status == 401 {
        more.push_str("WWW-Authenticate: Bearer\r\n");
    }
    connection.respond(
        fault.status,
        "application/json",
        &more,
        fault.body().as_bytes(),
        keep_alive,
    )
}

/// Why there is no response to send.
pub(super) enum Ended {
    /// An error, and whether the request's body has been read.
    Fault(ApiFault, bool),
    /// The client has gone.
    Gone,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn answer(
    connection: &mut Connection,
    head: &Head,
    service: &Service,
    keep_alive: bool,
) -> Result<Option<Plain>, Ended> {
    let unread = |fault| Ended::Fault(fault, head.has_no_body());
    let (method, path) = (head.method.as_str(), head.path.as_str());
    if path == "/health" && method == "GET" {
        return service.health().map(Some).map_err(unread);
    }
    if !service.lets_in(head.authorization.as_deref()) {
        return Err(unread(ApiFault::unauthorised()));
    }
    let way = match (path, method) {
        ("/v1/chat/completions", "POST") => Way::Chat,
        ("/v1/completions", "POST") => Way::Completion,
        ("/v1/models" | "/metrics" | "/health", "GET") => {
            return match path {
                "/metrics" => Ok(Some(service.metrics())),
                _ => Ok(Some(service.models())),
            };
        }
        ("/v1/chat/completions" | "/v1/completions", _) => {
            return Err(unread(ApiFault::method(path, "POST")));
        }
        ("/v1/models" | "/metrics" | "/health", _) => {
            return Err(unread(ApiFault::method(path, "GET")));
        }
        _ => match path.strip_prefix("/v1/models/") {
            Some(name) if name == service.name => return Ok(Some(service.model())),
            Some(name) => return Err(unread(ApiFault::no_model(name, &service.name))),
            None => return Err(unread(ApiFault::no_path(path))),
        },
    };
    let loaded = service.loaded().map_err(unread)?;
    let limit = (service.body_mib as usize) << 20;
    let body = connection
        .read_body(head, limit)
        .map_err(|fault| match fault {
            BodyFault::TooLarge => Ended::Fault(ApiFault::too_large(service.body_mib), false),
            BodyFault::Broken => Ended::Gone,
        })?;
    let generation =
        Generation::read(&body, way, service, loaded).map_err(|fault| Ended::Fault(fault, true))?;
    drop(body);
    if generation.options.stream {
        generation.stream(connection, service, loaded, keep_alive)
    } else {
        generation.collect(connection, service, loaded)
    }
}

impl Service {
    fn lets_in(&self, authorization: Option<&str>) -> bool {
        let Some(key) = &self.api_key else {
            return true;
        };
        let given = authorization.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        is_equal(key.as_bytes(), given.unwrap_or_default().as_bytes())
    }

    fn loaded(&self) -> Result<&Loaded, ApiFault> {
        if self.ending.load(Ordering::SeqCst) {
            return Err(ApiFault::unavailable("the server is ending"));
        }
        let loading = || ApiFault::unavailable("the model is being loaded; try again in a moment");
        self.loaded.get().ok_or_else(loading)
    }

    fn health(&self) -> Result<Plain, ApiFault> {
        self.loaded()
            .map(|_| Plain::json(&json!({ "status": "ok" })))
    }

    fn models(&self) -> Plain {
        Plain::json(&json!({ "object": "list", "data": [self.card()] }))
    }

    fn model(&self) -> Plain {
        Plain::json(&self.card())
    }

    fn card(&self) -> serde_json::Value {
        let mut card = json!({ "id": self.name, "object": "model", "created": self.created, "owned_by": "metis-flow" });
        if let Some(loaded) = self.loaded.get() {
            card["max_model_len"] = json!(loaded.max_tokens);
        }
        card
    }

    fn metrics(&self) -> Plain {
        let counters = &self.engine.counters;
        let rows = [
            (
                "requests_total",
                "Requests.",
                counters.requests.load(Ordering::Relaxed),
            ),
            (
                "requests_refused_total",
                "Requests that got an error.",
                counters.refused.load(Ordering::Relaxed),
            ),
            (
                "prompt_tokens_total",
                "Tokens of prompts.",
                counters.prompt_tokens.load(Ordering::Relaxed),
            ),
            (
                "completion_tokens_total",
                "Tokens of answers.",
                counters.completion_tokens.load(Ordering::Relaxed),
            ),
            (
                "sequences_cancelled_total",
                "Answers whose client went away or that met a stop string.",
                counters.cancelled.load(Ordering::Relaxed),
            ),
        ];
        let mut body = String::new();
        for (name, help, value) in rows {
            body.push_str(&format!("# HELP metis_flow_{name} {help}\n# TYPE metis_flow_{name} counter\nmetis_flow_{name} {value}\n"));
        }
        let load = self.engine.load();
        body.push_str(&format!(
            "# HELP metis_flow_sequences Answers that wait or are being written.\n# TYPE metis_flow_sequences gauge\nmetis_flow_sequences {load}\n"
        ));
        Plain {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body,
        }
    }
}

impl Plain {
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self {
            content_type: "application/json",
            body: value.to_string(),
        }
    }
}

/// Compares without telling by its time how much was right.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let mut difference = a.len() ^ b.len();
    for (index, byte) in a.iter().enumerate() {
        let other = b.get(index % b.len().max(1)).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(byte ^ other));
    }
    difference == 0
}
