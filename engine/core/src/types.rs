//! What flows along an edge of the DAG, as far as planning knows it.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use schemas::TableName;

/// Type of an artifact at plan time.
#[derive(Clone, Debug, PartialEq)]
pub enum PortType {
    /// A dataset with these columns.
    Table {
        /// Which table it is.
        table: TableName,
        /// Its columns.
        schema: SchemaRef,
    },
    /// A model folder.
    Model,
}

impl PortType {
    /// A dataset that has exactly the columns of its table.
    #[must_use]
    pub fn table(table: TableName) -> Self {
        Self::Table {
            table,
            schema: table.schema(),
        }
    }
}

/// What an input port accepts.
#[derive(Clone, Debug, PartialEq)]
pub enum InputType {
    /// A dataset with at least these columns, each of the same type.
    Columns(SchemaRef),
    /// Any dataset.
    AnyTable,
    /// A model folder.
    Model,
}

impl InputType {
    /// The columns of a table.
    #[must_use]
    pub fn table(table: TableName) -> Self {
        Self::Columns(table.schema())
    }

    /// Some columns of a table.
    ///
    /// # Panics
    /// When the table has no such column: a mistake in an operator's source.
    #[must_use]
    pub fn columns(table: TableName, names: &[&str]) -> Self {
        let schema = table.schema();
        let indices: Vec<usize> = names
            .iter()
            .map(|name| {
                schema
                    .index_of(name)
                    .expect("operators ask for columns that the table has")
            })
            .collect();
        Self::Columns(std::sync::Arc::new(
            schema
                .project(&indices)
                .expect("indices come from the schema"),
        ))
    }
}

/// A named input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputPort {
    /// Name in the pipeline file.
    pub name: String,
    /// What it accepts.
    pub accepts: InputType,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it takes a list of artifacts, which are read one after the other.
    pub many: bool,
}

impl InputPort {
    /// A required input of one artifact.
    #[must_use]
    pub fn new(name: &str, accepts: InputType) -> Self {
        Self {
            name: name.to_owned(),
            accepts,
            optional: false,
            many: false,
        }
    }

    /// It may be left out.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// It takes a list.
    #[must_use]
    pub fn many(mut self) -> Self {
        self.many = true;
        self
    }
}

/// A named output. `stage` in an input means the stage's first output, `stage.port` a named one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPort {
    /// Name in the pipeline file.
    pub name: String,
}

/// Inputs and outputs of an operator under one configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ports {
    /// Inputs by name.
    pub inputs: Vec<InputPort>,
    /// Whether inputs with other names than the declared ones are taken too (`sql`: every input is a table).
    pub open_inputs: bool,
    /// Outputs; the first is the default.
    pub outputs: Vec<OutputPort>,
}

impl Ports {
    /// Ports with these inputs and output names.
    #[must_use]
    pub fn new(inputs: Vec<InputPort>, outputs: &[&str]) -> Self {
        let outputs = outputs
            .iter()
            .map(|name| OutputPort {
                name: (*name).to_owned(),
            })
            .collect();
        Self {
            inputs,
            open_inputs: false,
            outputs,
        }
    }
}

/// Types by port name; a `many` input has one entry for each artifact of its list.
pub type PortTypes = BTreeMap<String, Vec<PortType>>;
