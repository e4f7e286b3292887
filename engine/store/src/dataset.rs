//! Datasets as Parquet parts: written in order, bounded in rows and bytes, and read back batch by batch.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use engine_core::{Dataset, Digest, PartRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use schemas::TableName;

use crate::{DatasetHasher, Result, Store, StoreError, layout};

/// Rows of a batch that is read: fewer when rows are large.
const READ_ROWS: usize = 8192;
/// Bytes of a batch that is read, about.
const READ_BYTES: u64 = 32 << 20;
/// Bytes that a row group holds in memory before it is encoded.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// When a part is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartLimits {
    /// Rows in a part.
    pub rows: u64,
    /// Bytes of a part's file.
    pub bytes: usize,
    /// Rows in a row group.
    pub row_group_rows: usize,
}

impl Default for PartLimits {
    fn default() -> Self {
        Self {
            rows: 1_000_000,
            bytes: 256 << 20,
            row_group_rows: 131_072,
        }
    }
}

/// Writes one dataset. Parts are stored as they fill; nobody sees them before a manifest names them.
#[derive(Debug)]
pub struct DatasetWriter {
    store: Store,
    table: TableName,
    schema: SchemaRef,
    limits: PartLimits,
    hasher: DatasetHasher,
    open: Option<OpenPart>,
    parts: Vec<PartRef>,
}

#[derive(Debug)]
struct OpenPart {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

impl DatasetWriter {
    /// A writer for rows of this schema.
    ///
    /// # Errors
    /// When the schema has a type that cannot be stored.
    pub fn try_new(
        store: &Store,
        table: TableName,
        schema: SchemaRef,
        limits: PartLimits,
    ) -> Result<Self> {
        let hasher = DatasetHasher::try_new(SchemaRef::clone(&schema))?;
        Ok(Self {
            store: store.clone(),
            table,
            schema,
            limits,
            hasher,
            open: None,
            parts: Vec::new(),
        })
    }

    /// Appends rows. Columns are matched by place; names must agree, and types up to nullability.
    ///
    /// # Errors
    /// When the rows do not fit the schema or the store fails.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = conform(batch, &self.schema, self.table)?;
        self.hasher.update(&batch)?;
        let mut start = 0;
        while start < batch.num_rows() {
            let open = match self.open.take() {
                Some(open) => open,
                None => self.begin()?,
            };
            let room = usize::try_from(self.limits.rows.saturating_sub(open.rows))
                .unwrap_or(usize::MAX)
                .max(1);
            let take = room.min(batch.num_rows() - start);
            self.append(open, &batch.slice(start, take))?;
            start += take;
        }
        Ok(())
    }

    /// Stores what is left and describes the dataset.
    ///
    /// # Errors
    /// When the store fails.
    pub fn finish(mut self) -> Result<Dataset> {
        if let Some(open) = self.open.take() {
            self.close(open)?;
        }
        if self.parts.is_empty() {
            let open = self.begin()?;
            self.close(open)?;
        }
        let rows = self.parts.iter().map(|part| part.rows).sum();
        Ok(Dataset {
            digest: self.hasher.finish(),
            table: self.table,
            rows,
            parts: self.parts,
        })
    }

    fn begin(&self) -> Result<OpenPart> {
        let properties = Some(properties(&self.limits));
        let writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(&self.schema), properties)
            .map_err(encode_error)?;
        Ok(OpenPart { writer, rows: 0 })
    }

    fn append(&mut self, mut open: OpenPart, batch: &RecordBatch) -> Result<()> {
        open.writer.write(batch).map_err(encode_error)?;
        open.rows += batch.num_rows() as u64;
        if open.writer.in_progress_size() > ROW_GROUP_BYTES {
            open.writer.flush().map_err(encode_error)?;
        }
        let bytes = open.writer.bytes_written() + open.writer.in_progress_size();
        if open.rows >= self.limits.rows || bytes >= self.limits.bytes {
            self.close(open)
        } else {
            self.open = Some(open);
            Ok(())
        }
    }

    fn close(&mut self, open: OpenPart) -> Result<()> {
        let bytes = open.writer.into_inner().map_err(encode_error)?;
        let path = layout::part(&Digest::of(&bytes));
        let size = bytes.len() as u64;
        self.store.create_content(&path, bytes)?;
        self.parts.push(PartRef {
            path,
            rows: open.rows,
            bytes: size,
        });
        Ok(())
    }
}

fn properties(limits: &PartLimits) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(limits.row_group_rows))
        .set_created_by("metis-flow".to_owned())
        .build()
}

