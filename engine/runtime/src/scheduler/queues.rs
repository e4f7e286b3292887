//! What there is to do: stages to look up, stages to start, places to start them in.

use std::collections::{BTreeSet, HashMap};

use engine_core::{Digest, Placement};
use engine_plan::Plan;

use crate::execute::RunOptions;

/// Queues of stages, which are named by their place in the plan and taken in that order.
#[derive(Debug)]
pub(super) struct Queues {
    /// Stages that read an output of each stage, each once.
    readers: Vec<Vec<usize>>,
    /// Of how many stages each still waits for outputs.
    missing: Vec<usize>,
    /// Stages whose inputs have all come.
    to_look_up: BTreeSet<usize>,
    /// Stages that can start, by where they run.
    ready: [BTreeSet<usize>; 2],
    slots: Vec<usize>,
    free: [usize; 2],
    running: usize,
    /// Keys of running stages, and the stages that wait for the same work under another name.
    twins: HashMap<Digest, Vec<usize>>,
}

impl Queues {
    pub(super) fn new(plan: &Plan, options: &RunOptions) -> Self {
        let count = plan.stages.len();
        let mut readers = vec![Vec::new(); count];
        let mut missing = vec![0; count];
        for (index, stage) in plan.stages.iter().enumerate() {
            if options.selection.pins.contains_key(&index) {
                // Its result is there, whatever becomes of its inputs.
                continue;
            }
            let sources: BTreeSet<usize> = stage
                .inputs
                .values()
                .flatten()
                .map(|source| source.stage)
                .collect();
            missing[index] = sources.len();
            for source in sources {
                readers[source].push(index);
            }
        }
        let to_look_up = (0..count).filter(|index| missing[*index] == 0).collect();
        let slots = plan.stages.iter().map(|stage| match stage.placement {
            Placement::Engine => 0,
            Placement::Worker => 1,
        });
        Self {
            readers,
            missing,
            to_look_up,
            ready: [BTreeSet::new(), BTreeSet::new()],
            slots: slots.collect(),
            free: [options.engine_slots.max(1), options.worker_slots.max(1)],
            running: 0,
            twins: HashMap::new(),
        }
    }

    /// The outputs of a stage have come.
    pub(super) fn made(&mut self, index: usize) {
        for reader in &self.readers[index] {
            self.missing[*reader] -= 1;
            if self.missing[*reader] == 0 {
                self.to_look_up.insert(*reader);
            }
        }
    }

    /// Stages that read outputs of a stage.
    pub(super) fn readers(&self, index: usize) -> &[usize] {
        &self.readers[index]
    }

    /// A stage whose inputs have all come, to be looked up.
    pub(super) fn next_lookup(&mut self) -> Option<usize> {
        self.to_look_up.pop_first()
    }

    /// A stage that was looked up has no result and can start.
    pub(super) fn ready(&mut self, index: usize) {
        self.ready[self.slots[index]].insert(index);
    }

    /// A stage that can start and has a place to start in.
    pub(super) fn next_start(&mut self) -> Option<usize> {
        let has_place = |slot: &usize| self.free[*slot] > 0 && !self.ready[*slot].is_empty();
        let slot = (0..self.ready.len())
            .filter(has_place)
            .min_by_key(|slot| self.ready[*slot].first().copied())?;
        self.ready[slot].pop_first()
    }

    /// A stage starts, unless the same work is being done already; then it is looked up again after that.
    pub(super) fn begin(&mut self, index: usize, key: &Digest) -> bool {
        if let Some(waiting) = self.twins.get_mut(key) {
            waiting.push(index);
            return false;
        }
        self.twins.insert(key.clone(), Vec::new());
        self.free[self.slots[index]] -= 1;
        self.running += 1;
        true
    }

    /// A stage ended, however it did.
    pub(super) fn end(&mut self, index: usize, key: &Digest) {
        self.free[self.slots[index]] += 1;
        self.running -= 1;
        self.to_look_up
            .extend(self.twins.remove(key).into_iter().flatten());
    }

    pub(super) fn is_running(&self) -> bool {
        self.running > 0
    }
}
