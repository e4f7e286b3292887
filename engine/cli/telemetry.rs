//! Traces of a run for an OpenTelemetry collector: spans of the run, its stages and their parts, over OTLP on HTTP.
//!
//! The spans are made from what the engine records, not from where its code happens to be, so that what workers do is in
//! them too. They are sent by a thread of their own; a collector that does not answer costs a warning and never the run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use engine_core::Digest;
use engine_runtime::RunEvent;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks,
    SpanProcessor,
};
use schemas::record::{StageRecord, StageStatus};

use crate::VERSION;
use crate::exit::wrong;
use crate::logging::{is_json, json_line};
use crate::text::epoch_micros;

/// How long a collector may take to answer one request.
const REQUEST: Duration = Duration::from_millis(1500);
/// How long the end of a run waits for the last spans.
const FLUSH: Duration = Duration::from_millis(1800);
/// Spans that may wait for a slow collector.
const QUEUE: usize = 65_536;
/// The path of traces, where an address has none.
const PATH: &str = "/v1/traces";

/// Sends the spans of a run.
pub(crate) struct Traces {
    processor: BatchSpanProcessor,
    failure: Arc<Mutex<Option<String>>>,
    url: String,
    pipeline: String,
    run: String,
    trace: TraceId,
    started: SystemTime,
}

impl Traces {
    /// # Errors
    /// When the address is none. Whether somebody answers there is not looked at.
    pub(crate) fn start(url: &str, pipeline: &str) -> anyhow::Result<Self> {
        let url = endpoint(url).ok_or_else(|| {
            wrong(format!(
                "`{url}` is no address of a collector; give one such as http://localhost:4318"
            ))
        })?;
        let exporter = OtlpExporter::builder()
            .with_http()
            .with_endpoint(&url)
            .with_timeout(REQUEST)
            .build()
            .map_err(|error| wrong(format!("cannot send traces to {url}: {error}")))?;
        let failure = Arc::new(Mutex::new(None));
        let watched = Watched {
            exporter,
            failure: Arc::clone(&failure),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_scheduled_delay(Duration::from_secs(2))
            .build();
        let mut processor = BatchSpanProcessor::builder(watched)
            .with_batch_config(config)
            .build();
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "metis-flow"),
                KeyValue::new("service.version", VERSION),
            ])
            .build();
        processor.set_resource(&resource);
        Ok(Self {
            processor,
            failure,
            url,
            pipeline: pipeline.to_owned(),
            run: String::new(),
            trace: TraceId::INVALID,
            started: now(),
        })
    }

    pub(crate) fn observe(&mut self, event: RunEvent<'_>) {
        match event {
            RunEvent::Started { run } => {
                run.clone_into(&mut self.run);
                self.started = now();
                // A run has one identity, and its trace is named by it.
                self.trace = TraceId::from_hex(&hex(&[run])[..32]).unwrap_or(TraceId::INVALID);
            }
            RunEvent::StageEnded { record, .. } => self.stage(record),
            RunEvent::Ended { outcome } => {
                let status = outcome.status.as_str();
                let attributes = vec![
                    KeyValue::new("metis.run", self.run.clone()),
                    KeyValue::new("metis.pipeline", self.pipeline.clone()),
                    KeyValue::new("metis.status", status),
                    KeyValue::new("metis.stages", outcome.stages.len() as i64),
                ];
                let is_bad = outcome.status == engine_runtime::RunStatus::Failed;
                self.send(Span {
                    id: self.id(&[]),
                    parent: SpanId::INVALID,
                    name: format!("run {}", self.pipeline),
                    start: self.started,
                    end: now(),
                    attributes,
                    error: is_bad.then(|| "a stage failed".to_owned()),
                });
            }
            _ => {}
        }
    }

    fn stage(&self, record: &StageRecord) {
        if matches!(
            record.status,
            StageStatus::Skipped | StageStatus::NotSelected
        ) {
            return;
        }
        let Some(start) = epoch_micros(&record.started).map(at) else {
            return;
        };
        let mut attributes = vec![
            KeyValue::new("metis.stage", record.stage.clone()),
            KeyValue::new("metis.operator", record.kind.clone()),
            KeyValue::new("metis.status", record.status.as_str()),
        ];
        let key = record.key.clone();
        attributes.extend(key.map(|key| KeyValue::new("metis.key", key)));
        let rows = record.rows.map(|rows| rows as i64);
        attributes.extend(rows.map(|rows| KeyValue::new("metis.rows", rows)));
        if let Some(parts) = &record.parts {
            attributes.extend([
                KeyValue::new("metis.parts", parts.total as i64),
                KeyValue::new("metis.parts.reused", parts.reused as i64),
                KeyValue::new("metis.rows.quarantined", parts.quarantined as i64),
            ]);
        }
        let id = self.id(&[&record.stage]);
        for (index, span) in record.spans.iter().enumerate() {
            let start = start + seconds(span.start);
            self.send(Span {
                id: self.id(&[&record.stage, &index.to_string()]),
                parent: id,
                name: format!("part of {}", record.stage),
                start,
                end: start + seconds(span.seconds),
                attributes: vec![
                    KeyValue::new("metis.part", span.part.clone()),
                    KeyValue::new("metis.rows", span.rows as i64),
                    KeyValue::new("metis.lane", i64::from(span.lane)),
                ],
                error: None,
            });
        }
        self.send(Span {
            id,
            parent: self.id(&[]),
            name: format!("stage {}", record.stage),
            start,
            end: start + seconds(record.seconds),
            attributes,
            error: record.error.clone(),
        });
    }

    /// Identity of a span of this run.
    fn id(&self, path: &[&str]) -> SpanId {
        let mut words = vec![self.run.as_str(), "span"];
        words.extend(path);
        SpanId::from_hex(&hex(&words)[..16]).unwrap_or(SpanId::INVALID)
    }

    fn send(&self, span: Span) {
        let context = SpanContext::new(
            self.trace,
            span.id,
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: span.parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: span.start,
            end_time: span.end,
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("metis-flow")
                .with_version(VERSION)
                .build(),
        });
    }

    /// Sends what is left, and says so when something did not get through.
    pub(crate) fn finish(self) {
        let ended = self.processor.shutdown_with_timeout(FLUSH);
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let failure = failure.or_else(|| ended.err().map(|error| error.to_string()));
        if let Some(failure) = failure {
            let message = format!("traces did not reach {}: {failure}", self.url);
            if is_json() {
                json_line("WARN", &message, serde_json::Value::Null);
            } else {
                eprintln!("warning: {message}");
            }
        }
    }
}

