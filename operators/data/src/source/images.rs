//! Images in the columns that people have: bytes, or structs of bytes and path, one or a list per row.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, LargeBinaryBuilder, LargeListArray, LargeListBuilder, new_null_array,
};
use arrow::datatypes::{DataType, Field};
use engine_core::OperatorError;
use image::ImageReader;

/// Whether a column of this type holds images.
pub(super) fn is_image_type(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) => is_picture_type(item.data_type()),
        other => is_picture_type(other),
    }
}

fn is_picture_type(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Struct(fields) => fields
            .find("bytes")
            .is_some_and(|(_, field)| is_picture_type(field.data_type())),
        _ => false,
    }
}

/// A list of the bytes of the images of a row.
pub(super) fn list_type() -> DataType {
    DataType::LargeList(Arc::new(Field::new("item", DataType::LargeBinary, true)))
}

/// The images of every row as lists of bytes. An image that has only a path has no bytes, which is found out later.
pub(super) fn as_lists(images: Option<&ArrayRef>, rows: usize) -> Result<ArrayRef, OperatorError> {
    let Some(images) = images else {
        return Ok(new_null_array(&list_type(), rows));
    };
    let mut lists = LargeListBuilder::new(LargeBinaryBuilder::new());
    for row in 0..images.len() {
        if images.is_valid(row) {
            match images.data_type() {
                DataType::List(_) => add_all(&images.as_list::<i32>().value(row), &mut lists)?,
                DataType::LargeList(_) => add_all(&images.as_list::<i64>().value(row), &mut lists)?,
                _ => lists.values().append_value(picture(images, row)?),
            }
        }
        lists.append(images.is_valid(row));
    }
    Ok(Arc::new(lists.finish()))
}

fn add_all(
    items: &ArrayRef,
    lists: &mut LargeListBuilder<LargeBinaryBuilder>,
) -> Result<(), OperatorError> {
    for index in 0..items.len() {
        lists.values().append_value(picture(items, index)?);
    }
    Ok(())
}

fn picture(array: &ArrayRef, index: usize) -> Result<&[u8], OperatorError> {
    Ok(match array.data_type() {
        _ if array.is_null(index) => &[],
        DataType::Struct(_) => match array.as_struct().column_by_name("bytes") {
            Some(bytes) => return picture(bytes, index),
            None => &[],
        },
        DataType::Binary => array.as_binary::<i32>().value(index),
        DataType::LargeBinary => array.as_binary::<i64>().value(index),
        DataType::BinaryView => array.as_binary_view().value(index),
        other => {
            return Err(OperatorError::Internal(format!(
                "a column of type {other} holds no images"
            )));
        }
    })
}

/// Decodes the images of a row; says what is wrong with the first that cannot be used.
pub(super) fn check(images: &LargeListArray, row: usize) -> Result<(), String> {
    if images.is_null(row) {
        return Ok(());
    }
    let items = images.value(row);
    for (index, bytes) in items.as_binary::<i64>().iter().enumerate() {
        let bytes = bytes.unwrap_or_default();
        if bytes.is_empty() {
            return Err(format!(
                "image {index} has no bytes; images must be in the file, not beside it"
            ));
        }
        ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| error.to_string())
            .and_then(|reader| reader.decode().map_err(|error| error.to_string()))
            .map_err(|error| format!("image {index} cannot be decoded: {error}"))?;
    }
    Ok(())
}
