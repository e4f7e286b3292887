//! Errors of operators and models, and the plan-time faults of a configuration.

use std::path::PathBuf;

/// Something wrong with an operator's configuration, found before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Key inside the operator's configuration that the fault is about, as a path (`["math", "tolerance"]`);
    /// empty for the stage as a whole.
    pub path: Vec<String>,
    /// What is wrong: a lower-case fragment.
    pub message: String,
    /// What to do, in the imperative.
    pub help: Option<String>,
    /// What kind of fault, for example `missing-column`.
    pub code: &'static str,
}

impl Fault {
    /// A fault about the stage as a whole.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            message: message.into(),
            help: None,
            code,
        }
    }

    /// A fault about one key.
    #[must_use]
    pub fn at(code: &'static str, key: &str, message: impl Into<String>) -> Self {
        Self {
            path: vec![key.to_owned()],
            message: message.into(),
            help: None,
            code,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The data or a file is not as it must be. The message names file, row and what to do.
    #[error("{0}")]
    Data(String),
    /// A file or folder could not be used.
    #[error("{message}: {path}", path = path.display())]
    File {
        /// What was tried.
        message: String,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The store failed.
    #[error("{message}")]
    Store {
        /// What was tried, on which object.
        message: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The run was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A broken assumption of ours; users cannot cause it.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<arrow::error::ArrowError> for OperatorError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Internal(format!("arrow: {error}"))
    }
}

/// Why a model could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the model folder is missing or unreadable.
    #[error("model file {path}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// A tensor is missing, extra or has another shape than the configuration says.
    #[error("tensor `{name}` in {path}: {message}", path = path.display())]
    Tensor {
        /// The weights file or folder.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A prompt or image that does not fit this model.
    #[error("{0}")]
    Input(String),
    /// A loss, gradient or logit that is not finite.
    #[error("not finite: {0}")]
    NonFinite(String),
    /// The device library failed.
    #[error("libtorch: {0}")]
    Backend(String),
    /// The caller broke off.
    #[error("interrupted")]
    Interrupted,
}
