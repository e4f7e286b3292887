//! The Parquet files of a source: finding, opening and checking them.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, LargeStringArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use engine_core::{Fault, OperatorError};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::tables::TEXT;

use super::Columns;
use super::images::is_image_type;

/// Rows that are decoded together at most; images make rows large.
const BATCH_ROWS: usize = 8192;
/// Bytes of them, about.
const BATCH_BYTES: u64 = 8 << 20;

/// The files behind a path: itself, or the `.parquet` files of the folder by name.
pub(super) fn files(root: &Path, path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let full = root.join(path);
    if !full.is_dir() {
        return Ok(vec![full]);
    }
    let unreadable = |error: std::io::Error| {
        Fault::at(
            "unreadable-file",
            "path",
            format!("cannot list {}: {error}", full.display()),
        )
    };
    let mut files = Vec::new();
    for entry in full.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Fault::at(
            "missing-file",
            "path",
            format!("the folder `{}` has no `.parquet` file", path.display()),
        ));
    }
    Ok(files)
}

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

    /// Whether there is a column of images.
    pub(super) fn has_images(&self, columns: &Columns) -> bool {
        columns.images_in(self.builder.schema()).is_some()
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

    /// Every column that is missing or of a wrong type.
    pub(super) fn faults(&self, columns: &Columns) -> Vec<Fault> {
        let schema = self.builder.schema();
        let texts = [
            ("id", columns.id.as_deref()),
            ("problem", Some(columns.problem.as_str())),
            ("answer", Some(columns.answer.as_str())),
            ("solution", columns.solution.as_deref()),
            ("category", columns.category.as_deref()),
        ];
        let mut faults = Vec::new();
        for (key, column) in texts {
            let Some(column) = column else { continue };
            match schema.field_with_name(column) {
                Err(_) => faults.push(self.missing(schema, key, column)),
                Ok(field) if is_text_like(field.data_type()) => {}
                Ok(field) => {
                    faults.push(self.mistyped(key, column, "text or numbers", field.data_type()));
                }
            }
        }
        match (columns.images.as_deref(), columns.images_in(schema)) {
            (Some(column), None) => faults.push(self.missing(schema, "images", column)),
            (_, Some(column)) => {
                let data_type = schema
                    .field_with_name(column)
                    .map_or(DataType::Null, |field| field.data_type().clone());
                if !is_image_type(&data_type) {
                    faults.push(self.mistyped(
                        "images",
                        column,
                        "images (bytes, or structs with `bytes`, one or a list)",
                        &data_type,
                    ));
                }
            }
            (None, None) => {}
        }
        faults
    }

    fn missing(&self, schema: &SchemaRef, key: &str, column: &str) -> Fault {
        let names: Vec<&str> = schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        let nearest = names.iter().copied().max_by(|a, b| {
            strsim::jaro_winkler(a, column).total_cmp(&strsim::jaro_winkler(b, column))
        });
        let near = nearest
            .filter(|name| strsim::jaro_winkler(name, column) > 0.75)
            .map(|name| format!("did you mean `{name}`? "));
        Fault {
            path: vec!["columns".to_owned(), key.to_owned()],
            message: format!("no column `{column}` in `{}`", self.name),
            help: Some(format!(
                "{}set `columns: {{ {key}: ... }}` to one of {}",
                near.unwrap_or_default(),
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

    /// The rows, with the named columns only.
    pub(super) fn batches(
        self,
        columns: &Columns,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, OperatorError>> + use<>, OperatorError>
    {
        let batch_rows = self.batch_rows();
        let name = self.name;
        let images = columns.images_in(self.builder.schema()).map(str::to_owned);
        let wanted: Vec<String> = [&columns.id, &columns.solution, &columns.category, &images]
            .into_iter()
            .flatten()
            .chain([&columns.problem, &columns.answer])
            .cloned()
            .collect();
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
