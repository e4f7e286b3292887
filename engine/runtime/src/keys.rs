//! Stage keys at run time: the content of external files and of the inputs, digested.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use engine_core::{Artifact, Digest};
use engine_plan::{Stage, StageKey, stage_key};
use engine_store::{StoreError, external_digest};

/// Artifacts on the input ports of a stage.
pub(crate) type Inputs = BTreeMap<String, Vec<Artifact>>;

/// Artifacts on the output ports of a stage.
pub(crate) type Outputs = BTreeMap<String, Artifact>;

/// Computes keys; a file outside the store is digested once.
#[derive(Debug)]
pub(crate) struct KeyMaker {
    root: PathBuf,
    digests: HashMap<PathBuf, Digest>,
}

impl KeyMaker {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            digests: HashMap::new(),
        }
    }

    pub(crate) fn key(&mut self, stage: &Stage, inputs: &Inputs) -> Result<StageKey, StoreError> {
        let mut externals = BTreeMap::new();
        for external in &stage.externals {
            let path = self.root.join(&external.path);
            let digest = match self.digests.get(&path) {
                Some(digest) => digest.clone(),
                None => external_digest(&path)?,
            };
            self.digests.insert(path, digest.clone());
            externals.insert(external.pointer.clone(), digest);
        }
        let inputs = inputs
            .iter()
            .map(|(port, artifacts)| {
                (
                    port.clone(),
                    artifacts
                        .iter()
                        .map(|artifact| artifact.digest().clone())
                        .collect(),
                )
            })
            .collect();
        Ok(stage_key(stage, &externals, &inputs))
    }
}

/// The artifacts on a stage's input ports; none while a stage before it has no outputs.
pub(crate) fn inputs_of(stage: &Stage, outputs: &[Option<Outputs>]) -> Option<Inputs> {
    let port = |sources: &Vec<engine_plan::Source>| -> Option<Vec<Artifact>> {
        sources
            .iter()
            .map(|source| outputs[source.stage].as_ref()?.get(&source.port).cloned())
            .collect()
    };
    stage
        .inputs
        .iter()
        .map(|(name, sources)| Some((name.clone(), port(sources)?)))
        .collect()
}
