//! Rows to Parquet: one file, by Arrow's writers of columns, side by side on several threads where the rows are many.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::OnceLock;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use rayon::prelude::*;

use crate::{RowsHasher, StoreError};

/// Bytes that a row group holds in memory before it is closed.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// Bytes of rows that wait to be encoded side by side.
const WAITING_BYTES: usize = 4 << 20;
/// Batches that wait at most: a small one may keep a large one in memory that it was cut from.
const WAITING_BATCHES: usize = 64;
/// Fewer values are not worth another thread.
const VALUES_FOR_THREADS: usize = 8192;
/// Threads at most.
const MOST_THREADS: usize = 8;

/// Encodes and digests the rows of one file, in memory.
pub(crate) struct PartEncoder {
    file: SerializedFileWriter<Vec<u8>>,
    columns: Vec<Column>,
    groups: GroupWriters,
    hasher: RowsHasher,
    rows: u64,
    /// Rows of the row group that is open, those that wait included.
    group_rows: usize,
    max_group_rows: usize,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    max_waiting_bytes: usize,
    has_threads: bool,
}

/// Makes Arrow's writers of columns.
struct GroupWriters {
    factory: ArrowRowGroupWriterFactory,
    /// Row groups before the one that is open.
    closed: usize,
}

impl GroupWriters {
    fn of_leaves(&self, leaves: &Range<usize>) -> Result<Vec<ArrowColumnWriter>> {
        let mut writers = self.factory.create_column_writers(self.closed)?;
        Ok(writers.drain(leaves.clone()).collect())
    }
}

impl PartEncoder {
    /// An encoder of rows of this schema. With `has_threads` it uses all cores, otherwise the thread that calls.
    pub(crate) fn try_new(
        schema: &SchemaRef,
        properties: WriterProperties,
        max_part_bytes: usize,
        has_threads: bool,
    ) -> crate::Result<Self> {
        let hasher = RowsHasher::try_new(schema)?;
        let max_group_rows = properties.max_row_group_row_count().unwrap_or(usize::MAX);
        let writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(schema), Some(properties));
        let (file, factory) = writer
            .and_then(ArrowWriter::into_serialized_writer)
            .map_err(failed)?;
        Ok(Self {
            columns: columns(schema, &file),
            file,
            groups: GroupWriters { factory, closed: 0 },
            hasher,
            rows: 0,
            group_rows: 0,
            max_group_rows,
            waiting: Vec::new(),
            waiting_bytes: 0,
            // A part that is to be small is looked at often.
            max_waiting_bytes: WAITING_BYTES.min(max_part_bytes / 4),
            has_threads,
        })
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the file so far, about; without the rows that wait.
    pub(crate) fn bytes(&self) -> usize {
        let open = self.columns.iter().map(Column::estimated_bytes);
        self.file.bytes_written() + open.sum::<usize>()
    }

    /// Takes rows, which have so many bytes in memory. Texts may come as dictionaries.
    pub(crate) fn append(&mut self, rows: &RecordBatch, bytes: usize) -> crate::Result<()> {
        self.rows += rows.num_rows() as u64;
        self.waiting_bytes += bytes;
        let mut start = 0;
        while start < rows.num_rows() {
            let room = self.max_group_rows - self.group_rows;
            let take = room.min(rows.num_rows() - start);
            self.waiting.push(rows.slice(start, take));
            self.group_rows += take;
            start += take;
            if self.group_rows == self.max_group_rows {
                self.close_group()?;
            }
        }
        if self.waiting_bytes >= self.max_waiting_bytes || self.waiting.len() >= WAITING_BATCHES {
            self.encode()?;
            let memory = self.columns.iter().map(Column::memory_size);
            if memory.sum::<usize>() > ROW_GROUP_BYTES {
                self.close_group()?;
            }
        }
        Ok(())
    }

    /// The file, and what the digest of its rows is made of.
    pub(crate) fn close(mut self) -> crate::Result<(Vec<u8>, RowsHasher)> {
        self.close_group()?;
        let bytes = self.file.into_inner().map_err(failed)?;
        Ok((bytes, self.hasher))
    }

