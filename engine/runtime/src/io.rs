//! The doors of a running stage, over the store. The same in the engine's process and in a worker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use engine_core::operator::{BatchReader, StageView};
use engine_core::{
    Artifact, Checkpoint, Dataset, ModelFolder, OperatorError, PartRef, PortType, StageEvent,
    StageIo,
};
use engine_store::{DatasetReader, DatasetWriter, PartLimits, Store};
use schemas::TableName;

use crate::keys::{Inputs, Outputs};
use crate::stage::StageJob;

/// Progress more often than this is of no use to anyone.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Where the events of a stage go and where the wish to stop comes from.
pub(crate) trait StageListener: Send + Sync {
    fn event(&self, event: StageEvent);
    fn is_cancelled(&self) -> bool;
    /// The stage has committed a part or where it is: if it is broken off, it goes on from there.
    fn committed(&self) {}
    /// Something the user should know of this run, and that the stage's result has nothing to do with.
    fn notice(&self, message: String) {
        self.event(StageEvent::Warning(message));
    }
}

/// Ports of one stage.
pub(crate) struct StoreIo<'a> {
    store: &'a Store,
    inputs: Inputs,
    outputs: &'a [(String, PortType)],
    writers: BTreeMap<String, DatasetWriter>,
    models: BTreeMap<String, ModelFolder>,
    scratch: tempfile::TempDir,
    job: &'a StageJob,
    listener: &'a dyn StageListener,
    last_progress: Mutex<Option<Instant>>,
    /// When the last checkpoint was committed, or the stage began.
    last_checkpoint: Instant,
}

impl<'a> StoreIo<'a> {
    pub(crate) fn try_new(
        store: &'a Store,
        inputs: Inputs,
        outputs: &'a [(String, PortType)],
        job: &'a StageJob,
        listener: &'a dyn StageListener,
    ) -> Result<Self, OperatorError> {
        let scratch = store.scratch()?;
        let (writers, models) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            store,
            inputs,
            outputs,
            writers,
            models,
            scratch,
            job,
            listener,
            last_progress: Mutex::new(None),
            last_checkpoint: Instant::now(),
        })
    }

    pub(crate) fn store(&self) -> &'a Store {
        self.store
    }

    /// Tells that something is committed that was not before.
    pub(crate) fn committed(&self) {
        self.listener.committed();
    }

    /// Output ports with their types.
    pub(crate) fn ports(&self) -> &'a [(String, PortType)] {
        self.outputs
    }

    /// All rows of an input port, with these columns alone when they are named.
    pub(crate) fn read_columns(
        &self,
        port: &str,
        columns: Option<&[String]>,
    ) -> Result<BatchReader, OperatorError> {
        let mut reader = DatasetReader::new(self.store, self.datasets(port)?);
        if let Some(columns) = columns {
            reader = reader.with_columns(columns);
        }
        Ok(Box::new(
            reader.map(|batch| batch.map_err(OperatorError::from)),
        ))
    }

    /// Closes the output ports. A table nobody wrote to is a table without rows.
    pub(crate) fn finish(mut self) -> Result<Outputs, OperatorError> {
        let mut outputs = Outputs::new();
        for (port, port_type) in self.outputs {
            let artifact = match port_type {
                PortType::Table { .. } => {
                    self.writer(port)?;
                    let writer = self.writers.remove(port).expect("the writer was just made");
                    Artifact::Dataset(writer.finish()?)
                }
                PortType::Model => Artifact::Model(self.models.remove(port).ok_or_else(|| {
                    OperatorError::Internal(format!("the operator wrote no model to port `{port}`"))
                })?),
            };
            outputs.insert(port.clone(), artifact);
        }
        Ok(outputs)
    }

    fn output(&self, port: &str) -> Result<&'a PortType, OperatorError> {
        let found = self.outputs.iter().find(|(name, _)| name == port);
        found
            .map(|(_, port_type)| port_type)
            .ok_or_else(|| OperatorError::Internal(format!("there is no output port `{port}`")))
    }

    fn writer(&mut self, port: &str) -> Result<&mut DatasetWriter, OperatorError> {
        let PortType::Table { table, schema } = self.output(port)? else {
            return Err(OperatorError::Internal(format!(
                "output port `{port}` holds a model, not rows"
            )));
        };
        if !self.writers.contains_key(port) {
            let writer = self.new_writer(*table, schema, Vec::new())?;
            self.writers.insert(port.to_owned(), writer);
        }
        Ok(self
            .writers
            .get_mut(port)
            .expect("the writer was just made"))
    }

    fn new_writer(
        &self,
        table: TableName,
        schema: &SchemaRef,
        parts: Vec<PartRef>,
    ) -> Result<DatasetWriter, OperatorError> {
        let schema = SchemaRef::clone(schema);
        let limits = PartLimits::default();
        Ok(DatasetWriter::resume(
            self.store, table, schema, limits, parts,
        )?)
    }

    fn datasets(&self, port: &str) -> Result<Vec<&Dataset>, OperatorError> {
        self.inputs(port)
            .iter()
            .map(|artifact| match artifact {
                Artifact::Dataset(dataset) => Ok(dataset),
                Artifact::Model(_) => Err(OperatorError::Internal(format!(
                    "input port `{port}` holds a model, not rows"
                ))),
            })
            .collect()
    }
}

