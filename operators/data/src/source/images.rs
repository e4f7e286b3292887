//! Images in the columns that people have: bytes, or structs of bytes and path, one or a list per row.

use std::io::Cursor;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use image::ImageReader;
use rayon::prelude::*;

/// The bytes of one image; empty when the row has only a path.
pub(super) struct Picture {
    pub(super) bytes: Vec<u8>,
}

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

/// The images of every row.
pub(super) fn pictures(array: &ArrayRef) -> Vec<Vec<Picture>> {
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                return Vec::new();
            }
            match array.data_type() {
                DataType::List(_) => list(&array.as_list::<i32>().value(row)),
                DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
                _ => vec![picture(array, row)],
            }
        })
        .collect()
}

fn list(items: &ArrayRef) -> Vec<Picture> {
    (0..items.len())
        .map(|index| picture(items, index))
        .collect()
}

fn picture(array: &ArrayRef, index: usize) -> Picture {
    let bytes = match array.data_type() {
        _ if array.is_null(index) => Vec::new(),
        DataType::Struct(_) => match array.as_struct().column_by_name("bytes") {
            Some(bytes) => return picture(bytes, index),
            None => Vec::new(),
        },
        DataType::Binary => array.as_binary::<i32>().value(index).to_vec(),
        DataType::LargeBinary => array.as_binary::<i64>().value(index).to_vec(),
        DataType::BinaryView => array.as_binary_view().value(index).to_vec(),
        _ => Vec::new(),
    };
    Picture { bytes }
}

/// Decodes every image. The first that fails is named by its row in the batch and what is wrong with it.
pub(super) fn check(rows: &[Vec<Picture>]) -> Result<(), (usize, String)> {
    let faults: Vec<Option<String>> = rows.par_iter().map(|pictures| fault(pictures)).collect();
    match faults
        .into_iter()
        .enumerate()
        .find_map(|(row, fault)| fault.map(|fault| (row, fault)))
    {
        Some(first) => Err(first),
        None => Ok(()),
    }
}

fn fault(pictures: &[Picture]) -> Option<String> {
    pictures.iter().enumerate().find_map(|(index, picture)| {
        if picture.bytes.is_empty() {
            return Some(format!(
                "image {index} has no bytes; images must be in the file, not beside it"
            ));
        }
        let decoded = ImageReader::new(Cursor::new(&picture.bytes))
            .with_guessed_format()
            .map(ImageReader::decode);
        match decoded {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("image {index} cannot be decoded: {error}")),
            Err(error) => Some(format!("image {index} cannot be decoded: {error}")),
        }
    })
}
