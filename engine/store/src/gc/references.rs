//! What stays in a store, and what it names.

use std::collections::BTreeSet;

use object_store::ObjectMeta;
use serde_json::Value;

use super::media::Unused;
use super::{Ages, GarbageKind, GarbageObject, garbage};
use crate::checkpoint::is_checkpoint;
use crate::generation::key_and_generation;
use crate::side_by_side::side_by_side;
use crate::{Result, Store, StoreError, layout};

/// Objects that are read at once, so that not all of them are in memory.
const READ_AT_ONCE: usize = 1024;

/// Paths in the store that are named by what stays.
#[derive(Debug)]
pub(super) struct References {
    paths: BTreeSet<String>,
    /// Keys of parts of map stages that are named by manifests of stages.
    map_parts: BTreeSet<String>,
    /// Keys of stages that have a manifest, kept or not.
    committed: BTreeSet<String>,
    /// Media that were named nowhere so far.
    pub(super) unused: Unused,
}

impl References {
    pub(super) fn new(media: &[ObjectMeta]) -> Self {
        Self {
            paths: BTreeSet::new(),
            map_parts: BTreeSet::new(),
            committed: BTreeSet::new(),
            unused: Unused::new(media),
        }
    }

    /// Whether the object or a folder around it is named.
    pub(super) fn names(&self, path: &str) -> bool {
        let mut folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        self.paths.contains(path) || folders.any(|folder| self.paths.contains(folder))
    }

    /// All parts that are named.
    pub(super) fn parts(&self) -> impl Iterator<Item = &String> {
        let parts = self.paths.iter();
        parts.filter(|path| path.starts_with(layout::PARTS))
    }

    /// Takes up all that an object names. It is read as plain JSON, so that what a later version of it names counts too.
    fn add(&mut self, object: &Value) {
        if !self.unused.is_empty() {
            self.unused.strike(object.to_string().as_bytes());
        }
        self.add_paths(object);
        let parts = object.get("parts").and_then(Value::as_array);
        let keys = parts.into_iter().flatten();
        let keys = keys.filter_map(|part| part.get("key")?.as_str());
        self.map_parts.extend(keys.map(str::to_owned));
    }

    fn add_paths(&mut self, value: &Value) {
        match value {
            Value::String(text) if text.starts_with(layout::VERSION) => {
                self.paths.insert(text.clone());
            }
            Value::Array(values) => values.iter().for_each(|value| self.add_paths(value)),
            Value::Object(fields) => fields.values().for_each(|value| self.add_paths(value)),
            _ => {}
        }
    }
}

/// Whether a manifest is kept when it cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Damaged {
    /// It may name anything.
    Error,
    /// Nobody can use it, so that it counts for nothing.
    Ignored,
}

impl Store {
    /// Takes up what the manifests, parts of map stages and checkpoints name that stay, and returns those that go.
    pub(super) fn add_references(
        &self,
        live: &mut References,
        kept_stages: Option<&BTreeSet<String>>,
        ages: &Ages,
    ) -> Result<Vec<GarbageObject>> {
        let mut gone = Vec::new();
        let data = [layout::PARTS, layout::MODELS, layout::MEDIA, layout::RUNS];
        let (mut map_parts, mut checkpoints) = (Vec::new(), Vec::new());
        for folder in self.list_folders(layout::VERSION)? {
            let folder = format!("{}/{folder}", layout::VERSION);
            match folder.as_str() {
                layout::MAP_PARTS => map_parts = self.list(&folder)?,
                layout::CHECKPOINTS => checkpoints = self.list(&folder)?,
                layout::STAGES | layout::GENERATIONS => {
                    gone.extend(self.add_stages(live, &folder, kept_stages, ages)?);
                }
                other if data.contains(&other) => {}
                // What a later version keeps there.
                _ => {
                    let mut listed = self.list(&folder)?;
                    listed.retain(|meta| meta.location.extension() == Some("json"));
                    self.read_references(live, &listed, Damaged::Error)?;
                }
            }
        }
        gone.extend(self.add_map_parts(live, map_parts, ages)?);
        gone.extend(self.add_checkpoints(live, checkpoints, ages)?);
        Ok(gone)
    }

