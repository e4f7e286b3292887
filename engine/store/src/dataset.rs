//! Datasets as Parquet parts: written in order, bounded in rows and bytes, and read back batch by batch.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::{Dataset, Digest, PartRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use schemas::TableName;

use crate::encode::{self, PartEncoder};
use crate::{Result, RowsHasher, Store, StoreError, dataset_digest, layout};

/// Rows of a batch that is read: fewer when rows are large.
const READ_ROWS: usize = 8192;
/// Bytes of a batch that is read, about.
const READ_BYTES: u64 = 32 << 20;
/// Bytes of rows that are encoded in one go: between two pieces the writer looks whether a row group or a part is full.
const PIECE_BYTES: usize = 8 << 20;

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
            bytes: 64 << 20,
            row_group_rows: 131_072,
        }
    }
}

/// Writes one dataset, on several threads. Parts are stored as they fill; nobody sees them before a manifest names them. No more
/// than one part is held in memory.
#[derive(Debug)]
pub struct DatasetWriter {
    store: Store,
    table: TableName,
    schema: SchemaRef,
    limits: PartLimits,
    open: Option<OpenPart>,
    parts: Vec<PartRef>,
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
        Self::resume(store, table, schema, limits, Vec::new())
    }

    /// A writer that goes on after parts that were written before, as [`Self::flush`] gave them.
    ///
    /// # Errors
    /// When the schema has a type that cannot be stored.
    pub fn resume(
        store: &Store,
        table: TableName,
        schema: SchemaRef,
        limits: PartLimits,
        parts: Vec<PartRef>,
    ) -> Result<Self> {
        RowsHasher::try_new(&schema)?;
        Ok(Self {
            store: store.clone(),
            table,
            schema,
            limits,
            open: None,
            parts,
        })
    }

    /// Appends rows. Columns are matched by place; names must agree, and types up to nullability and dictionaries.
    ///
    /// # Errors
    /// When the rows do not fit the schema or the store fails.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = conform(batch, &self.schema, self.table)?;
        let piece = piece_rows(&batch);
        let mut start = 0;
        while start < batch.num_rows() {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => OpenPart::begin(&self.schema, &self.limits, true)?,
            };
            let room = usize::try_from(self.limits.rows.saturating_sub(open.rows()))
                .unwrap_or(usize::MAX)
                .max(1);
            let take = room.min(piece).min(batch.num_rows() - start);
            open.append(&batch.slice(start, take))?;
            start += take;
            if open.rows() >= self.limits.rows || open.bytes() >= self.limits.bytes {
                self.parts.push(open.close(&self.store)?);
            } else {
                self.open = Some(open);
            }
        }
        Ok(())
    }

    /// Stores what is in memory and returns all parts so far; the next rows begin a new part.
    ///
    /// # Errors
    /// When the store fails.
    pub fn flush(&mut self) -> Result<Vec<PartRef>> {
        if let Some(open) = self.open.take() {
            self.parts.push(open.close(&self.store)?);
        }
        Ok(self.parts.clone())
    }

    /// Stores what is left and describes the dataset.
    ///
    /// # Errors
    /// When the store fails.
    pub fn finish(mut self) -> Result<Dataset> {
        let parts = self.flush()?;
        self.store.dataset(self.table, &self.schema, parts)
    }
}

/// A part that is being written.
#[derive(Debug)]
struct OpenPart {
    encoder: Exclusive<PartEncoder>,
}

/// Something that is only reached through a unique reference, so that sharing the owner between threads is safe: the Parquet
/// writer cannot say so itself.
struct Exclusive<T>(Mutex<T>);

impl<T> fmt::Debug for Exclusive<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Exclusive")
    }
}

