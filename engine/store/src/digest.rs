//! The digest of a dataset: over its schema and its logical rows, whatever the batches, parts, row groups or compression.
//!
//! Each leaf of the schema is a set of byte streams, each hashed on its own as rows come in:
//!
//! - *validity*, for nullable fields: one byte for each row, 1 for a value and 0 for null;
//! - *lengths*, for text, bytes and lists: eight bytes (little endian) for each value that is not null;
//! - *values*: the bytes of each value that is not null; booleans as one byte, numbers as they lie in memory (little
//!   endian, floats by their bits).
//!
//! A stream is a plain concatenation over the rows, so that where one batch ends and the next begins leaves no trace.
//! What lies under a null is skipped. The digest is blake3 over the schema (names, types, nullability; no metadata), the
//! number of rows and the digests of all streams, depth first in the order of the columns.

use arrow::array::{Array, ArrayRef, AsArray as _, BooleanArray, OffsetSizeTrait};
use arrow::compute::{filter, is_not_null};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::Digest;

use crate::{Result, StoreError};

/// Computes the digest of a dataset batch by batch.
#[derive(Debug)]
pub struct DatasetHasher {
    schema: SchemaRef,
    rows: u64,
    columns: Vec<FieldHasher>,
}

impl DatasetHasher {
    /// A hasher for rows of this schema.
    ///
    /// # Errors
    /// When the schema has a type that cannot be stored.
    pub fn try_new(schema: SchemaRef) -> Result<Self> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| FieldHasher::try_new(field))
            .collect::<Result<_>>()?;
        Ok(Self {
            schema,
            rows: 0,
            columns,
        })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// When Arrow cannot take the batch apart.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        for (hasher, column) in self.columns.iter_mut().zip(batch.columns()) {
            hasher.update(column)?;
        }
        Ok(())
    }

    /// The digest of all rows so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"metis-flow dataset 1\n");
        let schema = describe_schema(&self.schema);
        hasher.update(&(schema.len() as u64).to_le_bytes());
        hasher.update(schema.as_bytes());
        hasher.update(&self.rows.to_le_bytes());
        for column in &self.columns {
            column.finish(&mut hasher);
        }
        hasher.finalize().into()
    }
}

/// The streams of one field.
#[derive(Debug)]
struct FieldHasher {
    data_type: DataType,
    validity: Option<blake3::Hasher>,
    lengths: Option<blake3::Hasher>,
    values: Option<blake3::Hasher>,
    children: Vec<FieldHasher>,
}

