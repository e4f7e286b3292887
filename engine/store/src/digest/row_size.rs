//! How many bytes each row takes, counted from its values alone: batches and slices leave no trace.

use arrow::array::{Array, ArrayRef, AsArray as _, OffsetSizeTrait};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;

use crate::{Result, StoreError};

/// Bytes of an offset or a length.
const OFFSET: u64 = 8;

/// Bytes of each row in memory, about.
pub(crate) fn row_sizes(batch: &RecordBatch) -> Result<Vec<u64>> {
    let mut sizes = vec![0; batch.num_rows()];
    for column in batch.columns() {
        add_column(column, &mut sizes)?;
    }
    Ok(sizes)
}

fn add_column(array: &ArrayRef, sizes: &mut [u64]) -> Result<()> {
    match array.data_type() {
        DataType::Utf8 => add_lengths(array.as_string::<i32>().offsets(), sizes),
        DataType::LargeUtf8 => add_lengths(array.as_string::<i64>().offsets(), sizes),
        DataType::Binary => add_lengths(array.as_binary::<i32>().offsets(), sizes),
        DataType::LargeBinary => add_lengths(array.as_binary::<i64>().offsets(), sizes),
        DataType::Utf8View => {
            let lengths = array.as_string_view().lengths();
            let lengths = lengths.map(|length| OFFSET + u64::from(length));
            sizes
                .iter_mut()
                .zip(lengths)
                .for_each(|(size, length)| *size += length);
        }
        DataType::BinaryView => {
            let lengths = array.as_binary_view().lengths();
            let lengths = lengths.map(|length| OFFSET + u64::from(length));
            sizes
                .iter_mut()
                .zip(lengths)
                .for_each(|(size, length)| *size += length);
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            add_items(list.offsets(), list.values(), sizes)?;
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            add_items(list.offsets(), list.values(), sizes)?;
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
            add_items(map.offsets(), &entries, sizes)?;
        }
        DataType::FixedSizeList(_, _) => {
            let list = array.as_fixed_size_list();
            let width = i64::from(list.value_length());
            let offsets: Vec<i64> = (0..=list.len() as i64).map(|row| row * width).collect();
            add_items(&offsets, list.values(), sizes)?;
        }
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                add_column(column, sizes)?;
            }
        }
        DataType::Dictionary(_, value) => {
            let plain = cast(array, value).map_err(|error| {
                StoreError::Rows(format!("cannot read the values of a dictionary: {error}"))
            })?;
            add_column(&plain, sizes)?;
        }
        other => {
            let width = fixed(other);
            for size in sizes {
                *size += width;
            }
        }
    }
    Ok(())
}

fn fixed(data_type: &DataType) -> u64 {
    match data_type {
        DataType::FixedSizeBinary(width) => u64::from(width.unsigned_abs()),
        DataType::Boolean => 1,
        other => other.primitive_width().unwrap_or(0) as u64,
    }
}

fn add_lengths<O: OffsetSizeTrait>(offsets: &[O], sizes: &mut [u64]) {
    for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += OFFSET + (pair[1] - pair[0]).as_usize() as u64;
    }
}

fn add_items<O: OffsetSizeTrait>(
    offsets: &[O],
    values: &ArrayRef,
    sizes: &mut [u64],
) -> Result<()> {
    let (first, last) = (offsets[0].as_usize(), offsets[sizes.len()].as_usize());
    if matches!(values.data_type(), DataType::Boolean) || values.data_type().is_primitive() {
        let width = fixed(values.data_type());
        for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
            *size += OFFSET + (pair[1] - pair[0]).as_usize() as u64 * width;
        }
        return Ok(());
    }
    let mut items = vec![0; last - first];
    add_column(&values.slice(first, last - first), &mut items)?;
    for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
        let range = pair[0].as_usize() - first..pair[1].as_usize() - first;
        *size += OFFSET + items[range].iter().sum::<u64>();
    }
    Ok(())
}
