//! What a run would do, without running anything.

use std::path::Path;

use engine_core::Artifact;
use engine_plan::{Plan, Stage, StageKey, first_difference};
use engine_store::{Generations, Lookup, Manifest, Run, Store, StoreError};

use crate::execute::Selection;
use crate::failure::RunError;
use crate::keys::{Inputs, KeyMaker, Outputs, inputs_of, unusable};

/// Earlier manifests that are looked at to explain a missed cache.
const MANIFESTS: usize = 200;
/// Earlier runs that are looked at to explain a missed cache.
const RUNS: usize = 100;

/// What a run would do with one stage.
#[derive(Clone, Debug)]
pub struct Assessment {
    /// Its key; unknown while an input is not made.
    pub key: Option<StageKey>,
    /// Whether it is cached.
    pub state: StageState,
}

/// Whether a stage is cached.
#[derive(Clone, Debug)]
pub enum StageState {
    /// Its result is in the store.
    Cached(Box<Manifest>),
    /// The result of this run is taken, whatever the key.
    Pinned {
        /// The run.
        run: String,
        /// What the stage made then.
        manifest: Box<Manifest>,
    },
    /// It would run.
    ToRun(Reason),
    /// It has no result and was not chosen to run.
    NotSelected(Reason),
}

/// Why a stage would run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The store has no result of this operator.
    NoEarlierResult,
    /// A stage before it would run, so that its input is not known yet.
    InputNotMade {
        /// That stage.
        stage: String,
    },
    /// There is an earlier result of another key.
    Differs {
        /// First field in which the keys differ, as a dotted path.
        field: String,
    },
    /// An earlier result cannot be used.
    Broken {
        /// What is wrong with it.
        reason: String,
    },
    /// An external file cannot be read.
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// Its result is in the store, and it was chosen to run for all that.
    Forced,
    /// Its result is in the store; the rows in its quarantine are to be tried again.
    Replay {
        /// How many these are.
        rows: u64,
    },
    /// Its result is in the store and does not fit the stage's quarantine.
    Quarantine {
        /// In what way.
        reason: String,
    },
}

/// Looks up every stage of a plan.
///
/// # Errors
/// When the store fails.
pub fn assess(
    plan: &Plan,
    store: &Store,
    root: &Path,
    selection: &Selection,
) -> Result<Vec<Assessment>, RunError> {
    let mut assessor = Assessor {
        store,
        selection,
        keys: KeyMaker::new(root),
        generations: store.generations()?,
        history: History {
            store,
            pipeline: &plan.name,
            loaded: None,
        },
    };
    let mut outputs: Vec<Option<Outputs>> = vec![None; plan.stages.len()];
    let mut assessments = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let assessment = match (selection.pins.get(&index), inputs_of(stage, &outputs)) {
            (Some(pin), _) => Assessment {
                key: None,
                state: StageState::Pinned {
                    run: pin.run.clone(),
                    manifest: Box::new(pin.manifest.clone()),
                },
            },
            (None, Some(inputs)) => assessor.stage(index, stage, &inputs)?,
            (None, None) => Assessment {
                key: None,
                state: assessor.to_run(
                    index,
                    Reason::InputNotMade {
                        stage: missing_input(plan, stage, &outputs),
                    },
                ),
            },
        };
        outputs[index] = assessment.state.outputs().cloned();
        assessments.push(assessment);
    }
    Ok(assessments)
}

/// Looks up one stage after the other.
struct Assessor<'a> {
    store: &'a Store,
    selection: &'a Selection,
    keys: KeyMaker,
    generations: Generations,
    history: History<'a>,
}

impl Assessor<'_> {
    fn stage(
        &mut self,
        index: usize,
        stage: &Stage,
        inputs: &Inputs,
    ) -> Result<Assessment, RunError> {
        let key = match self.keys.key(stage, inputs) {
            Ok(key) => key,
            Err(error @ StoreError::File { .. }) => {
                let reason = Reason::Unreadable {
                    reason: error.to_string(),
                };
                return Ok(Assessment {
                    key: None,
                    state: self.to_run(index, reason),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let reason = match self.store.lookup_latest(&key.digest, &self.generations)? {
            Lookup::Hit(manifest) => match (unusable(stage, &manifest, inputs), self.selection) {
                (Some(reason), _) => Reason::Quarantine { reason },
                (None, selection) if !selection.must_run(index) => {
                    return Ok(Assessment {
                        key: Some(key),
                        state: StageState::Cached(manifest),
                    });
                }
                (None, selection) if selection.force.contains(&index) => Reason::Forced,
                (None, _) => Reason::Replay {
                    rows: manifest.quarantined,
                },
            },
            Lookup::Broken(reason) => Reason::Broken { reason },
            Lookup::Miss => self.history.explain(stage, &key)?,
        };
        Ok(Assessment {
            key: Some(key),
            state: self.to_run(index, reason),
        })
    }

    fn to_run(&self, index: usize, reason: Reason) -> StageState {
        if self.selection.may_run(index) {
            StageState::ToRun(reason)
        } else {
            StageState::NotSelected(reason)
        }
    }
}

fn missing_input(plan: &Plan, stage: &Stage, outputs: &[Option<Outputs>]) -> String {
    let sources = stage.inputs.values().flatten();
    let missing = sources
        .filter(|source| outputs[source.stage].is_none())
        .map(|source| source.stage)
        .min();
    missing.map_or_else(String::new, |index| plan.stages[index].name.clone())
}

/// Earlier results, read when the first stage asks.
struct History<'a> {
    store: &'a Store,
    pipeline: &'a str,
    loaded: Option<(Vec<Run>, Vec<Manifest>)>,
}

impl History<'_> {
    /// Compares a key with that of the latest result of the same stage, else of the same operator.
    fn explain(&mut self, stage: &Stage, key: &StageKey) -> Result<Reason, RunError> {
        if self.loaded.is_none() {
            self.loaded = Some((
                self.store.recent_runs(RUNS)?,
                self.store.recent_manifests(MANIFESTS)?,
            ));
        }
        let (runs, manifests) = self.loaded.as_ref().expect("loaded above");
        let same_stage = runs
            .iter()
            .filter(|run| run.started.pipeline == self.pipeline)
            .flat_map(|run| &run.stages)
            .filter(|record| record.stage == stage.name && record.kind == stage.kind)
            .filter_map(|record| record.key.as_ref())
            .find_map(|key| {
                manifests
                    .iter()
                    .find(|manifest| manifest.key.as_str() == key)
            });
        let earlier = same_stage.or_else(|| {
            manifests
                .iter()
                .find(|manifest| manifest.kind == stage.kind)
        });
        Ok(
            match earlier.and_then(|manifest| first_difference(&manifest.material, &key.material)) {
                Some(field) => Reason::Differs { field },
                None => Reason::NoEarlierResult,
            },
        )
    }
}

impl StageState {
    /// Outputs of a stage that has a result.
    #[must_use]
    pub fn outputs(&self) -> Option<&std::collections::BTreeMap<String, Artifact>> {
        match self {
            Self::Cached(manifest) | Self::Pinned { manifest, .. } => Some(&manifest.outputs),
            Self::ToRun(_) | Self::NotSelected(_) => None,
        }
    }
}
