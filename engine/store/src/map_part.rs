//! Parts of map stages: each is committed on its own, under a key of its own, before the stage is.

use std::collections::BTreeMap;

use engine_core::{Digest, PartRef};
use serde::{Deserialize, Serialize};

use crate::manifest::COMMIT_ATTEMPTS;
use crate::side_by_side::side_by_side;
use crate::{Result, Store, StoreError, layout};

/// What one part of a map stage gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapPartManifest {
    /// The part's key.
    pub key: Digest,
    /// What the key was computed from.
    pub material: serde_json::Value,
    /// Rows that went in.
    pub rows: u64,
    /// Rows that came out, by output port.
    pub outputs: BTreeMap<String, Vec<PartRef>>,
    /// Rows that could not be computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedRowRecord>,
    /// Wall-clock seconds that it took.
    pub seconds: f64,
    /// Tokens that were sampled.
    #[serde(default)]
    pub tokens: u64,
    /// When it was committed, RFC 3339 in UTC.
    pub created: String,
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedRowRecord {
    /// Index in the part.
    pub row: u64,
    /// The values that name the row, for people.
    pub row_key: String,
    /// What went wrong and what to do.
    pub error: String,
}

/// Result of a part's commit.
#[derive(Clone, Debug, PartialEq)]
pub struct MapPartCommit {
    /// The manifest that stands: ours, or the one of whoever was first.
    pub manifest: MapPartManifest,
    /// Whether it is ours.
    pub is_ours: bool,
}

impl Store {
    /// The part under a key, if it was committed and all its objects are there in full size. A damaged one is none: its rows
    /// are computed again and [`Self::commit_map_part`] replaces it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lookup_map_part(&self, key: &Digest) -> Result<Option<MapPartManifest>> {
        let manifest: MapPartManifest = match self.get_json(&layout::map_part(key)) {
            Ok(manifest) => manifest,
            Err(StoreError::NotFound { .. } | StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if manifest.key != *key {
            return Ok(None);
        }
        for part in manifest.outputs.values().flatten() {
            if self.size(&part.path)? != Some(part.bytes) {
                return Ok(None);
            }
        }
        Ok(Some(manifest))
    }

    /// Looks many parts up, side by side where the store is a network away. The results are in the order of the keys.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lookup_map_parts(&self, keys: &[Digest]) -> Result<Vec<Option<MapPartManifest>>> {
        side_by_side(self, keys, |key| self.lookup_map_part(key))
    }

    /// Commits a part whose outputs are in the store. When somebody else was first, theirs stands and is returned; one that
    /// cannot be used is replaced.
    ///
    /// # Errors
    /// When the store fails.
    pub fn commit_map_part(&self, manifest: &MapPartManifest) -> Result<MapPartCommit> {
        let path = layout::map_part(&manifest.key);
        for _ in 0..COMMIT_ATTEMPTS {
            if self.create_json(&path, manifest)? {
                return Ok(MapPartCommit {
                    manifest: manifest.clone(),
                    is_ours: true,
                });
            }
            if let Some(manifest) = self.lookup_map_part(&manifest.key)? {
                return Ok(MapPartCommit {
                    manifest,
                    is_ours: false,
                });
            }
            // Nobody can use it, so that removing it takes nothing from anyone.
            self.remove(&path)?;
        }
        Err(StoreError::AlreadyExists { path })
    }
}

#[cfg(test)]
#[path = "map_part_tests.rs"]
mod tests;
