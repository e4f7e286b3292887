//! A stage's doors, in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use engine_core::artifact::{Dataset, ModelFolder};
use engine_core::event::StageEvent;
use engine_core::operator::{BatchReader, StageIo};
use engine_core::{Artifact, Checkpoint, Digest, OperatorError};
use schemas::TableName;

/// Inputs, outputs and events of one stage run.
pub(crate) struct MemoryIo {
    tables: BTreeMap<String, Vec<RecordBatch>>,
    models: BTreeMap<String, PathBuf>,
    artifacts: BTreeMap<String, Vec<Artifact>>,
    media: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(crate) written: BTreeMap<String, Vec<RecordBatch>>,
    /// Files of written models, by port.
    pub(crate) written_models: BTreeMap<String, Vec<String>>,
    pub(crate) events: Mutex<Vec<StageEvent>>,
    /// Questions about cancellation that are answered with no before one is answered with yes.
    pub(crate) cancel_after: AtomicUsize,
    /// Whether a checkpoint is wanted after each step.
    pub(crate) checkpoint_each_step: bool,
    /// What was committed; give it to the [`MemoryIo`] of a run that is to go on.
    pub(crate) checkpoints: Vec<Saved>,
    scratch: tempfile::TempDir,
}

/// A committed checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) step: u64,
    files: BTreeMap<String, Vec<u8>>,
    state: serde_json::Value,
    written: BTreeMap<String, Vec<RecordBatch>>,
}

impl MemoryIo {
    pub(crate) fn new() -> Self {
        Self {
            tables: BTreeMap::new(),
            models: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            media: Mutex::default(),
            written: BTreeMap::new(),
            written_models: BTreeMap::new(),
            events: Mutex::default(),
            cancel_after: AtomicUsize::new(usize::MAX),
            checkpoint_each_step: false,
            checkpoints: Vec::new(),
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

    pub(crate) fn with_media(self, digest: &str, bytes: Vec<u8>) -> Self {
        self.media.lock().unwrap().insert(digest.to_owned(), bytes);
        self
    }

    /// Everything written to a port, as one batch.
    pub(crate) fn output(&self, port: &str) -> RecordBatch {
        let batches = &self.written[port];
        concat_batches(&batches[0].schema(), batches).unwrap()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let warnings = events.iter().filter_map(|event| match event {
            StageEvent::Warning(text) => Some(text.clone()),
            _ => None,
        });
        warnings.collect()
    }

    pub(crate) fn last_progress(&self) -> engine_core::Progress {
        let events = self.events.lock().unwrap();
        let mut progress = events.iter().rev().filter_map(|event| match event {
            StageEvent::Progress(progress) => Some(progress.clone()),
            _ => None,
        });
        progress.next().unwrap()
    }
}

impl engine_core::StageView for MemoryIo {
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

    fn put_media(&self, bytes: &[u8]) -> Result<String, OperatorError> {
        let digest = Digest::of(bytes).to_string();
        self.media
            .lock()
            .unwrap()
            .insert(digest.clone(), bytes.to_vec());
        Ok(digest)
    }

    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError> {
        self.media
            .lock()
            .unwrap()
            .get(digest)
            .cloned()
            .ok_or_else(|| OperatorError::Internal(format!("no media {digest}")))
    }

    fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn event(&self, event: StageEvent) {
        self.events.lock().unwrap().push(event);
    }

    fn is_cancelled(&self) -> bool {
        let left = self.cancel_after.load(Ordering::SeqCst);
        self.cancel_after
            .store(left.saturating_sub(1), Ordering::SeqCst);
        left == 0
    }
}

impl StageIo for MemoryIo {
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

    fn resume(&mut self) -> Result<Option<Checkpoint>, OperatorError> {
        assert!(self.written.is_empty(), "asked after rows were written");
        let Some(saved) = self.checkpoints.last() else {
            return Ok(None);
        };
        let folder = self.scratch.path().join("resumed");
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in &saved.files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        self.written = saved.written.clone();
        Ok(Some(Checkpoint {
            step: saved.step,
            folder,
            state: saved.state.clone(),
        }))
    }

    fn wants_checkpoint(&self) -> bool {
        self.checkpoint_each_step
    }

    fn checkpoint(
        &mut self,
        step: u64,
        folder: &Path,
        state: serde_json::Value,
    ) -> Result<(), OperatorError> {
        let mut files = BTreeMap::new();
        read_files(folder, "", &mut files);
        self.checkpoints.push(Saved {
            step,
            files,
            state,
            written: self.written.clone(),
        });
        Ok(())
    }
}

/// The files of a folder and those below it, by their names from there.
fn read_files(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read_files(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}
