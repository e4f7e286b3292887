//! exec: hands rows to any program as an Arrow stream and takes the rows that it writes.
//!
//! One process for each part: it reads an Arrow IPC stream from standard input and writes one to standard output. What it
//! gives must depend on the rows alone, since parts are kept and reused one by one, and it must not matter where they are cut.

mod columns;
mod output;
mod run;
mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use engine_core::map::project;
use engine_core::operator::Family;
use engine_core::{
    External, Fault, InputPort, InputType, MapOperator, MapOutput, MapPart, MapTask,
    OperatorConfig, OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports,
    StageContext, StageView,
};
use operators_verifier::program::{self, Program};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use columns::ColumnType;
use run::{Limits, ProgramError, Runner};
use stream::Written;

/// Megabytes that a program may write for a part where the pipeline does not say.
const OUTPUT_MB: u64 = 256;
/// Keys that do not change what a row gives.
const LIMITS: [&str; 4] = ["timeout-seconds", "memory-mb", "output-mb", "part-rows"];

/// A program of your own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Exec {
    /// The program and its arguments. It is started without a shell, in the project folder, with little of the environment:
    /// PATH, HOME, LANG, LC_ALL, LC_CTYPE and TMPDIR.
    pub command: Vec<String>,
    /// Files and folders that the program is made of; relative paths start at the project folder. The stage runs again when
    /// their content changes. What of the project stands in `command` must be among them.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Columns that the program gets; all if left out. Naming the few that it needs saves work when others change.
    pub columns: Option<Vec<String>>,
    /// Columns of the input that the output has too, row by row. Needs `rows: one-to-one`.
    #[serde(default)]
    pub keep: Vec<String>,
    /// How the rows that the program writes go with those that it reads.
    pub rows: RowsRule,
    /// What the program writes.
    pub output: Output,
    /// Whether the program writes a column `error` of text: a row that has one there could not be computed, and has no output.
    /// Needs `rows: one-to-one`.
    #[serde(default)]
    pub errors: bool,
    /// Names of further environment variables that the program gets. Their values do not count in the key and are kept
    /// nowhere, so they are for secrets and the like, not for settings.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds that the program may take for one part.
    pub timeout_seconds: u64,
    /// Megabytes of memory that the program, with all processes that it starts, may have.
    pub memory_mb: u64,
    /// Megabytes that the program may write for one part; 256 if left out.
    pub output_mb: Option<u64>,
    /// Rows in a part, on average; 16384 if left out. Fewer rows lose less when a run is broken off, more start fewer processes.
    pub part_rows: Option<u32>,
}

/// How the rows that a program writes go with those that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RowsRule {
    /// One row for each row read, in the same order.
    OneToOne,
    /// Any number of rows for each row read.
    Any,
}

/// What a program writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Output {
    /// Which table it is, such as `scores`: then its columns must be there, kept or written. `rows` is any table.
    #[schemars(with = "String")]
    pub table: TableName,
    /// Columns that the program writes, with their types: `text`, `integer`, `number`, `boolean`, `list of number` and so on;
    /// `text?` may be null. A column that the table has is stored with the table's type.
    pub columns: BTreeMap<String, ColumnType>,
}

impl OperatorKind for Exec {
    const KIND: &'static str = "exec";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "rows through a program of your own, as Arrow streams";
}

impl OperatorConfig for Exec {
    fn ports(&self) -> Ports {
        Ports::new(vec![InputPort::new("rows", InputType::AnyTable)], &["rows"])
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = self.value_faults();
        let input = match inputs.get("rows").and_then(|types| types.first()) {
            Some(PortType::Table { schema, .. }) => SchemaRef::clone(schema),
            _ => SchemaRef::new(Schema::empty()),
        };
        match output::schema(self, &input) {
            Ok(schema) if faults.is_empty() => Ok(PortTypes::from([(
                "rows".to_owned(),
                vec![PortType::Table {
                    table: self.output.table,
                    schema,
                }],
            )])),
            Ok(_) => Err(faults),
            Err(more) => {
                faults.extend(more);
                Err(faults)
            }
        }
    }

    fn externals(&self) -> Vec<External> {
        program::externals(&[], &self.command, &self.files)
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        program::inspect(root, &self.command, &self.files)
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        without_limits(canonical)
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Exec {
    fn rows_port(&self) -> Option<&str> {
        Some("rows")
    }

    fn columns(&self) -> Option<Vec<String>> {
        let mut columns = self.columns.clone()?;
        for name in &self.keep {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        Some(columns)
    }

    fn part_size(&self) -> PartSize {
        let default = PartSize::default();
        PartSize {
            rows: self.part_rows.map_or(default.rows, |rows| rows as usize),
            ..default
        }
    }

    fn part_config(&self, canonical: &Value) -> Value {
        without_limits(canonical)
    }

    fn start<'a>(
        &'a self,
        context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        Ok(Box::new(ExecTask {
            config: self,
            runner: Runner {
                program: Program::new(&self.command, context.root, &self.env)?,
                limits: Limits {
                    time: Duration::from_secs(self.timeout_seconds),
                    memory_mb: self.memory_mb,
                    output_mb: self.output_mb.unwrap_or(OUTPUT_MB),
                },
            },
            view,
        }))
    }
}

impl Exec {
    fn value_faults(&self) -> Vec<Fault> {
        let mut faults = program::command_faults(&self.command, &self.env);
        faults.extend(program::number_faults(&[
            ("timeout-seconds", Some(self.timeout_seconds)),
            ("memory-mb", Some(self.memory_mb)),
            ("output-mb", self.output_mb),
            ("part-rows", self.part_rows.map(u64::from)),
        ]));
        let needs = [("keep", !self.keep.is_empty()), ("errors", self.errors)];
        for (key, _) in needs.iter().filter(|(_, is_used)| *is_used) {
            if self.rows != RowsRule::OneToOne {
                faults.push(
                    Fault::at(
                        "wrong-value",
                        key,
                        format!("`{key}` needs rows that go with those of the input"),
                    )
                    .with_help("set `rows: one-to-one`, or let the program write these columns"),
                );
            }
        }
        faults
    }
}

fn without_limits(canonical: &Value) -> Value {
    let mut config = canonical.clone();
    if let Value::Object(map) = &mut config {
        map.retain(|key, _| !LIMITS.contains(&key.as_str()));
    }
    config
}

struct ExecTask<'a> {
    config: &'a Exec,
    runner: Runner,
    view: &'a dyn StageView,
}

impl MapTask for ExecTask<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let schema = output::layout(self.config, part.rows.schema_ref());
        let (rows, failed) = if part.rows.num_rows() == 0 {
            (
                RecordBatch::new_empty(SchemaRef::clone(&schema)),
                Vec::new(),
            )
        } else {
            let given = match &self.config.columns {
                Some(columns) => project(part.rows, columns)?,
                None => part.rows.clone(),
            };
            let take =
                |written: &Written| output::take_rows(self.config, &schema, part.rows, written);
            let is_cancelled = || self.view.is_cancelled();
            self.runner
                .run(given, &is_cancelled, take)
                .map_err(|error| match error {
                    ProgramError::Interrupted => OperatorError::Interrupted,
                    ProgramError::Failed(message) => OperatorError::Data(message),
                })?
        };
        let slice = BTreeMap::from([("rows".to_owned(), rows)]);
        Ok(MapOutput {
            slices: vec![slice; part.slices.len()],
            failed,
            tokens: 0,
        })
    }
}

#[cfg(test)]
#[path = "exec/tests.rs"]
mod tests;