impl<T> Exclusive<T> {
    fn get(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPart {
    fn begin(schema: &SchemaRef, limits: &PartLimits, has_threads: bool) -> Result<Self> {
        let encoder = PartEncoder::try_new(schema, properties(limits), limits.bytes, has_threads)?;
        Ok(Self {
            encoder: Exclusive(Mutex::new(encoder)),
        })
    }

    fn rows(&mut self) -> u64 {
        self.encoder.get().rows()
    }

    fn bytes(&mut self) -> usize {
        self.encoder.get().bytes()
    }

    fn append(&mut self, piece: &RecordBatch) -> Result<()> {
        let bytes = memory_bytes(piece);
        self.encoder.get().append(piece, bytes)
    }

    fn close(self, store: &Store) -> Result<PartRef> {
        let (bytes, hasher) = self.encoder.into_inner().close()?;
        let path = layout::part(&Digest::of(&bytes));
        let size = bytes.len() as u64;
        store.create_content(&path, bytes)?;
        Ok(PartRef {
            path,
            rows: hasher.rows(),
            bytes: size,
            digest: hasher.digest(),
        })
    }
}

/// How many rows of a batch are encoded in one go.
fn piece_rows(batch: &RecordBatch) -> usize {
    let pieces = memory_bytes(batch).div_ceil(PIECE_BYTES).max(1);
    batch.num_rows().div_ceil(pieces).max(1)
}

fn memory_bytes(batch: &RecordBatch) -> usize {
    let columns = batch.columns().iter();
    columns
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or(0))
        .sum()
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
            if column.data_type() == field.data_type()
                || is_text_dictionary(column.data_type(), field.data_type())
            {
                Ok(ArrayRef::clone(column))
            } else if plain_type(column.data_type()).equals_datatype(field.data_type()) {
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
    let fields = columns.iter().zip(schema.fields());
    let fields = fields.map(|(column, field)| {
        let data_type = column.data_type().clone();
        FieldRef::new(field.as_ref().clone().with_data_type(data_type))
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    RecordBatch::try_new(schema, columns).map_err(|error| {
        StoreError::Rows(format!(
            "rows of table `{table}` do not fit their schema: {error}"
        ))
    })
}

/// Whether texts come in the form in which the encoder takes them best: they are the same rows.
fn is_text_dictionary(data_type: &DataType, declared: &DataType) -> bool {
    let keys = |key: &DataType| matches!(key, DataType::Int32);
    matches!(data_type, DataType::Dictionary(key, value) if keys(key) && **value == DataType::LargeUtf8)
        && *declared == DataType::LargeUtf8
}

/// The type of a dictionary's values; any other type as it is.
fn plain_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, value) => value,
        plain => plain,
    }
}

fn mismatch(table: TableName, column: &str, message: &str) -> StoreError {
    StoreError::Rows(format!("column `{column}` of table `{table}`: {message}"))
}

/// All rows of datasets, one dataset after the other, part after part.
pub struct DatasetReader {
    store: Store,
    parts: VecDeque<PartRef>,
    /// Columns that are read; all when absent.
    columns: Option<Vec<String>>,
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
            columns: None,
            current: None,
        }
    }

    /// Reads these columns alone, in the order in which the parts have them.
    #[must_use]
    pub fn with_columns(mut self, columns: &[String]) -> Self {
        self.columns = Some(columns.to_vec());
        self
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
            let reader = self.store.open_part(&part, self.columns.as_deref())?;
            self.current = Some((part.path.clone(), reader));
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
    /// Writes one part from batches, whatever its size: what a map stage commits by itself.
    ///
    /// # Errors
    /// When the rows do not fit the schema or the store fails.
    pub fn write_part(
        &self,
        table: TableName,
        schema: &SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<PartRef> {
        // Parts of map stages are made side by side.
        let mut open = OpenPart::begin(schema, &PartLimits::default(), false)?;
        for batch in batches {
            let batch = conform(batch, schema, table)?;
            let piece = piece_rows(&batch);
            for start in (0..batch.num_rows()).step_by(piece) {
                open.append(&batch.slice(start, piece.min(batch.num_rows() - start)))?;
            }
        }
        open.close(self)
    }

    /// The dataset that consists of these parts, in their order. Nothing is read. Parts without rows are left out, but one
    /// stays (and is made, if there is none) when no part has rows.
    ///
    /// # Errors
    /// When a part's digest is malformed or the store fails.
    pub fn dataset(
        &self,
        table: TableName,
        schema: &SchemaRef,
        parts: Vec<PartRef>,
    ) -> Result<Dataset> {
        let mut empty = None;
        let mut kept = Vec::with_capacity(parts.len());
        for part in parts {
            if part.rows > 0 {
                kept.push(part);
            } else {
                empty = Some(part);
            }
        }
        if kept.is_empty() {
            kept.push(match empty {
                Some(part) => part,
                None => self.write_part(table, schema, &[])?,
            });
        }
        Ok(Dataset {
            digest: dataset_digest(schema, kept.iter().map(|part| &part.digest))?,
            table,
            rows: kept.iter().map(|part| part.rows).sum(),
            parts: kept,
        })
    }

    /// All rows of some parts.
    #[must_use]
    pub fn read_parts(&self, parts: Vec<PartRef>) -> DatasetReader {
        DatasetReader {
            store: self.clone(),
            parts: parts.into(),
            columns: None,
            current: None,
        }
    }

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
            &self.open_part(part, None)?,
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
        .map_err(encode::failed)?;
        for batch in self.read(dataset) {
            writer.write(&batch?).map_err(encode::failed)?;
        }
        writer
            .into_inner()
            .map_err(encode::failed)?
            .sync_all()
            .map_err(failed())
    }

    fn open_part(
        &self,
        part: &PartRef,
        columns: Option<&[String]>,
    ) -> Result<ParquetRecordBatchReader> {
        let corrupt = |error: ParquetError| StoreError::Corrupt {
            path: part.path.clone(),
            message: error.to_string(),
        };
        match self.local_path(&part.path) {
            Some(path) => match File::open(&path) {
                Ok(file) => build_reader(file, columns).map_err(corrupt),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(StoreError::NotFound {
                        path: part.path.clone(),
                    })
                }
                Err(error) => Err(StoreError::file("read", path)(error)),
            },
            None => build_reader(self.get(&part.path)?, columns).map_err(corrupt),
        }
    }
}

pub(crate) fn build_reader(
    source: impl ChunkReader + 'static,
    columns: Option<&[String]>,
) -> std::result::Result<ParquetRecordBatchReader, ParquetError> {
    let mut builder = ParquetRecordBatchReaderBuilder::try_new(source)?;
    if let Some(columns) = columns {
        let fields = builder.schema().fields().iter().enumerate();
        let wanted: Vec<usize> = fields
            .filter(|(_, field)| columns.contains(field.name()))
            .map(|(index, _)| index)
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        builder = builder.with_projection(mask);
    }
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
