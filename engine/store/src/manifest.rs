//! Manifests: what a stage made, under its key. The presence of a manifest *is* the commit.

use std::collections::BTreeMap;

use engine_core::{Artifact, Digest, RowsDigest};
use serde::{Deserialize, Serialize};

use crate::model::object;
use crate::side_by_side::side_by_side;
use crate::{Result, Store, StoreError, layout};

/// How often a commit that meets a damaged manifest tries to replace it.
pub(crate) const COMMIT_ATTEMPTS: usize = 3;

/// What a stage made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The stage key.
    pub key: Digest,
    /// What the key was computed from.
    pub material: serde_json::Value,
    /// Operator kind.
    pub kind: String,
    /// Version of the operator.
    pub version: u32,
    /// Artifact of each output port.
    pub outputs: BTreeMap<String, Artifact>,
    /// Wall-clock seconds that it took.
    pub seconds: f64,
    /// When it was committed, RFC 3339 in UTC.
    pub created: String,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What made it.
    pub made_by: MadeBy,
    /// 0 for the first result under the key; others are committed by `--force` and `replay`, and the latest one counts.
    #[serde(default)]
    pub generation: u32,
    /// Rows of a map stage that could not be computed and went to the quarantine table.
    #[serde(default)]
    pub quarantined: u64,
    /// The parts of a map stage, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<MapPartRef>,
    /// Key of the result that `replay` took over what had not failed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_from: Option<Digest>,
}

/// A part of a map stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapPartRef {
    /// Key of the part.
    pub key: Digest,
    /// Digest of the rows that went in.
    pub rows_digest: RowsDigest,
    /// How many these are.
    pub rows: u64,
    /// Those of them that could not be computed.
    #[serde(default)]
    pub failed: u64,
}

/// The program that made an artifact. Not part of any key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeBy {
    /// Version of metis-flow.
    pub version: String,
    /// Model backend and device, for stages that had one.
    pub backend: Option<String>,
}

/// Answer to a lookup.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The stage was committed and all its objects are there.
    Hit(Box<Manifest>),
    /// Nothing was committed under this key.
    Miss,
    /// There is a manifest that cannot be used; the reason names the object. The stage runs again.
    Broken(String),
}

/// Result of a commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The manifest that stands: ours, or the one of whoever was first.
    pub manifest: Manifest,
    /// Whether it is ours.
    pub is_ours: bool,
}