impl FieldHasher {
    fn try_new(field: &Field) -> Result<Self> {
        let fresh = || Some(blake3::Hasher::new());
        let mut hasher = Self {
            data_type: field.data_type().clone(),
            validity: field.is_nullable().then(blake3::Hasher::new),
            lengths: None,
            values: None,
            children: Vec::new(),
        };
        match field.data_type() {
            DataType::Null => {}
            DataType::Boolean | DataType::FixedSizeBinary(_) => hasher.values = fresh(),
            data_type if data_type.primitive_width().is_some() => hasher.values = fresh(),
            DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView => {
                hasher.lengths = fresh();
                hasher.values = fresh();
            }
            DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
                hasher.lengths = fresh();
                hasher.children.push(Self::try_new(item)?);
            }
            DataType::FixedSizeList(item, _) => hasher.children.push(Self::try_new(item)?),
            DataType::Struct(fields) => {
                hasher.children = fields
                    .iter()
                    .map(|child| Self::try_new(child))
                    .collect::<Result<_>>()?;
            }
            other => {
                return Err(StoreError::Rows(format!(
                    "column `{}` has type {other}, which cannot be stored; cast it to a plain type",
                    field.name()
                )));
            }
        }
        Ok(hasher)
    }

    fn update(&mut self, array: &ArrayRef) -> Result<()> {
        if let Some(validity) = &mut self.validity {
            let bytes: Vec<u8> = (0..array.len())
                .map(|row| u8::from(array.is_valid(row)))
                .collect();
            validity.update(&bytes);
        }
        let present;
        let array = if array.null_count() == 0 {
            array
        } else {
            present = without_nulls(array)?;
            &present
        };
        match &self.data_type {
            DataType::Null => Ok(()),
            DataType::Utf8 => {
                self.strings(array.as_string::<i32>().iter().flatten().map(str::as_bytes))
            }
            DataType::LargeUtf8 => {
                self.strings(array.as_string::<i64>().iter().flatten().map(str::as_bytes))
            }
            DataType::Utf8View => {
                self.strings(array.as_string_view().iter().flatten().map(str::as_bytes))
            }
            DataType::Binary => self.strings(array.as_binary::<i32>().iter().flatten()),
            DataType::LargeBinary => self.strings(array.as_binary::<i64>().iter().flatten()),
            DataType::BinaryView => self.strings(array.as_binary_view().iter().flatten()),
            DataType::List(_) => self.list::<i32>(array),
            DataType::LargeList(_) => self.list::<i64>(array),
            DataType::Map(_, _) => {
                let map = array.as_map();
                let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
                self.items(map.offsets(), &entries)
            }
            DataType::FixedSizeList(_, _) => {
                let list = array.as_fixed_size_list();
                let width = usize::try_from(list.value_length()).unwrap_or(0);
                let values = list
                    .values()
                    .slice(list.offset() * width, list.len() * width);
                self.children[0].update(&values)
            }
            DataType::Struct(_) => {
                let columns = array.as_struct().columns();
                self.children
                    .iter_mut()
                    .zip(columns)
                    .try_for_each(|(child, column)| child.update(column))
            }
            DataType::Boolean => {
                let bytes: Vec<u8> = array.as_boolean().values().iter().map(u8::from).collect();
                self.plain(&bytes)
            }
            data_type => {
                let width = match data_type {
                    DataType::FixedSizeBinary(width) => usize::try_from(*width).unwrap_or(0),
                    other => other.primitive_width().unwrap_or(0),
                };
                let data = array.to_data();
                let start = data.offset() * width;
                self.plain(&data.buffers()[0].as_slice()[start..start + data.len() * width])
            }
        }
    }

    fn plain(&mut self, bytes: &[u8]) -> Result<()> {
        self.values
            .as_mut()
            .expect("fixed-width fields have a stream of values")
            .update(bytes);
        Ok(())
    }

    fn strings<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let mut lengths = Vec::new();
        let stream = self.values.as_mut().expect("text has a stream of values");
        for value in values {
            lengths.extend_from_slice(&(value.len() as u64).to_le_bytes());
            stream.update(value);
        }
        self.lengths
            .as_mut()
            .expect("text has a stream of lengths")
            .update(&lengths);
        Ok(())
    }

    fn list<O: OffsetSizeTrait>(&mut self, array: &ArrayRef) -> Result<()> {
        let list = array.as_list::<O>();
        self.items(list.offsets(), list.values())
    }

    fn items<O: OffsetSizeTrait>(&mut self, offsets: &[O], values: &ArrayRef) -> Result<()> {
        let lengths: Vec<u8> = offsets
            .windows(2)
            .flat_map(|pair| ((pair[1] - pair[0]).as_usize() as u64).to_le_bytes())
            .collect();
        self.lengths
            .as_mut()
            .expect("lists have a stream of lengths")
            .update(&lengths);
        let (first, last) = (offsets[0].as_usize(), offsets[offsets.len() - 1].as_usize());
        self.children[0].update(&values.slice(first, last - first))
    }

    fn finish(&self, hasher: &mut blake3::Hasher) {
        for stream in [&self.validity, &self.lengths, &self.values]
            .into_iter()
            .flatten()
        {
            hasher.update(stream.finalize().as_bytes());
        }
        for child in &self.children {
            child.finish(hasher);
        }
    }
}

/// The values that are not null; lists come out compact, so that nothing hides between their offsets.
fn without_nulls(array: &ArrayRef) -> Result<ArrayRef> {
    let mask: BooleanArray = is_not_null(array).map_err(arrow_error)?;
    filter(array, &mask).map_err(arrow_error)
}

fn arrow_error(error: arrow::error::ArrowError) -> StoreError {
    StoreError::Rows(format!("cannot read the rows of a batch: {error}"))
}

/// Names, types and nullability in a notation of our own, which no other library's release can change.
fn describe_schema(schema: &Schema) -> String {
    schema
        .fields()
        .iter()
        .map(|field| describe_field(field))
        .collect::<Vec<_>>()
        .join(",")
}

fn describe_field(field: &Field) -> String {
    let mark = if field.is_nullable() { "?" } else { "" };
    format!(
        "{:?}:{}{mark}",
        field.name(),
        describe_type(field.data_type())
    )
}

fn describe_type(data_type: &DataType) -> String {
    match data_type {
        DataType::List(item) => format!("List<{}>", describe_field(item)),
        DataType::LargeList(item) => format!("LargeList<{}>", describe_field(item)),
        DataType::FixedSizeList(item, width) => {
            format!("FixedSizeList<{},{width}>", describe_field(item))
        }
        DataType::Map(item, _) => format!("Map<{}>", describe_field(item)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| describe_field(field)).collect();
            format!("Struct<{}>", fields.join(","))
        }
        plain => format!("{plain:?}"),
    }
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
