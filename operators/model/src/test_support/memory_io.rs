//! A stage's doors, in memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use engine_core::artifact::{Dataset, ModelFolder};
use engine_core::event::StageEvent;
use engine_core::operator::{BatchReader, StageIo};
use engine_core::{Artifact, Digest, OperatorError};
use schemas::TableName;

/// Inputs, outputs and events of one stage run.
pub(crate) struct MemoryIo {
    tables: BTreeMap<String, Vec<RecordBatch>>,
    models: BTreeMap<String, PathBuf>,
    artifacts: BTreeMap<String, Vec<Artifact>>,
    media: BTreeMap<String, Vec<u8>>,
    pub(crate) written: BTreeMap<String, Vec<RecordBatch>>,
    /// Files of written models, by port.
    pub(crate) written_models: BTreeMap<String, Vec<String>>,
    pub(crate) events: RefCell<Vec<StageEvent>>,
    /// Questions about cancellation that are answered with no before one is answered with yes.
    pub(crate) cancel_after: Cell<usize>,
    scratch: tempfile::TempDir,
}

impl MemoryIo {
    pub(crate) fn new() -> Self {
        Self {
            tables: BTreeMap::new(),
            models: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            media: BTreeMap::new(),
            written: BTreeMap::new(),
            written_models: BTreeMap::new(),
            events: RefCell::default(),
            cancel_after: Cell::new(usize::MAX),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn with_table(
        mut self,
        port: &str,
        table: TableName,
        batches: Vec<RecordBatch>,
    ) -> Self {
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let dataset = Dataset {
            digest: Digest::of(port.as_bytes()),
            table,
            rows,
            parts: Vec::new(),
        };
        self.artifacts
            .entry(port.to_owned())
            .or_default()
            .push(Artifact::Dataset(dataset));
        self.tables
            .entry(port.to_owned())
            .or_default()
            .extend(batches);
        self
    }

    pub(crate) fn with_model(mut self, port: &str, folder: PathBuf) -> Self {
        let model = ModelFolder {
            digest: Digest::of(port.as_bytes()),
            files: Vec::new(),
            path: String::new(),
        };
        self.artifacts
            .insert(port.to_owned(), vec![Artifact::Model(model)]);
        self.models.insert(port.to_owned(), folder);
        self
    }

    pub(crate) fn with_media(mut self, digest: &str, bytes: Vec<u8>) -> Self {
        self.media.insert(digest.to_owned(), bytes);
        self
    }

    /// Everything written to a port, as one batch.
    pub(crate) fn output(&self, port: &str) -> RecordBatch {
        let batches = &self.written[port];
        concat_batches(&batches[0].schema(), batches).unwrap()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let events = self.events.borrow();
        let warnings = events.iter().filter_map(|event| match event {
            StageEvent::Warning(text) => Some(text.clone()),
            StageEvent::Progress(_) => None,
        });
        warnings.collect()
    }

    pub(crate) fn last_progress(&self) -> engine_core::Progress {
        let events = self.events.borrow();
        let mut progress = events.iter().rev().filter_map(|event| match event {
            StageEvent::Progress(progress) => Some(progress.clone()),
            StageEvent::Warning(_) => None,
        });
        progress.next().unwrap()
    }
}

impl StageIo for MemoryIo {
    fn inputs(&self, port: &str) -> &[Artifact] {
        self.artifacts.get(port).map_or(&[], Vec::as_slice)
    }

    fn input_ports(&self) -> Vec<String> {
        self.artifacts.keys().cloned().collect()
    }

    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        let batches = self
            .tables
            .get(port)
            .ok_or_else(|| OperatorError::Internal(format!("no table on `{port}`")))?;
        Ok(Box::new(batches.clone().into_iter().map(Ok)))
    }

    fn part_urls(&self, _port: &str) -> Result<Vec<String>, OperatorError> {
        Err(OperatorError::Internal("no files in memory".into()))
    }

    fn model_folder(&self, port: &str) -> Result<PathBuf, OperatorError> {
        self.models
            .get(port)
            .cloned()
            .ok_or_else(|| OperatorError::Internal(format!("no model on `{port}`")))
    }

    fn write(&mut self, port: &str, batch: RecordBatch) -> Result<(), OperatorError> {
        self.written.entry(port.to_owned()).or_default().push(batch);
        Ok(())
    }

    fn write_model(&mut self, port: &str, folder: &Path) -> Result<(), OperatorError> {
        let files = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut contents: Vec<String> = files
            .map(|file| std::fs::read_to_string(file).unwrap())
            .collect();
        contents.sort();
        self.written_models.insert(port.to_owned(), contents);
        Ok(())
    }

    fn put_media(&mut self, bytes: &[u8]) -> Result<String, OperatorError> {
        let digest = Digest::of(bytes).to_string();
        self.media.insert(digest.clone(), bytes.to_vec());
        Ok(digest)
    }

    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError> {
        self.media
            .get(digest)
            .cloned()
            .ok_or_else(|| OperatorError::Internal(format!("no media {digest}")))
    }

    fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn event(&self, event: StageEvent) {
        self.events.borrow_mut().push(event);
    }

    fn is_cancelled(&self) -> bool {
        let left = self.cancel_after.get();
        self.cancel_after.set(left.saturating_sub(1));
        left == 0
    }
}
