//! What can go wrong with the store: which object, why, and what to do.

use std::io::ErrorKind;
use std::path::PathBuf;

use engine_core::OperatorError;

use crate::backend::explain::{brief, io_kind};

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the store cannot be used.
    #[error("store `{url}`: {message}")]
    Url {
        /// The address as given.
        url: String,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// There is no such object.
    #[error(
        "no object `{path}` in the store; was it removed by hand? run the pipeline again to make it anew"
    )]
    NotFound {
        /// Path in the store.
        path: String,
    },
    /// A create-only put found another object there.
    #[error("object `{path}` exists already")]
    AlreadyExists {
        /// Path in the store.
        path: String,
    },
    /// An object is not what it must be.
    #[error(
        "object `{path}` is damaged: {message}; remove it and run the pipeline again to make it anew"
    )]
    Corrupt {
        /// Path in the store.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// No right to read or write there.
    #[error("no permission for `{path}` in the store")]
    Permission {
        /// Path in the store.
        path: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk of the store has no room.
    #[error(
        "no space is left for `{path}` in the store; free some and run again: all that was finished is kept"
    )]
    Full {
        /// Path in the store.
        path: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object store failed.
    #[error("the store could not {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Path in the store.
        path: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or folder outside the store failed.
    #[error("could not {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file outside the store was written to while it was read.
    #[error("{path} changed while it was read; wait until it is complete and run again", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Rows that cannot be stored.
    #[error("{0}")]
    Rows(String),
}

impl StoreError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    pub(crate) fn object(
        action: &'static str,
        path: &str,
    ) -> impl FnOnce(object_store::Error) -> Self {
        let path = path.to_owned();
        move |error| {
            let source = Box::new(Cause::from(&error));
            match error {
                object_store::Error::NotFound { .. } => Self::NotFound { path },
                object_store::Error::AlreadyExists { .. } => Self::AlreadyExists { path },
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. } => Self::Permission { path, source },
                other => match io_kind(&other) {
                    Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                        Self::Permission { path, source }
                    }
                    Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                        Self::Full { path, source }
                    }
                    _ => Self::Io {
                        action,
                        path,
                        source,
                    },
                },
            }
        }
    }
}

/// What the service or the system said, in a line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl From<&object_store::Error> for Cause {
    fn from(error: &object_store::Error) -> Self {
        Self(brief(error))
    }
}

impl From<StoreError> for OperatorError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File {
                action,
                path,
                source,
            } => Self::File {
                message: format!("could not {action}"),
                path,
                source,
            },
            StoreError::Rows(message) => Self::Data(message),
            changed @ StoreError::Changed { .. } => Self::Data(changed.to_string()),
            other => {
                let message = other.to_string();
                match other {
                    StoreError::Io { source, .. }
                    | StoreError::Full { source, .. }
                    | StoreError::Permission { source, .. } => Self::Store { message, source },
                    _ => Self::Store {
                        message,
                        source: "the store is not whole".into(),
                    },
                }
            }
        }
    }
}
