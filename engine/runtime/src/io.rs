//! The doors of a running stage, over the store. The same in the engine's process and in a worker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use engine_core::operator::BatchReader;
use engine_core::{Artifact, Dataset, ModelFolder, OperatorError, PortType, StageEvent, StageIo};
use engine_store::{DatasetReader, DatasetWriter, PartLimits, Store};

use crate::keys::{Inputs, Outputs};

/// Progress more often than this is of no use to anyone.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Where the events of a stage go and where the wish to stop comes from.
pub(crate) trait StageListener: Send + Sync {
    fn event(&self, event: StageEvent);
    fn is_cancelled(&self) -> bool;
}

/// Ports of one stage.
pub(crate) struct StoreIo<'a> {
    store: &'a Store,
    inputs: Inputs,
    outputs: &'a [(String, PortType)],
    writers: BTreeMap<String, DatasetWriter>,
    models: BTreeMap<String, ModelFolder>,
    scratch: tempfile::TempDir,
    listener: &'a dyn StageListener,
    last_progress: Mutex<Option<Instant>>,
}

impl<'a> StoreIo<'a> {
    pub(crate) fn try_new(
        store: &'a Store,
        inputs: Inputs,
        outputs: &'a [(String, PortType)],
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
            listener,
            last_progress: Mutex::new(None),
        })
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
            let writer = DatasetWriter::try_new(
                self.store,
                *table,
                SchemaRef::clone(schema),
                PartLimits::default(),
            )?;
            self.writers.insert(port.to_owned(), writer);
        }
        Ok(self
            .writers
            .get_mut(port)
            .expect("the writer was just made"))
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

impl StageIo for StoreIo<'_> {
    fn inputs(&self, port: &str) -> &[Artifact] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    fn input_ports(&self) -> Vec<String> {
        self.inputs.keys().cloned().collect()
    }

    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        let reader = DatasetReader::new(self.store, self.datasets(port)?);
        Ok(Box::new(
            reader.map(|batch| batch.map_err(OperatorError::from)),
        ))
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

    fn put_media(&mut self, bytes: &[u8]) -> Result<String, OperatorError> {
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