impl StageView for StoreIo<'_> {
    fn inputs(&self, port: &str) -> &[Artifact] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    fn input_ports(&self) -> Vec<String> {
        self.inputs.keys().cloned().collect()
    }

    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        self.read_columns(port, None)
    }

    fn part_urls(&self, port: &str) -> Result<Vec<String>, OperatorError> {
        let datasets = self.datasets(port)?;
        Ok(datasets
            .iter()
            .flat_map(|dataset| &dataset.parts)
            .map(|part| self.store.object_url(&part.path))
            .collect())
    }

    fn model_folder(&self, port: &str) -> Result<PathBuf, OperatorError> {
        match self.inputs(port) {
            [Artifact::Model(model)] => Ok(self.store.local_model_folder(model)?),
            [] => Err(OperatorError::Internal(format!(
                "input port `{port}` is not connected"
            ))),
            _ => Err(OperatorError::Internal(format!(
                "input port `{port}` does not hold one model"
            ))),
        }
    }

    fn put_media(&self, bytes: &[u8]) -> Result<String, OperatorError> {
        Ok(self.store.put_media(bytes)?)
    }

    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError> {
        Ok(self.store.media(digest)?)
    }

    fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn event(&self, event: StageEvent) {
        if let StageEvent::Progress(progress) = &event {
            let mut last = self
                .last_progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let is_last = progress.total == Some(progress.done);
            if !is_last && last.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
                return;
            }
            *last = Some(Instant::now());
        }
        self.listener.event(event);
    }

    fn is_cancelled(&self) -> bool {
        self.listener.is_cancelled()
    }
}

impl StageIo for StoreIo<'_> {
    fn write(&mut self, port: &str, batch: RecordBatch) -> Result<(), OperatorError> {
        // A batch of another shape than declared is a mistake in the operator, not in the user's data.
        self.writer(port)?
            .write(&batch)
            .map_err(|error| match error {
                engine_store::StoreError::Rows(message) => {
                    OperatorError::Internal(format!("output port `{port}`: {message}"))
                }
                other => other.into(),
            })
    }

    fn write_model(&mut self, port: &str, folder: &Path) -> Result<(), OperatorError> {
        if self.output(port)? != &PortType::Model {
            return Err(OperatorError::Internal(format!(
                "output port `{port}` holds rows, not a model"
            )));
        }
        let model = self.store.import_model(folder)?;
        self.models.insert(port.to_owned(), model);
        Ok(())
    }

    fn resume(&mut self) -> Result<Option<Checkpoint>, OperatorError> {
        let folder = self.scratch.path().join("resumed");
        let Some(mut stored) = self.store.restore_checkpoint(&self.job.key, &folder)? else {
            return Ok(None);
        };
        if !self.writers.is_empty() {
            return Err(OperatorError::Internal(
                "the operator asked for its checkpoint after it had written rows".to_owned(),
            ));
        }
        for (port, port_type) in self.outputs {
            if let PortType::Table { table, schema } = port_type {
                let parts = stored.outputs.remove(port).unwrap_or_default();
                let writer = self.new_writer(*table, schema, parts)?;
                self.writers.insert(port.clone(), writer);
            }
        }
        tracing::info!(step = stored.step, "going on from a checkpoint");
        Ok(Some(Checkpoint {
            step: stored.step,
            folder,
            state: stored.state,
        }))
    }

    fn wants_checkpoint(&self) -> bool {
        self.last_checkpoint.elapsed() >= self.job.checkpoint_every
    }

    fn checkpoint(
        &mut self,
        step: u64,
        folder: &Path,
        state: serde_json::Value,
    ) -> Result<(), OperatorError> {
        let mut outputs = BTreeMap::new();
        for (port, writer) in &mut self.writers {
            outputs.insert(port.clone(), writer.flush()?);
        }
        self.store
            .write_checkpoint(&self.job.key, step, folder, outputs, state)?;
        self.last_checkpoint = Instant::now();
        tracing::info!(step, "checkpoint committed");
        self.committed();
        Ok(())
    }
}
