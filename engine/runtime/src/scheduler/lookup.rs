//! What becomes of a stage whose inputs have come: its result is there, it is to run, or it may not.

use std::time::Instant;

use engine_core::Digest;
use engine_plan::{Stage, StageKey};
use engine_store::{Lookup, Manifest, MapPartRef, Store, StoreError};
use schemas::record::{StageRecord, StageStatus};

use super::{Scheduler, State};
use crate::execute::Pin;
use crate::failure::{Domain, Failure, RunError};
use crate::keys::{Inputs, inputs_of, unusable};
use crate::task::Start;

/// Runs that are searched for an earlier result of a stage.
const RUNS: usize = 100;

impl Scheduler<'_> {
    /// Looks up every stage whose inputs have come.
    pub(super) fn look_up_all(&mut self) -> Result<(), RunError> {
        while !self.has_failed
            && let Some(index) = self.queues.next_lookup()
        {
            self.look_up(index)?;
        }
        Ok(())
    }

    fn look_up(&mut self, index: usize) -> Result<(), RunError> {
        let begun = Instant::now();
        if let Some(pin) = self.options.selection.pins.get(&index) {
            return self.pin(index, &pin.clone(), begun);
        }
        let plan = std::sync::Arc::clone(self.plan);
        let stage = &plan.stages[index];
        let inputs = inputs_of(stage, &self.outputs).expect("the inputs have come");
        let key = match self.keys.key(stage, &inputs) {
            Ok(key) => key,
            Err(error) => return self.fail(index, None, begun, error.into(), Vec::new()),
        };
        let selection = &self.options.selection;
        let mut standing = None;
        match self
            .store
            .lookup_latest(&key.digest, &self.shared.generations)?
        {
            Lookup::Hit(manifest) => match unusable(stage, &manifest, &inputs) {
                None if !selection.must_run(index) => {
                    let warnings = manifest.warnings.clone();
                    let record = StageRecord {
                        warnings,
                        ..StageRecord::default()
                    };
                    return self.complete(index, *manifest, StageStatus::Cached, begun, record);
                }
                None => standing = Some(manifest),
                Some(reason) => {
                    self.early_warnings[index]
                        .push(format!("the result that is there is not used: {reason}"));
                    standing = Some(manifest);
                }
            },
            Lookup::Miss => {}
            Lookup::Broken(reason) => self.early_warnings[index]
                .push(format!("an earlier result cannot be used: {reason}")),
        }
        if !selection.may_run(index) {
            return self.leave_out(index, &key.digest, begun);
        }
        self.make_ready(index, stage, key, inputs, standing)
    }

    fn make_ready(
        &mut self,
        index: usize,
        stage: &Stage,
        key: StageKey,
        inputs: Inputs,
        standing: Option<Box<Manifest>>,
    ) -> Result<(), RunError> {
        let selection = &self.options.selection;
        let base = if selection.replay == Some(index) && standing.is_none() {
            earlier_parts(self.store, &self.plan.name, stage, &key.digest)?
        } else {
            None
        };
        self.states[index] = State::Ready(Box::new(Start {
            key,
            inputs,
            standing,
            is_forced: selection.force.contains(&index),
            base,
        }));
        self.queues.ready(index);
        Ok(())
    }

    /// Takes the result of another run as it is.
    fn pin(&mut self, index: usize, pin: &Pin, begun: Instant) -> Result<(), RunError> {
        let stage = &self.plan.stages[index];
        let manifest = &pin.manifest;
        let missing = stage
            .outputs
            .iter()
            .find(|(port, _)| !manifest.outputs.contains_key(port));
        let found = self
            .store
            .lookup_generation(&manifest.key, manifest.generation)?;
        let fault = match (missing, found) {
            (Some((port, _)), _) => format!("it has no output `{port}`"),
            (None, Lookup::Hit(_)) => {
                let record = StageRecord {
                    pinned: Some(pin.run.clone()),
                    ..StageRecord::default()
                };
                let manifest = manifest.clone();
                return self.complete(index, manifest, StageStatus::Cached, begun, record);
            }
            (None, Lookup::Broken(reason)) => reason,
            (None, Lookup::Miss) => "it is not in the store any more".to_owned(),
        };
        let message = format!("the result of run {} cannot be taken: {fault}", pin.run);
        let failure = Failure::new(Domain::Data, message);
        self.fail(
            index,
            Some(manifest.key.clone()),
            begun,
            failure,
            Vec::new(),
        )
    }

    /// Closes a stage that has no result and was not chosen. A stage that was and reads from it cannot run.
    fn leave_out(&mut self, index: usize, key: &Digest, begun: Instant) -> Result<(), RunError> {
        self.close_not_selected(index, Some(key))?;
        let mut after = self.queues.readers(index).to_vec();
        while let Some(reader) = after.pop() {
            if !matches!(self.states[reader], State::Waiting) {
                continue;
            }
            if self.options.selection.pins.contains_key(&reader) {
                continue;
            }
            if self.options.selection.may_run(reader) {
                let stages = &self.plan.stages;
                let message = format!(
                    "it reads from stage `{}`, which has no result and was not chosen to run; choose it too, or run it first",
                    stages[index].name
                );
                let failure = Failure::new(Domain::Data, message);
                return self.fail(reader, None, begun, failure, Vec::new());
            }
            self.close_not_selected(reader, None)?;
            after.extend(self.queues.readers(reader));
        }
        Ok(())
    }
}

/// Parts of the latest result of a stage in earlier runs of the same pipeline, with the key of that result.
pub(crate) fn earlier_parts(
    store: &Store,
    pipeline: &str,
    stage: &Stage,
    key: &Digest,
) -> Result<Option<(Digest, Vec<MapPartRef>)>, StoreError> {
    for run in store.recent_runs(RUNS)? {
        if run.started.pipeline != pipeline {
            continue;
        }
        let record = run.stages.iter().find(|record| {
            record.stage == stage.name
                && record.kind == stage.kind
                && matches!(record.status, StageStatus::Done | StageStatus::Cached)
                && record.key.as_deref() != Some(key.as_str())
        });
        let Some((key, generation)) =
            record.and_then(|record| Some((record.key.as_deref()?, record.generation)))
        else {
            continue;
        };
        if let Some(manifest) = store.find_generation(key, generation)?
            && !manifest.parts.is_empty()
        {
            return Ok(Some((manifest.key, manifest.parts)));
        }
    }
    Ok(None)
}
