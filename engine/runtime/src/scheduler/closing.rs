//! How stages end: their records, their outcomes.

use std::time::Instant;

use engine_core::Digest;
use engine_store::Manifest;
use schemas::record::{StageRecord, StageStatus};

use super::{Scheduler, State};
use crate::clock;
use crate::event::RunEvent;
use crate::failure::{Failure, RunError};
use crate::outcome::StageOutcome;
use crate::task::TaskDone;

impl Scheduler<'_> {
    /// A stage ran to its end.
    pub(super) fn finish(
        &mut self,
        index: usize,
        done: TaskDone,
        begun: Instant,
        warnings: Vec<String>,
    ) -> Result<(), RunError> {
        let record = StageRecord {
            warnings,
            notes: std::mem::take(&mut self.notes[index]),
            parts: done.counts,
            spans: done.spans,
            retries: done.retries,
            ..StageRecord::default()
        };
        self.complete(index, done.manifest, StageStatus::Done, begun, record)
    }

    /// A stage has a result. `record` has what the manifest does not say.
    pub(super) fn complete(
        &mut self,
        index: usize,
        manifest: Manifest,
        status: StageStatus,
        begun: Instant,
        record: StageRecord,
    ) -> Result<(), RunError> {
        let stage = &self.plan.stages[index];
        let rows = stage.outputs.iter().find_map(|(port, _)| {
            manifest
                .outputs
                .get(port)
                .and_then(engine_core::Artifact::rows)
        });
        let record = StageRecord {
            stage: stage.name.clone(),
            kind: stage.kind.to_owned(),
            key: Some(manifest.key.to_string()),
            status,
            started: clock::at(begun),
            seconds: begun.elapsed().as_secs_f64(),
            rows,
            outputs: manifest
                .outputs
                .iter()
                .map(|(port, artifact)| (port.clone(), artifact.digest().to_string()))
                .collect(),
            generation: manifest.generation,
            ..record
        };
        self.outputs[index] = Some(manifest.outputs.clone());
        self.queues.made(index);
        let outcome = StageOutcome {
            record,
            outputs: manifest.outputs,
            work_seconds: Some(manifest.seconds),
            failure: None,
        };
        self.close(index, outcome)
    }

    pub(super) fn fail(
        &mut self,
        index: usize,
        key: Option<Digest>,
        begun: Instant,
        failure: Failure,
        warnings: Vec<String>,
    ) -> Result<(), RunError> {
        let is_interrupted = failure.domain == crate::Domain::Interrupted;
        self.has_failed |= !is_interrupted;
        let record = StageRecord {
            key: key.map(|key| key.to_string()),
            status: if is_interrupted {
                StageStatus::Interrupted
            } else {
                StageStatus::Failed
            },
            started: clock::at(begun),
            seconds: begun.elapsed().as_secs_f64(),
            warnings,
            notes: std::mem::take(&mut self.notes[index]),
            error: (!is_interrupted).then(|| failure.to_string()),
            ..self.blank(index)
        };
        let failure = (!is_interrupted).then_some(failure);
        self.close(
            index,
            StageOutcome {
                failure,
                ..StageOutcome::without_result(record)
            },
        )
    }

    /// Closes a stage that was not chosen and has no result.
    pub(super) fn close_not_selected(
        &mut self,
        index: usize,
        key: Option<&Digest>,
    ) -> Result<(), RunError> {
        let record = StageRecord {
            key: key.map(ToString::to_string),
            status: StageStatus::NotSelected,
            ..self.blank(index)
        };
        self.close(index, StageOutcome::without_result(record))
    }

    /// Closes a stage that did not come to its end.
    pub(super) fn close_left(&mut self, index: usize) -> Result<(), RunError> {
        let status = match &self.states[index] {
            State::Over => return Ok(()),
            State::Running { .. } => StageStatus::Interrupted,
            State::Waiting | State::Ready(_) => StageStatus::Skipped,
        };
        let record = StageRecord {
            status,
            ..self.blank(index)
        };
        self.close(index, StageOutcome::without_result(record))
    }

    fn close(&mut self, index: usize, outcome: StageOutcome) -> Result<(), RunError> {
        self.states[index] = State::Over;
        let StageRecord {
            stage,
            kind,
            status,
            seconds,
            rows,
            ..
        } = &outcome.record;
        tracing::info!(
            stage,
            kind,
            status = status.as_str(),
            seconds,
            rows,
            "stage ended"
        );
        if *status == StageStatus::Cached {
            self.cached.push((index, outcome.record.clone()));
        } else {
            self.store.record_stage(&self.run, index, &outcome.record)?;
        }
        self.observer.observe(RunEvent::StageEnded {
            index,
            record: &outcome.record,
        });
        self.outcomes[index] = Some(outcome);
        Ok(())
    }

    fn blank(&self, index: usize) -> StageRecord {
        let stage = &self.plan.stages[index];
        StageRecord {
            stage: stage.name.clone(),
            kind: stage.kind.to_owned(),
            started: clock::now(),
            ..StageRecord::default()
        }
    }
}
