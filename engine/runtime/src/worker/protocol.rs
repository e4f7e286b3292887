//! What the engine and a worker say to each other.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use engine_core::{PortType, StageEvent};
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::failure::{Domain, Failure};
use crate::keys::Inputs;
use crate::stage::{StageDone, StageJob};

/// First line to a worker: what holds for all its stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSetup {
    /// Version of the engine; a worker of another version refuses.
    pub version: String,
    /// URL of the store.
    pub store: String,
    /// Project folder, where relative external paths start.
    pub root: PathBuf,
    /// Threads to compute with.
    pub threads: usize,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
}

/// A stage to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageRequest {
    pub(crate) stage: String,
    pub(crate) config: serde_json::Value,
    pub(crate) seed: u64,
    pub(crate) inputs: Inputs,
    pub(crate) outputs: Vec<OutputPort>,
    pub(crate) job: StageJob,
}

/// An output port with its type. The schema is an Arrow IPC message, which keeps every detail of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputPort {
    name: String,
    table: Option<(TableName, Vec<u8>)>,
}

impl OutputPort {
    pub(crate) fn new(name: &str, port_type: &PortType) -> Result<Self, Failure> {
        let table = match port_type {
            PortType::Table { table, schema } => Some((*table, encode(schema)?)),
            PortType::Model => None,
        };
        Ok(Self {
            name: name.to_owned(),
            table,
        })
    }

    pub(crate) fn decode(&self) -> Result<(String, PortType), Failure> {
        let port_type = match &self.table {
            Some((table, bytes)) => {
                let reader = StreamReader::try_new(bytes.as_slice(), None).map_err(schema_error)?;
                PortType::Table {
                    table: *table,
                    schema: reader.schema(),
                }
            }
            None => PortType::Model,
        };
        Ok((self.name.clone(), port_type))
    }
}

fn encode(schema: &SchemaRef) -> Result<Vec<u8>, Failure> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(schema_error)?;
    writer.finish().map_err(schema_error)?;
    writer.into_inner().map_err(schema_error)
}

fn schema_error(error: arrow::error::ArrowError) -> Failure {
    Failure::new(
        Domain::Internal,
        format!("internal error: a schema does not cross the process boundary: {error}"),
    )
}

/// A line from a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromWorker {
    /// The backend is up.
    Ready { backend: String },
    /// The worker lives.
    Heartbeat,
    /// The running stage tells something.
    Event(StageEvent),
    /// The stage has committed something, from where another attempt goes on.
    Committed,
    /// The stage is done; its objects are stored and not yet committed.
    Done(StageDone),
    /// The stage failed, or the worker could not start.
    Failed(Failure),
}

/// What the supervisor hears: a line, or that there will be none any more.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    Line(Box<FromWorker>),
    Closed,
}

/// Last lines of a worker's log.
pub(crate) type LogTail = Arc<std::sync::Mutex<std::collections::VecDeque<String>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_crosses_the_boundary_unchanged() {
        let ports = [
            ("rollouts".to_owned(), PortType::table(TableName::Rollouts)),
            ("model".to_owned(), PortType::Model),
            ("prompts".to_owned(), PortType::table(TableName::Prompts)),
        ];
        let request = StageRequest {
            stage: "probe".to_owned(),
            config: serde_json::json!({"samples": 8, "temperature": 0.7}),
            seed: u64::MAX,
            inputs: Inputs::new(),
            outputs: ports
                .iter()
                .map(|(name, port_type)| OutputPort::new(name, port_type).unwrap())
                .collect(),
            job: StageJob {
                key: engine_core::Digest::of(b"key"),
                kind: "rollout".to_owned(),
                version: 3,
                config: serde_json::json!({"samples": 8}),
                uses_seed: true,
                quarantine: Some(crate::stage::Budget::Share(0.1)),
                is_forced: false,
                replay: Vec::new(),
                memory_budget: 1 << 28,
                checkpoint_every: std::time::Duration::from_millis(1500),
                threads: 2,
            },
        };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        let read: StageRequest = serde_json::from_str(&line).unwrap();
        assert_eq!(read, request);
        let decoded: Vec<_> = read
            .outputs
            .iter()
            .map(|port| port.decode().unwrap())
            .collect();
        assert_eq!(decoded, ports);
    }
}
