//! Where things are in the store. The format's version is in the path: another format lives beside this one.

use engine_core::Digest;

pub(crate) const VERSION: &str = "v1";
pub(crate) const PARTS: &str = "v1/parts";
pub(crate) const MODELS: &str = "v1/models";
pub(crate) const MEDIA: &str = "v1/media";
pub(crate) const STAGES: &str = "v1/stages";
pub(crate) const RUNS: &str = "v1/runs";

pub(crate) fn manifest(key: &Digest) -> String {
    format!("{STAGES}/{key}.json")
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