    /// Manifests of old stages that no kept run used go.
    fn add_stages(
        &self,
        live: &mut References,
        folder: &str,
        kept_stages: Option<&BTreeSet<String>>,
        ages: &Ages,
    ) -> Result<Vec<GarbageObject>> {
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for meta in self.list(folder)? {
            let Some(name) = meta.location.filename() else {
                continue;
            };
            let Some(stem) = name.strip_suffix(".json") else {
                continue;
            };
            let key = key_and_generation(name).map_or(stem, |(key, _)| key);
            let key = key.to_owned();
            let is_used = kept_stages.is_none_or(|stages| stages.contains(&key));
            live.committed.insert(key);
            if is_used || !ages.is_old(meta.last_modified) {
                kept.push(meta);
            } else {
                gone.push(garbage(&meta, GarbageKind::Stage));
            }
        }
        self.read_references(live, &kept, Damaged::Error)?;
        Ok(gone)
    }

    /// Old parts that no kept stage names go: their stage was given up, or it is gone itself.
    fn add_map_parts(
        &self,
        live: &mut References,
        listed: Vec<ObjectMeta>,
        ages: &Ages,
    ) -> Result<Vec<GarbageObject>> {
        let (kept, gone): (Vec<_>, Vec<_>) = listed.into_iter().partition(|meta| {
            let key = meta.location.filename();
            let key = key.and_then(|name| name.strip_suffix(".json"));
            !ages.is_old(meta.last_modified) || key.is_some_and(|key| live.map_parts.contains(key))
        });
        self.read_references(live, &kept, Damaged::Ignored)?;
        let gone = gone.iter();
        Ok(gone
            .map(|meta| garbage(meta, GarbageKind::MapPart))
            .collect())
    }

    /// Checkpoints of a stage that has its result go once nobody can be writing them any more, others when they are old; and so
    /// do files that none of those names that stay.
    fn add_checkpoints(
        &self,
        live: &mut References,
        listed: Vec<ObjectMeta>,
        ages: &Ages,
    ) -> Result<Vec<GarbageObject>> {
        let may_go = |meta: &ObjectMeta, live: &References| {
            let key = meta.location.parts().nth(2);
            let is_committed = key.is_some_and(|key| live.committed.contains(key.as_ref()));
            ages.is_old(meta.last_modified)
                || is_committed && ages.is_beyond_grace(meta.last_modified)
        };
        let (commits, files): (Vec<_>, Vec<_>) = listed.into_iter().partition(|meta| {
            let path = meta.location.as_ref();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            is_checkpoint(folder, path)
        });
        let (mut gone, kept): (Vec<_>, Vec<_>) =
            commits.into_iter().partition(|meta| may_go(meta, live));
        self.read_references(live, &kept, Damaged::Ignored)?;
        gone.extend(
            files
                .into_iter()
                .filter(|meta| !live.names(meta.location.as_ref()) && may_go(meta, live)),
        );
        let gone = gone.iter();
        Ok(gone
            .map(|meta| garbage(meta, GarbageKind::Checkpoint))
            .collect())
    }

    fn read_references(
        &self,
        live: &mut References,
        listed: &[ObjectMeta],
        damaged: Damaged,
    ) -> Result<()> {
        for some in listed.chunks(READ_AT_ONCE) {
            let read = side_by_side(self, some, |meta| {
                match self.get_json::<Value>(meta.location.as_ref()) {
                    Ok(value) => Ok(Some(value)),
                    // Removed since the list.
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(StoreError::Corrupt { .. }) if damaged == Damaged::Ignored => Ok(None),
                    Err(error) => Err(error),
                }
            })?;
            read.iter().flatten().for_each(|value| live.add(value));
        }
        Ok(())
    }
}
