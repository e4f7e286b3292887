//! Where things are in the store. The format's version is in the path: another format lives beside this one.

use engine_core::Digest;

pub(crate) const STAGES: &str = "v1/stages";
pub(crate) const RUNS: &str = "v1/runs";

pub(crate) fn manifest(key: &Digest) -> String {
    format!("{STAGES}/{key}.json")
}

pub(crate) fn part(digest: &Digest) -> String {
    format!("v1/parts/{digest}.parquet")
}

pub(crate) fn model(digest: &Digest) -> String {
    format!("v1/models/{digest}")
}

pub(crate) fn media(digest: &str) -> String {
    format!("v1/media/{digest}")
}

pub(crate) fn run(run: &str) -> String {
    format!("{RUNS}/{run}")
}
