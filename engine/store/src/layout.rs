//! Where things are in the store. The format's version is in the path: another format lives beside this one.

use engine_core::Digest;

pub(crate) const VERSION: &str = "v1";
pub(crate) const PARTS: &str = "v1/parts";
pub(crate) const MODELS: &str = "v1/models";
pub(crate) const MEDIA: &str = "v1/media";
pub(crate) const STAGES: &str = "v1/stages";
pub(crate) const GENERATIONS: &str = "v1/generations";
pub(crate) const MAP_PARTS: &str = "v1/map-parts";
pub(crate) const CHECKPOINTS: &str = "v1/checkpoints";
pub(crate) const RUNS: &str = "v1/runs";

/// A stage's manifest: generation 0 under the key alone, so that the first commit of a stage needs no list.
pub(crate) fn manifest(key: &Digest, generation: u32) -> String {
    if generation == 0 {
        format!("{STAGES}/{key}.json")
    } else {
        format!("{GENERATIONS}/{key}-{generation}.json")
    }
}

pub(crate) fn map_part(key: &Digest) -> String {
    format!("{MAP_PARTS}/{key}.json")
}

/// Everything that belongs to the checkpoints of a stage.
pub(crate) fn checkpoints(key: &Digest) -> String {
    format!("{CHECKPOINTS}/{key}")
}

pub(crate) fn checkpoint(key: &Digest, step: u64) -> String {
    format!("{CHECKPOINTS}/{key}/{step:012}.json")
}

/// Files of a checkpoint. They lie under the stage's key, so that removing them takes nothing from any other stage.
pub(crate) fn checkpoint_files(key: &Digest, digest: &Digest) -> String {
    format!("{CHECKPOINTS}/{key}/files/{digest}")
}

pub(crate) fn part(digest: &Digest) -> String {
    format!("{PARTS}/{digest}.parquet")
}

pub(crate) fn model(digest: &Digest) -> String {
    format!("{MODELS}/{digest}")
}

pub(crate) fn media(digest: &str) -> String {
    format!("{MEDIA}/{digest}")
}

pub(crate) fn run(run: &str) -> String {
    format!("{RUNS}/{run}")
}
