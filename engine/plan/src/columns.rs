//! Whether what a stage gives is what a port takes.

use arrow::datatypes::{DataType, Field, Schema};
use engine_core::{InputPort, InputType, PortType};
use schemas::Problem;
use schemas::pipeline::{SourceEntry, StageEntry};
use schemas::problem::{listed, nearest};

/// One edge of the DAG, for messages.
pub(crate) struct Edge<'a> {
    /// The stage that reads.
    pub(crate) reader: &'a str,
    /// Its input.
    pub(crate) port: &'a InputPort,
    /// What is written there.
    pub(crate) source: &'a SourceEntry,
    /// The output that is read.
    pub(crate) output: &'a str,
    /// The stage that gives it.
    pub(crate) producer: &'a StageEntry,
}

/// What a port takes, in words.
pub(crate) fn wanted(accepts: &InputType) -> String {
    match accepts {
        InputType::Model => "a model".to_owned(),
        InputType::AnyTable => "a table".to_owned(),
        InputType::Columns(schema) => format!("a table with {}", names(schema)),
    }
}

/// What is wrong with an edge.
pub(crate) fn check(edge: &Edge<'_>, given: &PortType) -> Vec<Problem> {
    match (&edge.port.accepts, given) {
        (InputType::Model, PortType::Model) | (InputType::AnyTable, PortType::Table { .. }) => {
            Vec::new()
        }
        (InputType::Columns(wanted), PortType::Table { schema, .. }) => {
            columns(edge, wanted, schema)
        }
        (accepts, given) => {
            let given = match given {
                PortType::Model => "a model".to_owned(),
                PortType::Table { table, .. } => format!("a table of {table}"),
            };
            let message = format!(
                "the input `{}` of stage `{}` takes {}, not {given}",
                edge.port.name,
                edge.reader,
                kind(accepts)
            );
            let problem = Problem::new("wrong-artifact", message, edge.source.span)
                .with_label(format!("this is {given}"));
            vec![problem.with_other(
                edge.producer.span,
                format!("output `{}` comes from here", edge.output),
            )]
        }
    }
}

fn kind(accepts: &InputType) -> &'static str {
    match accepts {
        InputType::Model => "a model",
        InputType::AnyTable | InputType::Columns(_) => "a table",
    }
}

fn columns(edge: &Edge<'_>, wanted: &Schema, given: &Schema) -> Vec<Problem> {
    let from = format!("`{}` gives {}", edge.output, names(given));
    let (missing, present): (Vec<&Field>, Vec<&Field>) = wanted
        .fields()
        .iter()
        .map(AsRef::as_ref)
        .partition(|field| given.column_with_name(field.name()).is_none());

    let mut problems = Vec::new();
    if !missing.is_empty() {
        let noun = if missing.len() == 1 {
            "column"
        } else {
            "columns"
        };
        let list: Vec<String> = missing
            .iter()
            .map(|field| format!("`{}` ({})", field.name(), describe(field.data_type())))
            .collect();
        let message = format!(
            "the input `{}` of stage `{}` needs the {noun} {}",
            edge.port.name,
            edge.reader,
            list.join(", ")
        );
        let mut problem = Problem::new("missing-column", message, edge.source.span)
            .with_label(if missing.len() == 1 {
                "does not have it"
            } else {
                "does not have them"
            })
            .with_other(edge.producer.span, from.clone());
        let candidates: Vec<&str> = given
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        let near: Vec<&str> = missing
            .iter()
            .filter_map(|field| nearest(field.name(), &candidates))
            .collect();
        if !near.is_empty() {
            problem = problem.with_help(format!(
                "did you mean {}? rename it in a `sql` stage before",
                listed(&near)
            ));
        }
        problems.push(problem);
    }
    for field in present {
        let (_, found) = given
            .column_with_name(field.name())
            .expect("it was found above");
        if !same_type(field.data_type(), found.data_type()) {
            let (want, have) = (describe(field.data_type()), describe(found.data_type()));
            let message = format!(
                "the input `{}` of stage `{}` needs the column `{}` as {want}, not {have}",
                edge.port.name,
                edge.reader,
                field.name()
            );
            problems.push(
                Problem::new("type-mismatch", message, edge.source.span)
                    .with_label(format!("`{}` is {have} here", field.name()))
                    .with_other(edge.producer.span, from.clone())
                    .with_help("cast it in a `sql` stage before"),
            );
        }
    }
    problems
}

fn names(schema: &Schema) -> String {
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    listed(&names)
}

/// Equal up to nullability and the names of list items: a query gives nullable columns whatever it reads, and a null
/// where there must be none is found with its row when the stage runs.
fn same_type(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::LargeList(a), DataType::LargeList(b))
        | (DataType::List(a), DataType::List(b)) => same_type(a.data_type(), b.data_type()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|(a, b)| a.name() == b.name() && same_type(a.data_type(), b.data_type()))
        }
        (a, b) => a == b,
    }
}

/// A type in words.
fn describe(data_type: &DataType) -> String {
    match data_type {
        DataType::LargeUtf8 => "text".to_owned(),
        DataType::Utf8 => "text with 32-bit offsets".to_owned(),
        DataType::Utf8View => "text views".to_owned(),
        DataType::LargeBinary => "bytes".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::LargeList(item) => format!("list of {}", describe(item.data_type())),
        DataType::List(item) => {
            format!("list with 32-bit offsets of {}", describe(item.data_type()))
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
            format!("struct of {}", listed(&fields))
        }
        other => other.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::TableName;
    use schemas::pipeline::read;
    use schemas::yaml::Document;

    use super::*;

    /// Codes and messages of the problems when a port takes prompts' `answer` and gets a column of some type.
    fn found(data_type: DataType) -> Vec<(&'static str, String)> {
        let text = "stages: { a: { x: {} }, b: { inputs: { in: a } } }";
        let pipeline = read(&Document::new("test.yaml", text)).pipeline;
        let port = InputPort::new("in", InputType::columns(TableName::Prompts, &["answer"]));
        let (producer, reader) = (&pipeline.stages[0], &pipeline.stages[1]);
        let source = &reader.inputs[0].sources[0];
        let edge = Edge {
            reader: &reader.name,
            port: &port,
            source,
            output: "rows",
            producer,
        };
        let schema = Arc::new(Schema::new(vec![Field::new("answer", data_type, false)]));
        let given = PortType::Table {
            table: TableName::Rows,
            schema,
        };
        check(&edge, &given)
            .into_iter()
            .map(|problem| (problem.code, problem.message))
            .collect()
    }

    #[test]
    fn a_column_of_another_type_is_a_problem_and_nullability_is_none() {
        assert_eq!(found(DataType::LargeUtf8), []);
        let message = "the input `in` of stage `b` needs the column `answer` as text, not int64";
        assert_eq!(
            found(DataType::Int64),
            [("type-mismatch", message.to_owned())]
        );
    }

    #[test]
    fn lists_and_structs_are_compared_inside() {
        let list = |item: DataType, nullable: bool| {
            DataType::LargeList(Arc::new(Field::new("any", item, nullable)))
        };
        assert!(same_type(
            &list(DataType::UInt32, true),
            &list(DataType::UInt32, false)
        ));
        assert!(!same_type(
            &list(DataType::UInt32, true),
            &list(DataType::Int64, true)
        ));
        let messages = schemas::tables::messages_type();
        assert!(same_type(&messages, &messages));
    }
}
