//! The store: the only channel between stages, processes and machines.
//!
//! Everything is an object under one prefix of an object store. Data (parts, model files, media) is named by its content
//! and written first; a manifest, named by its stage key and written last with a create-only put, is the commit. There is
//! no database, no lock file and no update in place, so a crash at any instant leaves either a committed stage or
//! nothing that anyone can see.
//!
//! The interface blocks: stages run on threads of their own, and a local store answers at once.

mod dataset;
mod digest;
mod error;
mod external;
mod gc;
mod layout;
mod manifest;
mod media;
mod model;
mod objects;
mod record;
mod scratch;

pub use dataset::{DatasetReader, DatasetWriter, PartLimits};
pub use digest::DatasetHasher;
pub use error::StoreError;
pub use external::external_digest;
pub use gc::{Garbage, GarbageKind, GarbageObject, GcOptions};
pub use manifest::{Commit, Lookup, MadeBy, Manifest};
pub use objects::Store;
pub use record::{Run, new_run_id};

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;
