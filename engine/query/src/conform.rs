//! Between DataFusion's types and the store's: text and lists with 64-bit offsets, no views, no dictionaries.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;

/// The schema as it is stored: every text, binary and list type with 64-bit offsets, metadata dropped.
#[must_use]
pub fn storage_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|field| storage_field(field))
        .collect();
    Arc::new(Schema::new(fields))
}

fn storage_field(field: &Field) -> FieldRef {
    Arc::new(Field::new(
        field.name(),
        storage_type(field.data_type()),
        field.is_nullable(),
    ))
}

fn storage_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 | DataType::Utf8View => DataType::LargeUtf8,
        DataType::Binary | DataType::BinaryView => DataType::LargeBinary,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => DataType::LargeList(storage_field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(storage_field(item), *size),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| storage_field(field)).collect())
        }
        DataType::Dictionary(_, value) => storage_type(value),
        DataType::Null => DataType::LargeUtf8,
        other => other.clone(),
    }
}

/// The columns of `schema`, by name and cast to its types; other columns are dropped.
///
/// # Errors
/// When a column is missing, cannot be cast, or has nulls where the schema has none.
pub fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = batch.column_by_name(field.name()).ok_or_else(|| {
            ArrowError::SchemaError(format!(
                "column `{}` is missing in the result of a query",
                field.name()
            ))
        })?;
        let is_same = column.data_type() == field.data_type();
        columns.push(if is_same {
            Arc::clone(column)
        } else {
            cast(column, field.data_type())?
        });
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}
