//! What a run would do, without running anything.

use engine_core::Artifact;
use engine_plan::{Plan, Stage, StageKey, first_difference};
use engine_store::{Lookup, Manifest, Run, Store, StoreError};
use std::path::Path;

use crate::failure::RunError;
use crate::keys::{KeyMaker, Outputs, inputs_of};

/// Earlier manifests that are looked at to explain a missed cache.
const MANIFESTS: usize = 200;

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
    /// It would run.
    ToRun(Reason),
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
}

/// Looks up every stage of a plan.
///
/// # Errors
/// When the store fails.
pub fn assess(plan: &Plan, store: &Store, root: &Path) -> Result<Vec<Assessment>, RunError> {
    let mut keys = KeyMaker::new(root);
    let mut outputs: Vec<Option<Outputs>> = vec![None; plan.stages.len()];
    let mut history = History {
        store,
        pipeline: &plan.name,
        loaded: None,
    };
    let mut assessments = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let (key, state) = match inputs_of(stage, &outputs) {
            None => (
                None,
                StageState::ToRun(Reason::InputNotMade {
                    stage: missing_input(plan, stage, &outputs),
                }),
            ),
            Some(inputs) => match keys.key(stage, &inputs) {
                Err(error @ StoreError::File { .. }) => (
                    None,
                    StageState::ToRun(Reason::Unreadable {
                        reason: error.to_string(),
                    }),
                ),
                Err(error) => return Err(error.into()),
                Ok(key) => {
                    let state = match store.lookup(&key.digest)? {
                        Lookup::Hit(manifest) => StageState::Cached(manifest),
                        Lookup::Broken(reason) => StageState::ToRun(Reason::Broken { reason }),
                        Lookup::Miss => StageState::ToRun(history.explain(stage, &key)?),
                    };
                    (Some(key), state)
                }
            },
        };
        if let StageState::Cached(manifest) = &state {
            outputs[index] = Some(manifest.outputs.clone());
        }
        assessments.push(Assessment { key, state });
    }
    Ok(assessments)
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
            self.loaded = Some((self.store.runs()?, self.store.recent_manifests(MANIFESTS)?));
        }
        let (runs, manifests) = self.loaded.as_ref().expect("loaded above");
        let same_stage = runs
            .iter()
            .rev()
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
    /// Outputs of a cached stage.
    #[must_use]
    pub fn outputs(&self) -> Option<&std::collections::BTreeMap<String, Artifact>> {
        match self {
            Self::Cached(manifest) => Some(&manifest.outputs),
            Self::ToRun(_) => None,
        }
    }
}
