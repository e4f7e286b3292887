//! Typed access to the columns of a record batch, and builders of list columns as the tables declare them.

use std::sync::Arc;

use arrow::array::{AsArray, LargeListArray, LargeListBuilder, LargeStringArray, PrimitiveBuilder};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field};
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;

/// Builds a list column whose items are never null.
pub(crate) type ListBuilder<T> = LargeListBuilder<PrimitiveBuilder<T>>;

/// A builder of [`schemas::tables::list`] columns.
pub(crate) fn list_builder<T: ArrowPrimitiveType>() -> ListBuilder<T> {
    let item = Field::new("item", T::DATA_TYPE, false);
    LargeListBuilder::new(PrimitiveBuilder::<T>::new()).with_field(Arc::new(item))
}

/// A text column; the planner has checked that it is there.
pub(crate) fn text_column<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a LargeStringArray, OperatorError> {
    optional_text(batch, name)
        .ok_or_else(|| OperatorError::Internal(format!("column `{name}` is missing or is no text")))
}

/// A text column, if the batch has it.
pub(crate) fn optional_text<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Option<&'a LargeStringArray> {
    batch.column_by_name(name)?.as_string_opt::<i64>()
}

/// A list column of `u32`.
pub(crate) fn ids_column<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a LargeListArray, OperatorError> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_list_opt::<i64>())
        .filter(|column| column.value_type() == DataType::UInt32)
        .ok_or_else(|| {
            OperatorError::Internal(format!(
                "column `{name}` is missing or is no list of token ids"
            ))
        })
}
