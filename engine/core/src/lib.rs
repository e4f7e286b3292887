//! Traits and plain types that every other crate speaks: operators, artifacts, policies, events, errors.
//!
//! Nothing here performs I/O, knows a file format, or names a tensor.

pub mod artifact;
pub mod error;
pub mod event;
pub mod map;
pub mod operator;
pub mod policy;
pub mod registry;
pub mod seed;
pub mod types;

pub use artifact::{Artifact, Dataset, Digest, ModelFolder, PartRef, RowsDigest};
pub use error::{Fault, ModelError, OperatorError};
pub use event::{Progress, StageEvent};
pub use map::{FailedRow, Joined, MapOperator, MapOutput, MapPart, MapTask, PartSize, map_whole};
pub use operator::{
    Checkpoint, External, ExternalContent, OperatorConfig, OperatorKind, Placement, StageContext,
    StageIo, StageView,
};
pub use policy::{ModelBackend, Policy};
pub use registry::{OperatorEntry, Registry};
pub use types::{InputPort, InputType, OutputPort, PortType, PortTypes, Ports};
