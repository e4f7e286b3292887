//! What goes wrong in a query, in words short enough for a terminal.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use engine_core::OperatorError;

use crate::session::MEMORY_VARIABLE;

/// Why a query gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The text is no query over these tables: wrong syntax, table, column or type.
    #[error("{0}")]
    Query(String),
    /// The query is fine and failed on the data or the files.
    #[error("query failed: {0}")]
    Run(String),
}

impl QueryError {
    /// A fault of the query's text.
    #[must_use]
    pub fn query(error: &DataFusionError) -> Self {
        Self::Query(shortened(error))
    }

    /// A failure while running.
    #[must_use]
    pub fn run(error: &DataFusionError) -> Self {
        Self::Run(shortened(error))
    }
}

impl From<QueryError> for OperatorError {
    fn from(error: QueryError) -> Self {
        Self::Data(error.to_string())
    }
}

/// First line of the root error, without the name of the component that found it.
fn shortened(error: &DataFusionError) -> String {
    let root = error.find_root();
    if let DataFusionError::SchemaError(fault, _) = root
        && let SchemaError::FieldNotFound {
            field,
            valid_fields,
        } = fault.as_ref()
    {
        let mut names: Vec<&str> = valid_fields
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        names.dedup();
        return format!(
            "no column `{}`; columns are {}",
            field.name,
            names.join(", ")
        );
    }
    if let DataFusionError::ResourcesExhausted(_) = root {
        return format!(
            "it needs more memory than a query may have; select fewer columns, join fewer rows, or set {MEMORY_VARIABLE} to \
             a larger number of MiB"
        );
    }
    let text = root.strip_backtrace();
    let mut line = text.lines().next().unwrap_or_default();
    for prefix in [
        "Error during planning: ",
        "Schema error: ",
        "SQL error: ",
        "Execution error: ",
        "External error: ",
        "Arrow error: ",
        "Parquet error: ",
        "Object Store error: ",
        "This feature is not implemented: ",
    ] {
        line = line.strip_prefix(prefix).unwrap_or(line);
    }
    let line = line
        .strip_prefix("ParserError(\"")
        .and_then(|rest| rest.strip_suffix("\")"))
        .unwrap_or(line);
    let line = line.replace("datafusion.public.", "");
    let line = line.trim().trim_end_matches('.');
    let mut letters = line.chars();
    match letters.next() {
        // A word in capitals (SQL) keeps them.
        Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => line.to_owned(),
    }
}
