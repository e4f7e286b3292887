//! The two halves of an operator: the configuration, checked at plan time without I/O, and the run.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use arrow::record_batch::RecordBatch;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::artifact::Artifact;
use crate::error::{Fault, OperatorError};
use crate::event::StageEvent;
use crate::map::MapOperator;
use crate::policy::ModelBackend;
use crate::types::{PortTypes, Ports};

/// Where a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the engine's process.
    Engine,
    /// In a worker process, which has a model backend.
    Worker,
}

/// How a stage works on its rows (design: three kinds of operator, no more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Row-local: a row's result depends on that row, and on a model, alone.
    Map,
    /// Relational.
    Query,
    /// Stateful: model and data in, model out.
    Train,
}

/// A file or folder outside the store that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Place of the path in the configuration's JSON, as a JSON pointer (`/path`). The stage key has the digest of the
    /// content there, never the path.
    pub pointer: String,
    /// The path as written; relative paths start at the project folder.
    pub path: PathBuf,
    /// What of it counts.
    pub content: ExternalContent,
}

/// What of an external file or folder enters the stage key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalContent {
    /// Names and bytes of the files.
    Bytes,
    /// The logical rows of the Parquet files: compression, row groups and names of files do not count.
    Rows,
}

/// What the user wrote for one stage, typed.
pub trait OperatorConfig: Debug + Send + Sync {
    /// Named inputs and outputs.
    fn ports(&self) -> Ports;

    /// Types of the outputs for given inputs, and every fault of values and columns. Pure. Column presence and types of
    /// declared inputs are checked by the planner before this is called.
    ///
    /// # Errors
    /// All faults found.
    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>>;

    /// Where this configuration runs, if it is elsewhere than its kind says ([`OperatorKind::PLACEMENT`]).
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// Files and folders outside the store that it reads.
    fn externals(&self) -> Vec<External> {
        Vec::new()
    }

    /// Looks at the external files, as far as a quick check goes: existence, layout, columns. `root` is the project folder.
    fn inspect(&self, root: &Path) -> Vec<Fault> {
        missing_externals(root, &self.externals())
    }

    /// The configuration as it enters the stage key. `canonical` is the configuration as JSON with sorted keys; `inputs` are
    /// the types that the planner found. An operator that can be spelled in several ways returns one spelling.
    fn key_config(&self, canonical: &serde_json::Value, _inputs: &PortTypes) -> serde_json::Value {
        canonical.clone()
    }

    /// The operator as one that the engine runs part by part: every operator of [`Family::Map`].
    fn as_map(&self) -> Option<&dyn MapOperator> {
        None
    }

    /// Runs the stage once: reads input ports, writes every output port. Map operators have [`Self::as_map`] instead.
    ///
    /// # Errors
    /// When data, a file, the model or the store fails; the stage then commits nothing.
    fn run(&self, context: &StageContext<'_>, _io: &mut dyn StageIo) -> Result<(), OperatorError> {
        Err(OperatorError::Internal(format!(
            "stage `{}` has an operator that neither runs as a whole nor by parts",
            context.stage
        )))
    }
}

/// What registration needs to know about a configuration type.
pub trait OperatorKind:
    OperatorConfig + Serialize + DeserializeOwned + schemars::JsonSchema + 'static
{
    /// The name in YAML: the file's stem with `-` for `_`.
    const KIND: &'static str;
    /// Raised whenever equal configuration and inputs would give other output.
    const VERSION: u32;
    /// How it works on its rows.
    const FAMILY: Family;
    /// Where it runs, unless a configuration says otherwise ([`OperatorConfig::placement`]).
    const PLACEMENT: Placement;
    /// Whether the stage's seed can change its output.
    const USES_SEED: bool;
    /// One line for the operator table.
    const ABOUT: &'static str;
}

/// What a running stage knows of its surroundings.
pub struct StageContext<'a> {
    /// Name of the stage, for messages only.
    pub stage: &'a str,
    /// The stage's seed.
    pub seed: u64,
    /// Project folder, where relative external paths start.
    pub root: &'a Path,
    /// The model backend; present for [`Placement::Worker`].
    pub backend: Option<&'a dyn ModelBackend>,
}

