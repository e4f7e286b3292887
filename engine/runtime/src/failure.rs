//! Why a stage or a run failed, in a form that crosses process boundaries.

use std::error::Error;
use std::fmt;

use engine_core::OperatorError;
use engine_store::StoreError;
use serde::{Deserialize, Serialize};

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// The data or a file.
    Data,
    /// The model.
    Model,
    /// The store.
    Store,
    /// A worker process that died or went silent.
    Worker,
    /// Nobody's: the run was asked to stop.
    Interrupted,
    /// Ours.
    Internal,
}

/// Why a stage failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Whose fault it is.
    pub domain: Domain,
    /// What happened, then its cause, then the cause of that.
    pub chain: Vec<String>,
    /// The last lines that the worker wrote, for a worker that died.
    pub log: Vec<String>,
    /// Whether the same may well succeed a little later.
    #[serde(default)]
    pub is_transient: bool,
}

impl Failure {
    pub(crate) fn new(domain: Domain, message: impl Into<String>) -> Self {
        Self {
            domain,
            chain: vec![message.into()],
            log: Vec::new(),
            is_transient: false,
        }
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Domain::Interrupted, "interrupted")
    }

    pub(crate) fn of(domain: Domain, error: &dyn Error) -> Self {
        let mut chain = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if chain.last() != Some(&text) {
                chain.push(text);
            }
            cause = error.source();
        }
        Self {
            domain,
            chain,
            log: Vec::new(),
            is_transient: false,
        }
    }

    /// A failure from a panic's payload.
    pub(crate) fn panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = Self::panic_text(payload);
        Self::new(Domain::Internal, format!("internal error: {text}"))
    }

    /// What a panic's payload says.
    pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("the operator panicked: {text}")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.chain.join(": "))
    }
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        let domain = match &error {
            OperatorError::Data(_) | OperatorError::File { .. } => Domain::Data,
            OperatorError::Model(engine_core::ModelError::Interrupted)
            | OperatorError::Interrupted => Domain::Interrupted,
            OperatorError::Model(_) => Domain::Model,
            OperatorError::Store { .. } => Domain::Store,
            OperatorError::Internal(_) => Domain::Internal,
        };
        Self {
            is_transient: is_transient(&error),
            ..Self::of(domain, &error)
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let domain = match &error {
            StoreError::File { .. } | StoreError::Rows(_) => Domain::Data,
            _ => Domain::Store,
        };
        Self {
            is_transient: matches!(error, StoreError::Io { .. }),
            ..Self::of(domain, &error)
        }
    }
}

/// Whether the store failed in a way that passes. Objects that are missing or damaged, and rights, stay as they are.
fn is_transient(error: &OperatorError) -> bool {
    match error {
        OperatorError::Store { message, .. } => message.starts_with("the store could not "),
        _ => false,
    }
}

/// Why a run could not be recorded or planned against the store. A stage that fails is no such error: it is an outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