struct Span {
    id: SpanId,
    parent: SpanId,
    name: String,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<KeyValue>,
    error: Option<String>,
}

/// An exporter that remembers that it failed.
#[derive(Debug)]
struct Watched {
    exporter: OtlpExporter,
    failure: Arc<Mutex<Option<String>>>,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| cause(&error.to_string()).to_owned());
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// What the system said, where the error of a request quotes it.
fn cause(text: &str) -> &str {
    let quoted = text.rsplit_once("message: \"").map(|(_, rest)| rest);
    let message = quoted.and_then(|rest| rest.split('"').next());
    message.unwrap_or(text)
}

/// The address of traces: an address without a path gets the usual one.
fn endpoint(url: &str) -> Option<String> {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains(char::is_whitespace) {
        return None;
    }
    Some(match path {
        "" => format!("{}{PATH}", url.trim_end_matches('/')),
        _ => url.to_owned(),
    })
}

fn hex(words: &[&str]) -> String {
    Digest::of(words.join("\n").as_bytes()).to_string()
}

fn at(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "spans say when things happened")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_failure_is_short() {
        let text = "Error { source: Os { code: 111, message: \"Connection refused\" } }";
        assert_eq!(cause(text), "Connection refused");
        assert_eq!(cause("timed out"), "timed out");
    }

    #[test]
    fn an_address_without_a_path_gets_the_usual_one() {
        let traces = Some("http://localhost:4318/v1/traces".to_owned());
        assert_eq!(endpoint("http://localhost:4318"), traces);
        assert_eq!(endpoint("http://localhost:4318/"), traces);
        assert_eq!(
            endpoint("https://host/otlp/v1/traces"),
            Some("https://host/otlp/v1/traces".to_owned())
        );
        assert_eq!(endpoint("localhost:4318"), None);
        assert_eq!(endpoint("http://"), None);
    }
}