impl StageContext<'_> {
    /// The model backend.
    ///
    /// # Errors
    /// `Internal` when the stage runs without one.
    pub fn backend(&self) -> Result<&dyn ModelBackend, OperatorError> {
        self.backend.ok_or_else(|| {
            OperatorError::Internal(format!(
                "stage `{}` needs a model backend and runs without",
                self.stage
            ))
        })
    }
}

/// Record batches of a port, in order.
pub type BatchReader = Box<dyn Iterator<Item = Result<RecordBatch, OperatorError>> + Send>;

/// What a running stage can see: input ports, media, a scratch folder, events. Shared by all threads of a stage.
pub trait StageView: Sync {
    /// The artifacts of an input port, in order; empty for an optional port that is not connected.
    fn inputs(&self, port: &str) -> &[Artifact];

    /// Names of the connected input ports, sorted.
    fn input_ports(&self) -> Vec<String>;

    /// All rows of an input port: its datasets one after the other.
    ///
    /// # Errors
    /// When the port is no table or the store fails.
    fn read(&self, port: &str) -> Result<BatchReader, OperatorError>;

    /// URLs of the Parquet files of an input port, in order, for engines that read them by themselves.
    ///
    /// # Errors
    /// When the port is no table.
    fn part_urls(&self, port: &str) -> Result<Vec<String>, OperatorError>;

    /// A local folder with the files of the model on an input port. Read-only.
    ///
    /// # Errors
    /// When the port is not connected, is no model, or the store fails.
    fn model_folder(&self, port: &str) -> Result<PathBuf, OperatorError>;

    /// Stores an image (or other media) and returns its digest.
    ///
    /// # Errors
    /// When the store fails.
    fn put_media(&self, bytes: &[u8]) -> Result<String, OperatorError>;

    /// The bytes of a stored image.
    ///
    /// # Errors
    /// When there is none with this digest or the store fails.
    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError>;

    /// A folder for temporary files, removed when the stage ends.
    fn scratch(&self) -> &Path;

    /// Tells how far the stage is.
    fn event(&self, event: StageEvent);

    /// Whether the run was asked to stop; long loops ask often and return [`OperatorError::Interrupted`].
    fn is_cancelled(&self) -> bool;
}

/// The only doors of a stage that runs as a whole: what it can see, output ports, checkpoints.
pub trait StageIo: StageView {
    /// Appends rows to an output port. All batches of a port have one schema.
    ///
    /// # Errors
    /// When the schema is not the declared one or the store fails.
    fn write(&mut self, port: &str, batch: RecordBatch) -> Result<(), OperatorError>;

    /// Sets the model of an output port from a local folder, whose files are copied.
    ///
    /// # Errors
    /// When the folder cannot be read or the store fails.
    fn write_model(&mut self, port: &str, folder: &Path) -> Result<(), OperatorError>;

    /// The latest checkpoint of this very stage, from an earlier run that did not come to its end. The rows that were
    /// written until then are on the output ports again, so it is asked for before anything is written.
    ///
    /// # Errors
    /// When the store fails.
    fn resume(&mut self) -> Result<Option<Checkpoint>, OperatorError>;

    /// Whether the last checkpoint is long enough ago that another one is worth its time.
    fn wants_checkpoint(&self) -> bool;

    /// Commits where the stage is: the rows written so far, the files of a folder, and a value of the operator's own.
    ///
    /// # Errors
    /// When the folder cannot be read or the store fails.
    fn checkpoint(
        &mut self,
        step: u64,
        folder: &Path,
        state: serde_json::Value,
    ) -> Result<(), OperatorError>;
}

/// Where a stage was when it was broken off.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// A local folder with the files that were given. Read-only.
    pub folder: PathBuf,
    /// The operator's own value.
    pub state: serde_json::Value,
}

/// A fault for each external path that does not exist.
#[must_use]
pub fn missing_externals(root: &Path, externals: &[External]) -> Vec<Fault> {
    externals
        .iter()
        .filter(|external| !root.join(&external.path).exists())
        .map(|external| Fault {
            path: external
                .pointer
                .split('/')
                .skip(1)
                .map(str::to_owned)
                .collect(),
            message: format!("no file or folder `{}`", external.path.display()),
            help: Some(format!(
                "paths start at the project folder `{}`",
                root.display()
            )),
            code: "missing-file",
        })
        .collect()
}
