//! Rows to Parquet files outside the store, in bounded memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::{Result, StoreError};

/// Bytes that a row group holds in memory before it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Rows in a row group.
const ROW_GROUP_ROWS: usize = 131_072;

/// A Parquet file that is being written outside the store.
#[derive(Debug)]
pub struct ParquetFile {
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl ParquetFile {
    /// Makes the file, or empties it. The metadata of the schema is kept in it.
    ///
    /// # Errors
    /// When it cannot be made or the schema has a type that Parquet lacks.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let file = File::create(path).map_err(StoreError::file("write", path))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_created_by("metis-flow".to_owned())
            .build();
        let writer =
            ArrowWriter::try_new(file, schema, Some(properties)).map_err(failed_at(path))?;
        Ok(Self {
            path: path.to_owned(),
            writer,
        })
    }

    /// Appends rows of the file's schema.
    ///
    /// # Errors
    /// When they do not fit, or the disk is full.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(failed_at(&self.path))?;
        if self.writer.in_progress_size() > ROW_GROUP_BYTES {
            self.writer.flush().map_err(failed_at(&self.path))?;
        }
        Ok(())
    }

    /// Bytes of the file so far, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Ends the file and waits until it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<()> {
        let file = self.writer.into_inner().map_err(failed_at(&self.path))?;
        file.sync_all()
            .map_err(StoreError::file("write", &self.path))
    }
}

fn failed_at(path: &Path) -> impl Fn(ParquetError) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::file("write", &path)(std::io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::LargeStringArray;
    use arrow::datatypes::{DataType, Field, Schema};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[test]
    fn rows_and_the_metadata_of_their_schema_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        let metadata = [("maker".to_owned(), "us".to_owned())].into();
        let fields = vec![Field::new("text", DataType::LargeUtf8, false)];
        let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
        let column = Arc::new(LargeStringArray::from(vec!["a", "b"]));
        let batch = RecordBatch::try_new(SchemaRef::clone(&schema), vec![column]).unwrap();
        let mut file = ParquetFile::create(&path, SchemaRef::clone(&schema)).unwrap();
        file.write(&batch).unwrap();
        file.finish().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.schema().metadata()["maker"], "us");
        let read: Vec<_> = reader
            .build()
            .unwrap()
            .map(|batch| batch.unwrap())
            .collect();
        assert_eq!(read[0].columns(), batch.columns());
    }
}
