//! What may be removed from a store: objects that nothing refers to, and results that no kept run uses.
//!
//! Nothing is locked, so age stands in for the question whether somebody is at work: what is younger than the age stays,
//! and nothing at all goes while a run may be at work, since such a run may refer to any old object that has the
//! content that it needs. A run at work says so from time to time ([`Store::record_alive`]). When in doubt an object stays.
//!
//! What stays, and with it all that it names: manifests of stages, all of them or those that a kept run used; parts of map stages
//! that such a manifest names, and young ones, which belong to a stage that is not finished; young checkpoints of stages that
//! have no result yet.
//!
//! Pieces of a large upload to a cloud service that was broken off are invisible to lists of objects; a rule of the bucket's
//! life cycle removes them.

mod media;
mod references;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::ObjectMeta;

use self::references::References;
use crate::side_by_side::side_by_side;
use crate::{Result, Run, Store, StoreError, layout};

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// Younger objects stay.
    pub older_than: Duration,
    /// Younger objects stay whatever `older_than` says.
    pub grace: Duration,
    /// Also removes the stages that none of so many latest runs used.
    pub keep_runs: Option<usize>,
}

/// Why an object is garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GarbageKind {
    /// The manifest of a stage that no kept run used.
    Stage,
    /// A committed part of a map stage that no kept stage has.
    MapPart,
    /// A checkpoint, or a file of one, of a stage that is finished or given up.
    Checkpoint,
    /// A part that no manifest names.
    Part,
    /// A file of a model that no manifest names.
    Model,
    /// Media that no row of a kept dataset names.
    Media,
    /// A write that never came to its end.
    Unfinished,
}

impl GarbageKind {
    /// The word for people and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::MapPart => "map-part",
            Self::Checkpoint => "checkpoint",
            Self::Part => "part",
            Self::Model => "model",
            Self::Media => "media",
            Self::Unfinished => "unfinished",
        }
    }
}

/// An object that may be removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GarbageObject {
    /// Why.
    pub kind: GarbageKind,
    /// Path in the store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// What may be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// The objects, in the order in which they are removed: manifests before what they name.
    pub objects: Vec<GarbageObject>,
    /// The run that may be at work, so that nothing goes.
    pub held_by: Option<String>,
    /// Why all media stay, if it cannot be known which are used.
    pub media_kept: Option<String>,
}

impl Store {
    /// Looks for what may be removed; removes nothing.
    ///
    /// # Errors
    /// When a manifest is damaged, so that it cannot be known what it names, or the store fails.
    pub fn find_garbage(&self, options: &GcOptions) -> Result<Garbage> {
        let ages = Ages {
            now: now(),
            age: options.older_than.max(options.grace),
            grace: options.grace,
        };
        // Objects are listed before the manifests are read: one that is committed in between is not missed.
        let old = |prefix: &str| -> Result<Vec<ObjectMeta>> {
            let mut listed = self.list(prefix)?;
            listed.retain(|meta| ages.is_old(meta.last_modified));
            Ok(listed)
        };
        let (parts, models, media) = (
            old(layout::PARTS)?,
            old(layout::MODELS)?,
            old(layout::MEDIA)?,
        );
        let mut objects = self.unfinished_writes()?;
        objects.retain(|(_, modified)| ages.is_old(*modified));
        let mut objects: Vec<GarbageObject> =
            objects.into_iter().map(|(object, _)| object).collect();
        let runs = self.known_runs()?;
        if let Some(run) = self.run_at_work(&runs, &ages)? {
            return Ok(Garbage {
                held_by: Some(run),
                ..Garbage::default()
            });
        }
        let kept_stages = options.keep_runs.map(|number| stages_of(&runs, number));
        let mut live = References::new(&media);
        objects.extend(self.add_references(&mut live, kept_stages.as_ref(), &ages)?);
        let unnamed = |listed: Vec<ObjectMeta>, kind| {
            let listed = listed.into_iter().map(move |meta| garbage(&meta, kind));
            let unnamed = listed.filter(|object| !live.names(&object.path));
            unnamed.collect::<Vec<_>>()
        };
        objects.extend(unnamed(parts, GarbageKind::Part));
        objects.extend(unnamed(models, GarbageKind::Model));
        let media = unnamed(media, GarbageKind::Media);
        let media_kept = match self.unused_media(media, live) {
            Ok(unused) => {
                objects.extend(unused);
                None
            }
            Err(reason) => Some(reason),
        };
        // All that took its time: a run may have begun meanwhile, and count on what it found.
        if let Some(run) = self.run_at_work(&self.known_runs()?, &ages)? {
            return Ok(Garbage {
                held_by: Some(run),
                ..Garbage::default()
            });
        }
        objects.sort();
        Ok(Garbage {
            objects,
            held_by: None,
            media_kept,
        })
    }

