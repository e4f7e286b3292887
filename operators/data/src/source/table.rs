//! The Parquet files of a source: opening and checking them, and reading columns that need no conversion.

use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, LargeStringArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use engine_core::{Fault, OperatorError};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::tables::TEXT;

use super::images::is_image_type;
use super::layout::{Layout, Reading};
use super::nearest;

/// Rows that are decoded together at most; images make rows large.
const BATCH_ROWS: usize = 8192;
/// Bytes of them, about.
const BATCH_BYTES: u64 = 8 << 20;

/// An open Parquet file.
pub(super) struct SourceFile {
    name: String,
    builder: ParquetRecordBatchReaderBuilder<File>,
}

impl SourceFile {
    /// Opens a file and reads its footer.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| {
            Fault::at(
                "unreadable-file",
                "path",
                format!("cannot open `{name}`: {error}"),
            )
        })?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| {
            Fault::at(
                "corrupt-parquet",
                "path",
                format!(
                    "`{name}` is no readable Parquet file: its footer is broken ({})",
                    plain(&error)
                ),
            )
            .with_help("copy or download the file again, or write it anew")
        })?;
        Ok(Self { name, builder })
    }

    /// The columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.builder.schema()
    }

    /// Whether the columns can be taken as they are: a question, an answer and images with their bytes, at the top.
    pub(super) fn is_plain(&self, reading: &Reading) -> bool {
        let schema = self.builder.schema();
        let is_flat = |path: &&String| schema.field_with_name(path).is_ok() || !path.contains('.');
        reading.layout == Layout::Problem
            && reading.problem.is_some()
            && texts(reading).all(|(_, path)| path.as_ref().is_none_or(|path| is_flat(&path)))
            && reading.images.iter().all(|path| is_flat(&path))
    }

    /// Rows that are decoded together.
    fn batch_rows(&self) -> usize {
        let groups = self.builder.metadata().row_groups().iter();
        let bytes: u64 = groups
            .map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0))
            .sum();
        let row_bytes = (bytes / self.rows().max(1)).max(1);
        usize::try_from(BATCH_BYTES / row_bytes)
            .unwrap_or(BATCH_ROWS)
            .clamp(16, BATCH_ROWS)
    }

    /// Rows in the file.
    pub(super) fn rows(&self) -> u64 {
        u64::try_from(self.builder.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Every column that is missing or of a wrong type. Images are required where the pipeline names them.
    pub(super) fn faults(&self, reading: &Reading, needs_images: bool) -> Vec<Fault> {
        let schema = self.builder.schema();
        let mut faults = Vec::new();
        for (key, column) in texts(reading) {
            let Some(column) = column else { continue };
            match schema.field_with_name(column) {
                Err(_) => faults.push(self.missing(schema, key, column)),
                Ok(field) if is_text_like(field.data_type()) => {}
                Ok(field) => {
                    faults.push(self.mistyped(key, column, "text or numbers", field.data_type()));
                }
            }
        }
        let Some(column) = &reading.images else {
            return faults;
        };
        match schema.field_with_name(column) {
            Err(_) if needs_images => faults.push(self.missing(schema, "images", column)),
            Ok(field) if !is_image_type(field.data_type()) => {
                let expected = "images (bytes, or structs with `bytes`, one or a list)";
                let mut fault = self.mistyped("images", column, expected, field.data_type());
                fault.help =
                    Some("where it has paths of files, name their folder with `media`".to_owned());
                faults.push(fault);
            }
            _ => {}
        }
        faults
    }

    fn missing(&self, schema: &SchemaRef, key: &str, column: &str) -> Fault {
        let names: Vec<&str> = schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        Fault {
            path: vec!["columns".to_owned(), key.to_owned()],
            message: format!("no column `{column}` in `{}`", self.name),
            help: Some(format!(
                "{}set `columns: {{ {key}: ... }}` to one of {}",
                nearest(&names, column),
                names.join(", ")
            )),
            code: "missing-column",
        }
    }

    fn mistyped(&self, key: &str, column: &str, expected: &str, got: &DataType) -> Fault {
        Fault {
            path: vec!["columns".to_owned(), key.to_owned()],
            message: format!(
                "column `{column}` in `{}` must hold {expected} and is {got}",
                self.name
            ),
            help: None,
            code: "type-mismatch",
        }
    }

    /// The rows, with the columns that count.
    pub(super) fn batches(
        self,
        reading: &Reading,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, OperatorError>> + use<>, OperatorError>
    {
        let wanted: Vec<String> = texts(reading)
            .filter_map(|(_, column)| column.clone())
            .chain(reading.images.clone())
            .collect();
        self.some_batches(&wanted)
    }

    /// The rows, with these columns at the top.
    pub(super) fn some_batches(
        self,
        wanted: &[String],
    ) -> Result<impl Iterator<Item = Result<RecordBatch, OperatorError>> + use<>, OperatorError>
    {
        let batch_rows = self.batch_rows();
        let name = self.name;
        let indices = self
            .builder
            .schema()
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| wanted.contains(field.name()))
            .map(|(index, _)| index);
        let mask =
            ProjectionMask::roots(self.builder.parquet_schema(), indices.collect::<Vec<_>>());
        let broken = move |error: &dyn std::fmt::Display| {
            OperatorError::Data(format!(
                "`{name}` cannot be read to its end: {error}; copy or download the file again"
            ))
        };
        let reader = self
            .builder
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .build()
            .map_err(|error| broken(&error))?;
        Ok(reader.map(move |batch| batch.map_err(|error| broken(&error))))
    }
}

/// The columns of text, by their keys.
fn texts(reading: &Reading) -> impl Iterator<Item = (&'static str, &Option<String>)> {
    [
        ("id", &reading.id),
        ("problem", &reading.problem),
        ("answer", &reading.answer),
        ("solution", &reading.solution),
        ("category", &reading.category),
        ("source", &reading.source),
    ]
    .into_iter()
}

/// A column as text.
pub(super) fn text(batch: &RecordBatch, name: &str) -> Result<LargeStringArray, OperatorError> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| OperatorError::Internal(format!("column `{name}` was not read")))?;
    Ok(cast(column, &TEXT)?.as_string::<i64>().clone())
}

fn is_text_like(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Boolean
        | DataType::Null => true,
        DataType::Dictionary(_, value) => is_text_like(value),
        other => other.is_numeric(),
    }
}

fn plain(error: &parquet::errors::ParquetError) -> String {
    let text = error.to_string();
    text.strip_prefix("Parquet error: ")
        .unwrap_or(&text)
        .to_owned()
}