impl Store {
    /// The first manifest under a key, with a check that everything it names is there in full size. A run asks for
    /// [`Self::lookup_latest`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn lookup(&self, key: &Digest) -> Result<Lookup> {
        self.lookup_generation(key, 0)
    }

    /// A generation of a stage, with a check that everything it names is there in full size.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lookup_generation(&self, key: &Digest, generation: u32) -> Result<Lookup> {
        let manifest = match self.generation(key, generation) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(Lookup::Miss),
            Err(error @ StoreError::Corrupt { .. }) => {
                return Ok(Lookup::Broken(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let objects: Vec<(String, u64)> = manifest.outputs.values().flat_map(objects).collect();
        let paths: Vec<&str> = objects.iter().map(|(path, _)| path.as_str()).collect();
        let sizes = self.sizes(&paths)?;
        for ((path, bytes), size) in objects.iter().zip(sizes) {
            match size {
                Some(size) if size == *bytes => {}
                Some(size) => {
                    return Ok(Lookup::Broken(format!(
                        "object `{path}` has {size} bytes instead of {bytes}"
                    )));
                }
                None => return Ok(Lookup::Broken(format!("object `{path}` is missing"))),
            }
        }
        Ok(Lookup::Hit(Box::new(manifest)))
    }

    /// The first manifest under a key as it stands, without a look at its objects.
    ///
    /// # Errors
    /// When it is damaged or the store fails.
    pub fn manifest(&self, key: &Digest) -> Result<Option<Manifest>> {
        self.generation(key, 0)
    }

    /// A generation of a stage as it stands, without a look at its objects.
    ///
    /// # Errors
    /// When it is damaged or the store fails.
    pub fn generation(&self, key: &Digest, generation: u32) -> Result<Option<Manifest>> {
        let path = layout::manifest(key, generation);
        match self.get_json::<Manifest>(&path) {
            Ok(manifest) if manifest.key == *key && manifest.generation == generation => {
                Ok(Some(manifest))
            }
            Ok(_) => Err(StoreError::Corrupt {
                path,
                message: "it is the manifest of another stage".to_owned(),
            }),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first manifest under a key that is given as text, as records have it.
    ///
    /// # Errors
    /// When it is damaged or the store fails.
    pub fn find_manifest(&self, key: &str) -> Result<Option<Manifest>> {
        self.find_generation(key, 0)
    }

    /// A generation under a key that is given as text, as records have it.
    ///
    /// # Errors
    /// When it is damaged or the store fails.
    pub fn find_generation(&self, key: &str, generation: u32) -> Result<Option<Manifest>> {
        // A text that is no digest names no object.
        let Ok(key) = serde_json::from_value::<Digest>(serde_json::Value::from(key)) else {
            return Ok(None);
        };
        self.generation(&key, generation)
    }

    /// Commits a stage, as the generation that the manifest says. When another run was first, its manifest stands and is
    /// returned; a manifest whose objects are gone is replaced.
    ///
    /// # Errors
    /// When the store fails.
    pub fn commit(&self, manifest: &Manifest) -> Result<Commit> {
        let path = layout::manifest(&manifest.key, manifest.generation);
        for _ in 0..COMMIT_ATTEMPTS {
            if self.create_json(&path, manifest)? {
                return Ok(Commit {
                    manifest: manifest.clone(),
                    is_ours: true,
                });
            }
            match self.lookup_generation(&manifest.key, manifest.generation)? {
                Lookup::Hit(theirs) => {
                    return Ok(Commit {
                        manifest: *theirs,
                        is_ours: false,
                    });
                }
                Lookup::Miss => {}
                // Nobody can use it, so that removing it takes nothing from anyone.
                Lookup::Broken(_) => self.remove(&path)?,
            }
        }
        Err(StoreError::AlreadyExists { path })
    }

    /// Manifests, the latest first, at most `limit`; damaged ones are left out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn recent_manifests(&self, limit: usize) -> Result<Vec<Manifest>> {
        let mut listed = self.list(layout::STAGES)?;
        listed.extend(self.list(layout::GENERATIONS)?);
        listed.sort_by(|left, right| {
            right
                .last_modified
                .cmp(&left.last_modified)
                .then_with(|| left.location.cmp(&right.location))
        });
        listed.truncate(limit);
        let read = side_by_side(self, &listed, |meta| {
            match self.get_json(meta.location.as_ref()) {
                Ok(manifest) => Ok(Some(manifest)),
                Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// Path and size of every object of an artifact.
fn objects(artifact: &Artifact) -> Vec<(String, u64)> {
    match artifact {
        Artifact::Dataset(dataset) => dataset
            .parts
            .iter()
            .map(|part| (part.path.clone(), part.bytes))
            .collect(),
        Artifact::Model(model) => model
            .files
            .iter()
            .map(|file| (object(model, file), file.bytes))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use engine_core::{Dataset, PartRef};
    use schemas::TableName;

    use super::*;

    fn manifest(store: &Store, part: &[u8], backend: &str) -> Manifest {
        let path = layout::part(&Digest::of(part));
        store.create(&path, part.to_vec()).unwrap();
        let parts = vec![PartRef {
            path,
            rows: 1,
            bytes: part.len() as u64,
            digest: RowsDigest("0".repeat(48)),
        }];
        let dataset = Dataset {
            digest: Digest::of(b"rows"),
            table: TableName::Rows,
            rows: 1,
            parts,
        };
        Manifest {
            key: Digest::of(b"key"),
            material: serde_json::json!({"kind": "sql"}),
            kind: "sql".to_owned(),
            version: 1,
            outputs: BTreeMap::from([("rows".to_owned(), Artifact::Dataset(dataset))]),
            seconds: 1.5,
            created: "2026-01-01T00:00:00Z".to_owned(),
            warnings: vec![],
            made_by: MadeBy {
                version: "0.1.0".to_owned(),
                backend: Some(backend.to_owned()),
            },
            generation: 0,
            quarantined: 0,
            parts: vec![],
            replayed_from: None,
        }
    }

    #[test]
    fn the_first_commit_stands() {
        let store = Store::open("memory://").unwrap();
        let (first, second) = (
            manifest(&store, b"part", "first"),
            manifest(&store, b"part", "second"),
        );
        assert_eq!(store.lookup(&first.key).unwrap(), Lookup::Miss);
        assert!(store.commit(&first).unwrap().is_ours);
        assert_eq!(
            store.commit(&second).unwrap(),
            Commit {
                manifest: first.clone(),
                is_ours: false
            }
        );
        assert_eq!(
            store.lookup(&first.key).unwrap(),
            Lookup::Hit(Box::new(first))
        );
    }

    #[test]
    fn many_commits_at_once_agree_on_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let commits: Vec<Commit> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|index| {
                    let store = &store;
                    scope.spawn(move || {
                        store
                            .commit(&manifest(store, b"part", &index.to_string()))
                            .unwrap()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(commits.iter().filter(|commit| commit.is_ours).count(), 1);
        assert!(
            commits
                .iter()
                .all(|commit| commit.manifest == commits[0].manifest)
        );
    }

    #[test]
    fn a_manifest_whose_part_is_gone_or_cut_is_no_hit_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let first = manifest(&store, b"part", "first");
        store.commit(&first).unwrap();
        let part = folder.path().join(layout::part(&Digest::of(b"part")));
        std::fs::write(&part, b"pa").unwrap();
        assert!(
            matches!(store.lookup(&first.key).unwrap(), Lookup::Broken(reason) if reason.contains("2 bytes instead of 4"))
        );
        std::fs::remove_file(&part).unwrap();
        assert!(
            matches!(store.lookup(&first.key).unwrap(), Lookup::Broken(reason) if reason.contains("missing"))
        );
        let second = manifest(&store, b"other part", "second");
        assert!(store.commit(&second).unwrap().is_ours);
        assert_eq!(
            store.lookup(&second.key).unwrap(),
            Lookup::Hit(Box::new(second))
        );
    }

    #[test]
    fn a_damaged_manifest_is_no_hit() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let ours = manifest(&store, b"part", "ours");
        store
            .create(
                &layout::manifest(&ours.key, 0),
                "{ half".as_bytes().to_vec(),
            )
            .unwrap();
        assert!(matches!(
            store.lookup(&ours.key).unwrap(),
            Lookup::Broken(_)
        ));
        assert!(store.commit(&ours).unwrap().is_ours);
    }
}
