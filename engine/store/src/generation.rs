//! Generations: a stage that is run although its result is there (`--force`, `replay`) commits another result under the same
//! key, and from then on the latest one counts.
//!
//! The first result of a stage is generation 0 and needs no list to be found; which keys have more is known from one list
//! for a whole run.

use std::collections::BTreeMap;

use engine_core::Digest;

use crate::{Commit, Lookup, Manifest, Result, Store, StoreError, layout};

/// How often a commit tries the next number when others take the ones before.
const ATTEMPTS: u32 = 100;

/// The latest generation of every stage key that has more than the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    latest: BTreeMap<String, u32>,
}

impl Generations {
    /// The latest generation under a key.
    #[must_use]
    pub fn latest(&self, key: &Digest) -> u32 {
        self.latest.get(key.as_str()).copied().unwrap_or(0)
    }

    /// Takes up a generation that was committed since.
    pub fn note(&mut self, key: &Digest, generation: u32) {
        if generation > self.latest(key) {
            self.latest.insert(key.as_str().to_owned(), generation);
        }
    }
}

impl Store {
    /// Which stage keys have more than one generation: one list.
    ///
    /// # Errors
    /// When the store fails.
    pub fn generations(&self) -> Result<Generations> {
        let mut generations = Generations::default();
        for meta in self.list(layout::GENERATIONS)? {
            if let Some((key, generation)) = meta.location.filename().and_then(key_and_generation) {
                let latest = generations.latest.entry(key.to_owned()).or_default();
                *latest = generation.max(*latest);
            }
        }
        Ok(generations)
    }

    /// The latest manifest under a key, with a check that everything it names is there in full size.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lookup_latest(&self, key: &Digest, generations: &Generations) -> Result<Lookup> {
        self.lookup_generation(key, generations.latest(key))
    }

    /// Commits a result beside those that are there, as the generation after the latest. When somebody else has just
    /// committed the same outputs, theirs stands and is returned.
    ///
    /// # Errors
    /// When the store fails.
    pub fn commit_generation(
        &self,
        manifest: &Manifest,
        generations: &Generations,
    ) -> Result<Commit> {
        let first = generations.latest(&manifest.key) + 1;
        for generation in first..first + ATTEMPTS {
            let commit = self.commit(&Manifest {
                generation,
                ..manifest.clone()
            })?;
            if commit.is_ours || commit.manifest.outputs == manifest.outputs {
                return Ok(commit);
            }
        }
        Err(StoreError::AlreadyExists {
            path: layout::manifest(&manifest.key, first + ATTEMPTS - 1),
        })
    }
}

/// The parts of `<key>-<n>.json`.
pub(crate) fn key_and_generation(name: &str) -> Option<(&str, u32)> {
    let (key, generation) = name.strip_suffix(".json")?.rsplit_once('-')?;
    Some((key, generation.parse().ok()?))
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
