//! Puts parts together in the order of their rows.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use engine_core::{Artifact, OperatorError, PartRef, PortType};
use engine_store::MapPartRef;
use schemas::record::{PartCounts, PartSpan};

use super::driver::Driver;
use super::quarantine;
use crate::keys::Outputs;
use crate::stage::StageDone;

/// What is known of the parts that are done: names, never rows.
#[derive(Debug, Default)]
pub(super) struct Gather {
    chunks: BTreeMap<usize, ChunkDone>,
    pub(super) failed: u64,
}

/// A chunk whose parts are committed.
#[derive(Debug)]
pub(super) struct ChunkDone {
    pub(super) index: usize,
    pub(super) rows: u64,
    /// Parts by output port.
    pub(super) outputs: Vec<(String, Vec<PartRef>)>,
    pub(super) parts: Vec<MapPartRef>,
    pub(super) failed: Vec<QuarantinedRow>,
    pub(super) spans: Vec<PartSpan>,
    pub(super) reused: u64,
    pub(super) computed: u64,
    /// Tokens sampled just now.
    pub(super) tokens: u64,
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QuarantinedRow {
    /// Number among all rows of the input.
    pub(super) row: u64,
    pub(super) row_key: String,
    pub(super) error: String,
}

impl ChunkDone {
    pub(super) fn new(index: usize, rows: u64, ports: &[(String, PortType)]) -> Self {
        Self {
            index,
            rows,
            outputs: ports
                .iter()
                .map(|(port, _)| (port.clone(), Vec::new()))
                .collect(),
            parts: Vec::new(),
            failed: Vec::new(),
            spans: Vec::new(),
            reused: 0,
            computed: 0,
            tokens: 0,
        }
    }
}

impl Driver<'_> {
    /// Takes up a chunk whose parts are all committed.
    pub(super) fn hand_in(&self, mut done: ChunkDone) {
        // A row may fail in several slices.
        done.failed.sort_by_key(|failed| failed.row);
        done.failed.dedup_by_key(|failed| failed.row);
        let units: u64 = self.slices.iter().map(|slice| slice.len() as u64).sum();
        self.progress.add(done.rows * units, done.tokens);
        let index = done.index;
        let mut gather = self
            .state
            .gather
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        gather.failed += done.failed.len() as u64;
        if gather.failed > quarantine::allowed(self.job.quarantine, self.rows) {
            self.stop(index);
        }
        gather.chunks.insert(index, done);
    }
}

impl Gather {
    /// The datasets of all ports, or the rows that are too many for the quarantine.
    pub(super) fn finish(mut self, driver: &Driver<'_>) -> Result<StageDone, OperatorError> {
        let rows = self.chunks.values().map(|chunk| chunk.rows).sum();
        let known = if driver.is_whole() {
            Some(rows)
        } else {
            driver.rows
        };
        let allowed = quarantine::allowed(driver.job.quarantine, known);
        if let Some(failed) = self.too_many(allowed) {
            return Err(quarantine::error(driver, &failed, allowed));
        }
        let mut counts = PartCounts {
            rows,
            ..PartCounts::default()
        };
        let mut ports: BTreeMap<String, Vec<PartRef>> = BTreeMap::new();
        let mut done = StageDone::default();
        let mut failed = Vec::new();
        for chunk in std::mem::take(&mut self.chunks).into_values() {
            for (port, parts) in chunk.outputs {
                ports.entry(port).or_default().extend(parts);
            }
            counts.reused += chunk.reused;
            counts.computed += chunk.computed;
            done.parts.extend(chunk.parts);
            let room = PartSpan::KEPT - done.spans.len();
            done.spans.extend(chunk.spans.into_iter().take(room));
            failed.extend(chunk.failed);
        }
        counts.total = counts.reused + counts.computed;
        counts.quarantined = failed.len() as u64;
        done.outputs = datasets(driver, ports)?;
        if driver.has_quarantine() {
            let dataset = quarantine::dataset(driver.store(), &failed)?;
            done.outputs
                .insert(quarantine::PORT.to_owned(), Artifact::Dataset(dataset));
        }
        done.counts = Some(counts);
        Ok(done)
    }

    /// The failed rows up to the chunk with which they became too many; later ones may or may not have been computed.
    fn too_many(&self, allowed: u64) -> Option<Vec<QuarantinedRow>> {
        let mut failed = Vec::new();
        for chunk in self.chunks.values() {
            failed.extend(chunk.failed.iter().cloned());
            if failed.len() as u64 > allowed {
                return Some(failed);
            }
        }
        None
    }
}

fn datasets(
    driver: &Driver<'_>,
    mut written: BTreeMap<String, Vec<PartRef>>,
) -> Result<Outputs, OperatorError> {
    let mut outputs = Outputs::new();
    for (port, port_type) in driver.ports() {
        let PortType::Table { table, schema } = port_type else {
            return Err(OperatorError::Internal(format!(
                "output port `{port}` of a stage that works row by row holds a model"
            )));
        };
        let parts = written.remove(port).unwrap_or_default();
        let dataset = driver.store().dataset(*table, schema, parts)?;
        outputs.insert(port.clone(), Artifact::Dataset(dataset));
    }
    Ok(outputs)
}