    /// Encodes the rows that wait.
    fn encode(&mut self) -> crate::Result<()> {
        let batches = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let (columns, groups, hasher) = (&mut self.columns, &self.groups, &mut self.hasher);
        let mut digest = || batches.iter().try_for_each(|batch| hasher.update(batch));
        let write = |(place, column): (usize, &mut Column)| {
            let arrays = batches.iter().map(|batch| batch.column(place));
            arrays
                .into_iter()
                .try_for_each(|array| column.write(array, groups))
        };
        let threads = self.has_threads && rows * (columns.len() + 1) >= VALUES_FOR_THREADS;
        let (digested, written) = match threads.then(threads_of_encoders).flatten() {
            Some(threads) => {
                let all = || columns.par_iter_mut().enumerate().try_for_each(write);
                threads.join(digest, all)
            }
            None => (digest(), columns.iter_mut().enumerate().try_for_each(write)),
        };
        digested?;
        written.map_err(failed)
    }

    /// Writes the row group that is open, if it has rows.
    fn close_group(&mut self) -> crate::Result<()> {
        self.encode()?;
        if self.group_rows == 0 {
            return Ok(());
        }
        let (columns, groups) = (&mut self.columns, &self.groups);
        let threads = self.has_threads && self.group_rows >= VALUES_FOR_THREADS;
        let chunks: Result<Vec<Vec<ArrowColumnChunk>>> =
            match threads.then(threads_of_encoders).flatten() {
                Some(threads) => threads.install(|| {
                    let columns = columns.par_iter_mut();
                    columns.map(|column| column.close(groups)).collect()
                }),
                None => columns
                    .iter_mut()
                    .map(|column| column.close(groups))
                    .collect(),
            };
        let append = |file: &mut SerializedFileWriter<Vec<u8>>| {
            let mut group = file.next_row_group()?;
            for chunk in chunks?.into_iter().flatten() {
                chunk.append_to_row_group(&mut group)?;
            }
            group.close()
        };
        append(&mut self.file).map_err(failed)?;
        self.groups.closed += 1;
        self.group_rows = 0;
        Ok(())
    }
}

/// Threads that do nothing but encode, so that whoever waits for them cannot be waited for. None where the system has none.
fn threads_of_encoders() -> Option<&'static rayon::ThreadPool> {
    static THREADS: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let start = || {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(cores.min(MOST_THREADS))
            .thread_name(|number| format!("encode-{number}"));
        threads.build().ok().filter(|_| cores > 1)
    };
    THREADS.get_or_init(start).as_ref()
}

fn columns(schema: &SchemaRef, file: &SerializedFileWriter<Vec<u8>>) -> Vec<Column> {
    let descriptor = file.schema_descr();
    let roots: Vec<usize> = (0..descriptor.num_columns())
        .map(|leaf| descriptor.get_column_root_idx(leaf))
        .collect();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (root, field) in schema.fields().iter().enumerate() {
        let start = roots.partition_point(|of| *of < root);
        let leaves = start..roots.partition_point(|of| *of <= root);
        columns.push(Column {
            field: FieldRef::clone(field),
            leaves,
            writers: Vec::new(),
        });
    }
    columns
}

/// A column of the row group that is open.
struct Column {
    field: FieldRef,
    /// Places of its leaves among those of all columns.
    leaves: Range<usize>,
    writers: Vec<ArrowColumnWriter>,
}

impl Column {
    fn write(&mut self, array: &ArrayRef, groups: &GroupWriters) -> Result<()> {
        if self.writers.is_empty() {
            self.writers = groups.of_leaves(&self.leaves)?;
        }
        let leaves = if array.data_type() == self.field.data_type() {
            compute_leaves(&self.field, array)?
        } else {
            compute_leaves(&self.field, &cast(array, self.field.data_type())?)?
        };
        for (writer, leaf) in self.writers.iter_mut().zip(leaves) {
            writer.write(&leaf)?;
        }
        Ok(())
    }

    fn memory_size(&self) -> usize {
        self.writers
            .iter()
            .map(ArrowColumnWriter::memory_size)
            .sum()
    }

    fn estimated_bytes(&self) -> usize {
        let open = self.writers.iter();
        open.map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    /// Ends the row group, which has rows.
    fn close(&mut self, groups: &GroupWriters) -> Result<Vec<ArrowColumnChunk>> {
        if self.writers.is_empty() {
            self.writers = groups.of_leaves(&self.leaves)?;
        }
        let writers = self.writers.drain(..);
        writers.map(ArrowColumnWriter::close).collect()
    }
}

/// The error of rows that cannot be encoded.
pub(crate) fn failed(error: ParquetError) -> StoreError {
    StoreError::Rows(format!("cannot encode rows as Parquet: {error}"))
}
