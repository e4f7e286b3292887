//! The tables that users query over the store: what stages produced, and the records of runs.
//!
//! Every table of the system is the union of all its datasets in the chosen runs, by column name, with the columns
//! `pipeline`, `run`, `stage` and `port` in front.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, LargeStringArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::prelude::{Expr, cast, col, lit};
use datafusion::scalar::ScalarValue;
use schemas::TableName;
use schemas::record::{RunEnded, RunStarted, StageRecord};
use schemas::tables::TEXT;

use crate::error::QueryError;
use crate::session::{Order, QuerySession};

/// Columns in front of those of a dataset.
const PLACE: [&str; 4] = ["pipeline", "run", "stage", "port"];

/// A dataset of the store and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDataset {
    /// Name of the pipeline.
    pub pipeline: String,
    /// The run.
    pub run: String,
    /// Name of the stage.
    pub stage: String,
    /// Output port.
    pub port: String,
    /// Which table it is.
    pub table: TableName,
    /// URLs of its Parquet parts, in order.
    pub urls: Vec<String>,
}

/// The records of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRun {
    /// Written at its start.
    pub started: RunStarted,
    /// Written at its end; absent while it runs or when it was killed.
    pub ended: Option<RunEnded>,
    /// Its stages that ended.
    pub stages: Vec<StageRecord>,
}

/// Datasets and records that can be queried.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Datasets of the chosen runs.
    pub datasets: Vec<StoredDataset>,
    /// Records of the runs, the latest last.
    pub runs: Vec<StoredRun>,
}

impl Catalog {
    /// Names of all tables that there are.
    #[must_use]
    pub fn tables(&self) -> Vec<&'static str> {
        let stored = TableName::ALL
            .into_iter()
            .filter(|table| self.datasets.iter().any(|dataset| dataset.table == *table));
        stored
            .map(TableName::as_str)
            .chain(["runs", "stages", "artifacts"])
            .collect()
    }

    /// Runs one SQL query. The schema goes with the rows, since there may be none.
    ///
    /// # Errors
    /// When the text is no query over the tables, or it fails on the data.
    pub fn query(&self, text: &str) -> Result<(SchemaRef, Vec<RecordBatch>), QueryError> {
        let session = QuerySession::new(Order::Any)?;
        let lower = text.to_ascii_lowercase();
        for table in TableName::ALL {
            // Opening a table reads a footer for each part, so only those that the text names are opened.
            if lower.contains(table.as_str()) {
                self.register(&session, table)?;
            }
        }
        for (name, batch) in [
            ("runs", self.run_rows()),
            ("stages", self.stage_rows()),
            ("artifacts", self.artifact_rows()),
        ] {
            session.register_batches(name, &batch.schema(), vec![batch])?;
        }
        let frame = session.sql(text).map_err(|error| self.with_tables(error))?;
        let schema = Arc::clone(frame.schema().inner());
        Ok((schema, session.collect(frame)?))
    }

    /// A wrong table name is the most frequent fault, and only the store knows which there are.
    fn with_tables(&self, error: QueryError) -> QueryError {
        match error {
            QueryError::Query(message) if message.starts_with("table ") => QueryError::Query(
                format!("{message}; tables are {}", self.tables().join(", ")),
            ),
            other => other,
        }
    }

    fn register(&self, session: &QuerySession, table: TableName) -> Result<(), QueryError> {
        let mut frames = Vec::new();
        for (index, dataset) in self
            .datasets
            .iter()
            .enumerate()
            .filter(|(_, dataset)| dataset.table == table)
        {
            let name = format!("dataset {index}");
            session.register_parquet(&name, dataset.urls.clone())?;
            frames.push((dataset, session.table(&name)?));
        }
        let columns = merged_columns(frames.iter().map(|(_, frame)| frame));
        let mut union: Option<DataFrame> = None;
        for (dataset, frame) in frames {
            let part = placed(dataset, frame, &columns)?;
            union = Some(match union {
                None => part,
                Some(before) => before
                    .union(part)
                    .map_err(|error| QueryError::run(&error))?,
            });
        }
        match union {
            Some(frame) => session.register_view(table.as_str(), frame),
            None => Ok(()),
        }
    }

    fn run_rows(&self) -> RecordBatch {
        let runs = &self.runs;
        let ended = |field: fn(&RunEnded) -> String| {
            text(runs.iter().map(move |run| run.ended.as_ref().map(field)))
        };
        rows(vec![
            (
                "pipeline",
                text(runs.iter().map(|run| Some(run.started.pipeline.clone()))),
            ),
            (
                "run",
                text(runs.iter().map(|run| Some(run.started.run.clone()))),
            ),
            (
                "status",
                text(runs.iter().map(|run| {
                    Some(
                        run.ended
                            .as_ref()
                            .map_or("unfinished", |ended| &ended.status)
                            .to_owned(),
                    )
                })),
            ),
            (
                "started",
                text(runs.iter().map(|run| Some(run.started.started.clone()))),
            ),
            ("ended", ended(|ended| ended.ended.clone())),
            (
                "seconds",
                Arc::new(Float64Array::from_iter(
                    runs.iter()
                        .map(|run| run.ended.as_ref().map(|ended| ended.seconds)),
                )),
            ),
            (
                "version",
                text(runs.iter().map(|run| Some(run.started.version.clone()))),
            ),
        ])
    }

    fn stage_rows(&self) -> RecordBatch {
        let stages: Vec<(&RunStarted, &StageRecord)> = self
            .runs
            .iter()
            .flat_map(|run| run.stages.iter().map(move |stage| (&run.started, stage)))
            .collect();
        let column = |field: fn(&StageRecord) -> Option<String>| {
            text(stages.iter().map(move |(_, stage)| field(stage)))
        };
        rows(vec![
            (
                "pipeline",
                text(stages.iter().map(|(run, _)| Some(run.pipeline.clone()))),
            ),
            (
                "run",
                text(stages.iter().map(|(run, _)| Some(run.run.clone()))),
            ),
            ("stage", column(|stage| Some(stage.stage.clone()))),
            ("kind", column(|stage| Some(stage.kind.clone()))),
            ("key", column(|stage| stage.key.clone())),
            (
                "status",
                column(|stage| Some(stage.status.as_str().to_owned())),
            ),
            ("started", column(|stage| Some(stage.started.clone()))),
            (
                "seconds",
                Arc::new(Float64Array::from_iter_values(
                    stages.iter().map(|(_, stage)| stage.seconds),
                )),
            ),
            (
                "rows",
                Arc::new(UInt64Array::from_iter(
                    stages.iter().map(|(_, stage)| stage.rows),
                )),
            ),
            (
                "warnings",
                column(|stage| (!stage.warnings.is_empty()).then(|| stage.warnings.join("\n"))),
            ),
            ("error", column(|stage| stage.error.clone())),
        ])
    }

    fn artifact_rows(&self) -> RecordBatch {
        let tables: BTreeMap<(&str, &str, &str), TableName> = self
            .datasets
            .iter()
            .map(|dataset| {
                (
                    (
                        dataset.run.as_str(),
                        dataset.stage.as_str(),
                        dataset.port.as_str(),
                    ),
                    dataset.table,
                )
            })
            .collect();
        let mut columns: [Vec<Option<String>>; 6] = Default::default();
        for run in &self.runs {
            for stage in &run.stages {
                for (port, digest) in &stage.outputs {
                    let table = tables.get(&(
                        run.started.run.as_str(),
                        stage.stage.as_str(),
                        port.as_str(),
                    ));
                    let values = [
                        &run.started.pipeline,
                        &run.started.run,
                        &stage.stage,
                        port,
                        digest,
                    ];
                    for (column, value) in columns.iter_mut().zip(values) {
                        column.push(Some(value.clone()));
                    }
                    columns[5].push(table.map(|table| table.as_str().to_owned()));
                }
            }
        }
        let names = ["pipeline", "run", "stage", "port", "digest", "content"];
        rows(
            names
                .into_iter()
                .zip(columns.into_iter().map(|values| text(values.into_iter())))
                .collect(),
        )
    }
}

