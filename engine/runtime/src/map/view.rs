//! What a map operator sees of its stage: everything but the progress of the stage, which the driver tells.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use engine_core::operator::{BatchReader, StageView};
use engine_core::{Artifact, OperatorError, Progress, StageEvent};

use super::progress::MapProgress;
use crate::io::StoreIo;

/// The doors of a started map operator.
pub(super) struct MapView<'a> {
    pub(super) io: &'a StoreIo<'a>,
    pub(super) progress: &'a MapProgress<'a>,
    /// Whether a part failed, so that the others are of no use: one that waits for a program may wait for long.
    pub(super) is_given_up: AtomicBool,
}

impl StageView for MapView<'_> {
    fn inputs(&self, port: &str) -> &[Artifact] {
        self.io.inputs(port)
    }

    fn input_ports(&self) -> Vec<String> {
        self.io.input_ports()
    }

    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        self.io.read(port)
    }

    fn part_urls(&self, port: &str) -> Result<Vec<String>, OperatorError> {
        self.io.part_urls(port)
    }

    fn model_folder(&self, port: &str) -> Result<PathBuf, OperatorError> {
        self.io.model_folder(port)
    }

    fn put_media(&self, bytes: &[u8]) -> Result<String, OperatorError> {
        self.io.put_media(bytes)
    }

    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError> {
        self.io.media(digest)
    }

    fn scratch(&self) -> &Path {
        self.io.scratch()
    }

    /// An operator's own progress is that of the part it computes.
    fn event(&self, event: StageEvent) {
        match event {
            StageEvent::Progress(Progress {
                done, tokens, note, ..
            }) => self.progress.inside(done, tokens, note),
            other => self.io.event(other),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst) || self.io.is_cancelled()
    }
}
