//! Stage keys at run time: the content of external files and of the inputs, digested.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use engine_core::{Artifact, Digest, ExternalContent};
use engine_plan::{Stage, StageKey, stage_key};
use engine_store::{Manifest, StoreError, external_digest};

use crate::map::allowed;
use crate::stage::Budget;

/// Artifacts on the input ports of a stage.
pub(crate) type Inputs = BTreeMap<String, Vec<Artifact>>;

/// Artifacts on the output ports of a stage.
pub(crate) type Outputs = BTreeMap<String, Artifact>;

/// Computes keys; a file outside the store is digested once.
#[derive(Debug)]
pub(crate) struct KeyMaker {
    root: PathBuf,
    digests: HashMap<(PathBuf, bool), Digest>,
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
            let place = (path, external.content == ExternalContent::Rows);
            let digest = match self.digests.get(&place) {
                Some(digest) => digest.clone(),
                None => external_digest(&place.0, external.content)?,
            };
            self.digests.insert(place, digest.clone());
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

/// Why a result that is there is none for this stage: its quarantine holds more rows than the stage allows now, or it was made
/// without the output that the quarantine is.
pub(crate) fn unusable(stage: &Stage, manifest: &Manifest, inputs: &Inputs) -> Option<String> {
    if let Some((port, _)) = stage
        .outputs
        .iter()
        .find(|(port, _)| !manifest.outputs.contains_key(port))
    {
        return Some(format!("it has no output `{port}`"));
    }
    let operator = stage.config.as_map()?;
    let rows: Option<u64> = match operator.rows_port() {
        Some(port) => inputs.get(port)?.iter().map(Artifact::rows).sum(),
        None => stage
            .outputs
            .first()
            .and_then(|(port, _)| manifest.outputs.get(port)?.rows())
            .map(|rows| rows + manifest.quarantined),
    };
    let allowed = allowed(stage.quarantine.map(Budget::from), rows);
    (manifest.quarantined > allowed).then(|| {
        format!(
            "{} of its rows are in quarantine and {allowed} may be",
            manifest.quarantined
        )
    })
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