/// All columns of the datasets, in the order of first appearance. Where two datasets disagree about a type, text wins.
fn merged_columns<'a>(frames: impl Iterator<Item = &'a DataFrame>) -> Vec<(String, DataType)> {
    let mut columns: Vec<(String, DataType)> = Vec::new();
    for frame in frames {
        for field in frame.schema().as_arrow().fields() {
            match columns.iter_mut().find(|(name, _)| name == field.name()) {
                None => columns.push((field.name().clone(), field.data_type().clone())),
                Some((_, known)) if known != field.data_type() => *known = TEXT,
                Some(_) => {}
            }
        }
    }
    columns
}

/// The dataset with its place in front, and exactly these columns.
fn placed(
    dataset: &StoredDataset,
    frame: DataFrame,
    columns: &[(String, DataType)],
) -> Result<DataFrame, QueryError> {
    let values = [
        &dataset.pipeline,
        &dataset.run,
        &dataset.stage,
        &dataset.port,
    ];
    let mut expressions: Vec<Expr> = Vec::new();
    for (name, value) in PLACE.into_iter().zip(values) {
        if columns.iter().all(|(column, _)| column != name) {
            expressions.push(lit(ScalarValue::LargeUtf8(Some(value.clone()))).alias(name));
        }
    }
    for (name, data_type) in columns {
        let quoted = datafusion::common::Column::new_unqualified(name.clone());
        let known = frame
            .schema()
            .as_arrow()
            .column_with_name(name)
            .map(|(_, field)| field.data_type().clone());
        expressions.push(match known {
            Some(known) if known == *data_type => col(quoted),
            Some(_) => cast(col(quoted), data_type.clone()).alias(name.clone()),
            None => cast(lit(ScalarValue::Null), data_type.clone()).alias(name.clone()),
        });
    }
    frame
        .select(expressions)
        .map_err(|error| QueryError::run(&error))
}

fn text(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(LargeStringArray::from_iter(values))
}

fn rows(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .expect("the columns of a record table have one length")
}
