//! Exit codes: they say whose fault it was.

use std::fmt;
use std::process::ExitCode;

use serde_json::json;

use crate::logging::{is_json, json_line};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Done,
    /// The run failed.
    Failed,
    /// The pipeline or the command line is wrong.
    Wrong,
    /// Interrupted; the same command goes on.
    Interrupted,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Wrong => 2,
            Self::Interrupted => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A wrong command line: the message says what to do.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// An error that ends the command with exit code 2.
pub(crate) fn wrong(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Wrong(message.into()))
}

/// Prints an error with its causes and says how the process ends.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    if is_json() {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        json_line("ERROR", &error.to_string(), json!({ "causes": causes }));
        return how(error);
    }
    eprintln!("error: {error}");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !said.contains(&text) {
            eprintln!("  caused by: {text}");
        }
        said = text;
    }
    how(error)
}

fn how(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<Wrong>().is_some() {
        Exit::Wrong
    } else {
        Exit::Failed
    }
}