/// The batch with exactly this schema.
fn conform(batch: &RecordBatch, schema: &SchemaRef, table: TableName) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let found: Vec<&str> = batch
        .schema_ref()
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let declared: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    if found != declared {
        return Err(StoreError::Rows(format!(
            "rows of table `{table}` have columns [{}] where [{}] were declared",
            found.join(", "),
            declared.join(", ")
        )));
    }
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(ArrayRef::clone(column))
            } else if column.data_type().equals_datatype(field.data_type()) {
                cast(column, field.data_type())
                    .map_err(|error| mismatch(table, field.name(), &error.to_string()))
            } else {
                let message = format!(
                    "it has type {} where {} was declared",
                    column.data_type(),
                    field.data_type()
                );
                Err(mismatch(table, field.name(), &message))
            }
        })
        .collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(SchemaRef::clone(schema), columns).map_err(|error| {
        StoreError::Rows(format!(
            "rows of table `{table}` do not fit their schema: {error}"
        ))
    })
}

fn mismatch(table: TableName, column: &str, message: &str) -> StoreError {
    StoreError::Rows(format!("column `{column}` of table `{table}`: {message}"))
}

fn encode_error(error: ParquetError) -> StoreError {
    StoreError::Rows(format!("cannot encode rows as Parquet: {error}"))
}

/// All rows of datasets, one dataset after the other, part after part.
pub struct DatasetReader {
    store: Store,
    parts: VecDeque<PartRef>,
    current: Option<(String, ParquetRecordBatchReader)>,
}

impl DatasetReader {
    /// A reader of these datasets. Parts are opened when their turn comes.
    #[must_use]
    pub fn new<'a>(store: &Store, datasets: impl IntoIterator<Item = &'a Dataset>) -> Self {
        let parts = datasets
            .into_iter()
            .flat_map(|dataset| dataset.parts.iter().cloned())
            .collect();
        Self {
            store: store.clone(),
            parts,
            current: None,
        }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some((path, reader)) = &mut self.current {
                match reader.next() {
                    Some(batch) => {
                        let path = path.clone();
                        return batch.map(Some).map_err(|error| StoreError::Corrupt {
                            path,
                            message: error.to_string(),
                        });
                    }
                    None => self.current = None,
                }
            }
            let Some(part) = self.parts.pop_front() else {
                return Ok(None);
            };
            self.current = Some((part.path.clone(), self.store.open_part(&part)?));
        }
    }
}

impl Iterator for DatasetReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.next_batch().transpose();
        if matches!(item, Some(Err(_))) {
            // After an error there is nothing sensible to go on with.
            self.parts.clear();
            self.current = None;
        }
        item
    }
}

impl Store {
    /// All rows of a dataset.
    #[must_use]
    pub fn read(&self, dataset: &Dataset) -> DatasetReader {
        DatasetReader::new(self, [dataset])
    }

    /// Schema of a dataset, as its first part has it.
    ///
    /// # Errors
    /// When the part is missing or damaged.
    pub fn schema(&self, dataset: &Dataset) -> Result<SchemaRef> {
        let part = dataset
            .parts
            .first()
            .ok_or_else(|| StoreError::Rows("a dataset has at least one part".to_owned()))?;
        Ok(arrow::record_batch::RecordBatchReader::schema(
            &self.open_part(part)?,
        ))
    }

    /// Writes all rows of a dataset to one Parquet file outside the store.
    ///
    /// # Errors
    /// When a part is missing or damaged, or the file cannot be written.
    pub fn export_parquet(&self, dataset: &Dataset, to: &Path) -> Result<()> {
        let failed = || StoreError::file("write", to);
        let file = File::create(to).map_err(failed())?;
        let mut writer = ArrowWriter::try_new(
            file,
            self.schema(dataset)?,
            Some(properties(&PartLimits::default())),
        )
        .map_err(encode_error)?;
        for batch in self.read(dataset) {
            writer.write(&batch?).map_err(encode_error)?;
        }
        writer
            .into_inner()
            .map_err(encode_error)?
            .sync_all()
            .map_err(failed())
    }

    fn open_part(&self, part: &PartRef) -> Result<ParquetRecordBatchReader> {
        let corrupt = |error: ParquetError| StoreError::Corrupt {
            path: part.path.clone(),
            message: error.to_string(),
        };
        match self.local_path(&part.path) {
            Some(path) => match File::open(&path) {
                Ok(file) => build_reader(file).map_err(corrupt),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(StoreError::NotFound {
                        path: part.path.clone(),
                    })
                }
                Err(error) => Err(StoreError::file("read", path)(error)),
            },
            None => build_reader(self.get(&part.path)?).map_err(corrupt),
        }
    }
}

fn build_reader(
    source: impl ChunkReader + 'static,
) -> std::result::Result<ParquetRecordBatchReader, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(source)?;
    let (rows, bytes) =
        builder
            .metadata()
            .row_groups()
            .iter()
            .fold((0_u64, 0_u64), |(rows, bytes), group| {
                (
                    rows + group.num_rows().unsigned_abs(),
                    bytes + group.total_byte_size().unsigned_abs(),
                )
            });
    let row_bytes = (bytes / rows.max(1)).max(1);
    let batch_rows = usize::try_from(READ_BYTES / row_bytes)
        .unwrap_or(READ_ROWS)
        .clamp(16, READ_ROWS);
    builder.with_batch_size(batch_rows).build()
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
