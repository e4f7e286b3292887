//! What a stage produces: immutable, named by the digest of its content.

use std::fmt;

use schemas::TableName;
use serde::{Deserialize, Serialize};

/// A blake3 digest, as 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// Digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }

    /// The hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12.min(self.0.len())]
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Digest of some rows in their order, as hexadecimal digits. It composes: that of two tables one after the other follows from
/// those of the two, so the digest of a dataset does not depend on where its parts begin. `engine-store` computes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowsDigest(pub String);

/// A Parquet file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRef {
    /// Path in the store.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Digest of its rows.
    pub digest: RowsDigest,
}

/// A table: rows in order, split into parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// Digest of schema and logical rows, whatever the parts, row groups and compression.
    pub digest: Digest,
    /// Which table it is.
    pub table: TableName,
    /// Rows in all parts.
    pub rows: u64,
    /// The parts, in order. A dataset without rows has one part without rows, which keeps its schema.
    pub parts: Vec<PartRef>,
}

/// A file of a model folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// Name inside the folder.
    pub name: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub bytes: u64,
}

/// A Hugging Face model folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFolder {
    /// Digest over names and contents of the files.
    pub digest: Digest,
    /// The files, sorted by name.
    pub files: Vec<FileRef>,
    /// Folder in the store that holds them.
    pub path: String,
}

/// What one output port of a stage holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Artifact {
    /// A table.
    Dataset(Dataset),
    /// A model.
    Model(ModelFolder),
}

impl Artifact {
    /// Digest of the content.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Dataset(dataset) => &dataset.digest,
            Self::Model(model) => &model.digest,
        }
    }

    /// Rows, for a dataset.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        match self {
            Self::Dataset(dataset) => Some(dataset.rows),
            Self::Model(_) => None,
        }
    }
}