    /// Removes one object that was found. Manifests come first in [`Garbage::objects`]: a removal that is broken off
    /// leaves no manifest whose objects are gone.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remove_garbage(&self, object: &GarbageObject) -> Result<()> {
        match self.local_path(&object.path) {
            // The object store hides the files of writes that did not end.
            Some(path) if object.kind == GarbageKind::Unfinished => {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(StoreError::file("remove", path)(error))
                    }
                    _ => Ok(()),
                }
            }
            _ => self.remove(&object.path),
        }
    }

    /// All runs, the oldest first. Unlike in a list for people, a damaged record is an error: what its run used would
    /// not be kept.
    fn known_runs(&self) -> Result<Vec<Run>> {
        let runs = side_by_side(self, &self.list_runs()?, |name| match self.run(name) {
            Ok(run) => Ok(Some(run)),
            // Its process ended before the first record.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// The latest run that has not ended and left a young record or sign of life. One that was killed and gone on with is at
    /// work no more, but two runs of one pipeline may also be at work at once: within the grace nobody can tell.
    fn run_at_work(&self, runs: &[Run], ages: &Ages) -> Result<Option<String>> {
        let mut ended = BTreeSet::new();
        for run in runs.iter().rev() {
            let pipeline = (&run.started.pipeline, &run.started.text);
            if run.ended.is_some() {
                ended.insert(pipeline);
                continue;
            }
            let records = self.list(&layout::run(&run.started.run))?;
            let Some(last) = records.iter().map(|record| record.last_modified).max() else {
                continue;
            };
            let is_gone_on_with = ended.contains(&pipeline) && ages.is_beyond_grace(last);
            if !ages.is_old(last) && !is_gone_on_with {
                return Ok(Some(run.started.run.clone()));
            }
        }
        Ok(None)
    }

    /// Files of writes to the local disk that never came to their end.
    fn unfinished_writes(&self) -> Result<Vec<(GarbageObject, DateTime<Utc>)>> {
        let mut found = Vec::new();
        let Some(root) = self.local_root() else {
            return Ok(found);
        };
        let mut folders = vec![root.join(layout::VERSION)];
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::file("list", folder)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::file("list", &folder))?;
                let path = entry.path();
                // Whoever wrote it may have finished or removed it by now.
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    folders.push(path);
                } else if is_staging_name(&path)
                    && let Ok(modified) = meta.modified()
                    && let Some(path) = path.strip_prefix(root).ok().and_then(|path| path.to_str())
                {
                    let object = GarbageObject {
                        kind: GarbageKind::Unfinished,
                        path: path.to_owned(),
                        bytes: meta.len(),
                    };
                    found.push((object, modified.into()));
                }
            }
        }
        Ok(found)
    }
}

/// `name#digits`: what a write to the local disk is called until it has its final name.
fn is_staging_name(path: &std::path::Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str()?.rsplit_once('#'))
        .is_some_and(|(_, suffix)| {
            !suffix.is_empty() && suffix.bytes().all(|digit| digit.is_ascii_digit())
        })
}

/// Keys of the stages that the latest runs used.
fn stages_of(runs: &[Run], number: usize) -> BTreeSet<String> {
    let kept = runs.iter().rev().take(number);
    kept.flat_map(|run| &run.stages)
        .filter_map(|record| record.key.clone())
        .collect()
}

/// What counts as old.
#[derive(Clone, Copy, Debug)]
struct Ages {
    now: DateTime<Utc>,
    age: Duration,
    grace: Duration,
}

impl Ages {
    fn is_old(&self, modified: DateTime<Utc>) -> bool {
        self.is_older(modified, self.age)
    }

    fn is_beyond_grace(&self, modified: DateTime<Utc>) -> bool {
        self.is_older(modified, self.grace)
    }

    fn is_older(&self, modified: DateTime<Utc>, age: Duration) -> bool {
        let since = self.now.signed_duration_since(modified).to_std();
        since.is_ok_and(|since| since >= age)
    }
}

fn garbage(meta: &ObjectMeta, kind: GarbageKind) -> GarbageObject {
    GarbageObject {
        kind,
        path: meta.location.to_string(),
        bytes: meta.size,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "age decides what may be removed; nothing that a stage makes depends on it"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
