//! Parquet files that tests make.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// A table of nullable columns.
pub(crate) fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, DataType::clone(array.data_type()), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// A column of text.
pub(crate) fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

/// Writes a file as the Parquet library does when nothing is said.
pub(crate) fn write(path: &Path, rows: &RecordBatch) {
    write_with(path, rows, WriterProperties::default());
}

pub(crate) fn write_with(path: &Path, rows: &RecordBatch, properties: WriterProperties) {
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

/// A file of prompts without pictures: sums whose answers are their own, with ids and categories.
pub(crate) fn sums(rows: impl IntoIterator<Item = u32>) -> RecordBatch {
    let rows: Vec<u32> = rows.into_iter().collect();
    let column = |text: fn(u32) -> String| texts(rows.iter().map(|row| text(*row)));
    table(vec![
        ("id", column(|row| format!("sum-{row:06}"))),
        ("problem", column(|row| format!("What is {row} + 1?"))),
        ("answer", column(|row| (row + 1).to_string())),
        (
            "kind",
            column(|row| ["even", "odd"][(row % 2) as usize].to_owned()),
        ),
    ])
}
