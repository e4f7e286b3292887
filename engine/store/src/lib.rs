//! The store: the only channel between stages, processes and machines.
//!
//! Everything is an object under one prefix of an object store. Data (parts, model files, media) is named by its content
//! and written first; a manifest, named by its stage key and written last with a create-only put, is the commit. There is
//! no database, no lock file and no update in place, so a crash at any instant leaves either a committed stage or
//! nothing that anyone can see.
//!
//! The interface blocks: stages run on threads of their own, and a local store answers at once.

mod backend;
mod cache_folder;
mod checkpoint;
mod chunk;
mod dataset;
mod digest;
mod encode;
mod error;
mod export;
mod external;
mod gc;
mod generation;
mod layout;
mod manifest;
mod map_part;
mod media;
mod memo;
mod model;
mod narrow;
mod objects;
mod record;
mod scratch;
mod side_by_side;

pub use backend::registry::{OpenObject, objects_of};
pub use checkpoint::StoredCheckpoint;
pub use chunk::{Chunk, Chunker};
pub use dataset::{DatasetReader, DatasetWriter, PartLimits};
pub use digest::{RowsHasher, combine_digests, dataset_digest, row_hashes};
pub use error::StoreError;
pub use export::ParquetFile;
pub use external::external_digest;
pub use gc::{Garbage, GarbageKind, GarbageObject, GcOptions};
pub use generation::Generations;
pub use manifest::{Commit, Lookup, MadeBy, Manifest, MapPartRef};
pub use map_part::{FailedRowRecord, MapPartCommit, MapPartManifest};
pub use narrow::NarrowRows;
pub use objects::Store;
pub use record::{Run, new_run_id};

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;
