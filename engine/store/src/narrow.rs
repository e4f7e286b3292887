//! Some columns of a part on the local disk, in the form that takes the least work.

use std::fs::File;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use url::Url;

use crate::{Result, StoreError};

/// Rows of a batch; those of a full row group are a multiple.
const BATCH_ROWS: usize = 16_384;

/// Rows of a part with some of its columns.
pub struct NarrowRows {
    path: String,
    reader: ParquetRecordBatchReader,
    /// Where each column stands in what the reader gives.
    places: Vec<usize>,
}

impl NarrowRows {
    /// Opens a part by its URL, with these columns in this order. Texts that the part keeps as dictionaries come as such, with keys of
    /// 32 bits. None for a part that is not on the local disk or lacks a column.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn open(url: &str, columns: &[&str]) -> Result<Option<Self>> {
        let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "file");
        let Some(path) = parsed.and_then(|url| url.to_file_path().ok()) else {
            return Ok(None);
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound {
                    path: url.to_owned(),
                });
            }
            Err(error) => return Err(StoreError::file("read", path)(error)),
        };
        Self::of_file(file, url, columns).map_err(|error| corrupt(url, &error.to_string()))
    }

    fn of_file(
        file: File,
        url: &str,
        columns: &[&str],
    ) -> std::result::Result<Option<Self>, ParquetError> {
        let plain = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
        let metadata = Arc::clone(plain.metadata());
        let schema = with_dictionaries(plain.schema(), &metadata, columns);
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&schema));
        let metadata = ArrowReaderMetadata::try_new(metadata, options)?;
        let found = columns.iter().map(|column| schema.index_of(column).ok());
        let Some(roots) = found.collect::<Option<Vec<usize>>>() else {
            return Ok(None);
        };
        let mut sorted = roots.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let mask = ProjectionMask::roots(builder.parquet_schema(), sorted.iter().copied());
        let reader = builder
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()?;
        let place = |root: &usize| sorted.partition_point(|other| other < root);
        Ok(Some(Self {
            path: url.to_owned(),
            reader,
            places: roots.iter().map(place).collect(),
        }))
    }
}

impl Iterator for NarrowRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        let batch = batch.and_then(|batch| batch.project(&self.places));
        Some(batch.map_err(|error| corrupt(&self.path, &error.to_string())))
    }
}

fn corrupt(url: &str, message: &str) -> StoreError {
    StoreError::Corrupt {
        path: url.to_owned(),
        message: message.to_owned(),
    }
}

/// The schema in which texts of these columns are dictionaries, where every page of them is one.
fn with_dictionaries(
    schema: &SchemaRef,
    metadata: &ParquetMetaData,
    columns: &[&str],
) -> SchemaRef {
    let leaves = metadata.file_metadata().schema_descr();
    let is_dictionary = |root: usize| {
        let leaf = (0..leaves.num_columns()).find(|leaf| leaves.get_column_root_idx(*leaf) == root);
        leaf.is_some_and(|leaf| {
            metadata.row_groups().iter().all(|group| {
                let encodings = group.column(leaf).page_encoding_stats_mask();
                encodings.is_some_and(|pages| {
                    pages.is_only(Encoding::RLE_DICTIONARY)
                        || pages.is_only(Encoding::PLAIN_DICTIONARY)
                })
            })
        })
    };
    let fields = schema.fields().iter().enumerate().map(|(root, field)| {
        let is_wanted = columns.contains(&field.name().as_str());
        if is_wanted && field.data_type() == &DataType::LargeUtf8 && is_dictionary(root) {
            let (key, value) = (DataType::Int32, DataType::LargeUtf8);
            let data_type = DataType::Dictionary(Box::new(key), Box::new(value));
            let field = Field::clone(field).with_data_type(data_type);
            FieldRef::new(field)
        } else {
            FieldRef::clone(field)
        }
    });
    Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, LargeStringArray, UInt32Array};
    use arrow::compute::cast;
    use schemas::TableName;

    use super::*;
    use crate::Store;

    #[test]
    fn columns_come_in_the_order_asked_for_and_texts_as_the_dictionaries_that_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
        let fields = [
            ("id", DataType::LargeUtf8),
            ("sample", DataType::UInt32),
            ("text", DataType::LargeUtf8),
        ];
        let fields = fields.map(|(name, data_type)| Field::new(name, data_type, name == "id"));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let rows = 300_000;
        let ids = (0..rows).map(|row| (row % 7 > 0).then(|| format!("p{}", row / 9)));
        let texts = (0..rows).map(|row| format!("a text of its own: {row}"));
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(LargeStringArray::from_iter(ids)),
            Arc::new(UInt32Array::from_iter_values(0..rows)),
            Arc::new(LargeStringArray::from_iter_values(texts)),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
        let part = store.write_part(TableName::Rows, &schema, std::slice::from_ref(&batch));
        let url = store.object_url(&part.unwrap().path);
        let names = ["text", "id"];
        let read: Vec<RecordBatch> = NarrowRows::open(&url, &names)
            .unwrap()
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut start = 0;
        for found in &read {
            assert!(found.column(1).as_any_dictionary_opt().is_some());
            assert_eq!(found.column(0).data_type(), &DataType::LargeUtf8);
            let expected = batch.slice(start, found.num_rows());
            assert_eq!(found.column(0), expected.column(2));
            let ids = cast(found.column(1), &DataType::LargeUtf8).unwrap();
            assert_eq!(
                ids.as_string::<i64>(),
                expected.column(0).as_string::<i64>()
            );
            start += found.num_rows();
        }
        assert_eq!(start, rows as usize);
        assert!(NarrowRows::open(&url, &["other"]).unwrap().is_none());
        assert!(NarrowRows::open("memory://x/y", &names).unwrap().is_none());
        let gone = format!("{url}.gone");
        assert!(matches!(
            NarrowRows::open(&gone, &names),
            Err(StoreError::NotFound { .. })
        ));
    }
}
