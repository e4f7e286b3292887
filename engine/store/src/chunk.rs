//! Cutting rows into chunks at places that their content decides.
//!
//! A chunk ends after a row whose hash is small, once it has a quarter of the average number of rows; it ends anyway at
//! twice the average, or before the row that would make it larger than the limit in bytes. Hash and size of a row depend
//! on that row alone. So the cuts are the same however the rows come in batches, and a row that is added or removed changes the
//! chunk that it falls into, and the one or two after it only until the next cut that both ways of cutting share.

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use engine_core::{PartSize, RowsDigest};

use crate::digest::row_sizes;
use crate::{Result, RowsHasher, StoreError};

/// Some rows that follow each other, cut by their content.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The rows.
    pub rows: RecordBatch,
    /// Number of the first of them among all rows; counts from 0.
    pub first_row: u64,
    /// Digest of the rows.
    pub digest: RowsDigest,
    /// Bytes of the rows in memory, about.
    pub bytes: u64,
}

/// Cuts rows into chunks.
#[derive(Debug)]
pub struct Chunker {
    min_rows: usize,
    max_rows: usize,
    max_bytes: u64,
    /// A hash below it ends a chunk.
    threshold: u64,
    first_row: u64,
    open: OpenChunk,
}

#[derive(Debug, Default)]
struct OpenChunk {
    pieces: Vec<RecordBatch>,
    rows: usize,
    bytes: u64,
    hasher: RowsHasher,
}

impl Chunker {
    /// A chunker for parts of this size.
    #[must_use]
    pub fn new(size: PartSize) -> Self {
        let average = size.rows.max(1);
        let min_rows = (average / 4).max(1);
        // After the smallest number of rows so many more are to follow on average, the last one included.
        let more = (average - min_rows + 1) as u64;
        Self {
            min_rows,
            max_rows: average * 2,
            max_bytes: size.bytes.max(1) as u64,
            threshold: u64::MAX / more,
            first_row: 0,
            open: OpenChunk::default(),
        }
    }

    /// Takes rows with their hashes, as [`crate::row_hashes`] gives them, and returns the chunks that are complete.
    ///
    /// # Errors
    /// When a column has a type that cannot be stored, or the batches differ in their columns.
    ///
    /// # Panics
    /// When there are not as many hashes as rows.
    pub fn push(&mut self, batch: &RecordBatch, hashes: &[u128]) -> Result<Vec<Chunk>> {
        assert_eq!(batch.num_rows(), hashes.len(), "each row has a hash");
        let sizes = row_sizes(batch)?;
        let mut chunks = Vec::new();
        let mut start = 0;
        for (row, (hash, size)) in hashes.iter().zip(sizes).enumerate() {
            if self.open.rows > 0 && self.open.bytes + size > self.max_bytes {
                self.open.take(batch, start..row, hashes);
                chunks.extend(self.close()?);
                start = row;
            }
            self.open.rows += 1;
            self.open.bytes += size;
            let is_cut = self.open.rows >= self.min_rows && ((hash >> 64) as u64) < self.threshold;
            if is_cut || self.open.rows >= self.max_rows {
                self.open.take(batch, start..row + 1, hashes);
                chunks.extend(self.close()?);
                start = row + 1;
            }
        }
        self.open.take(batch, start..batch.num_rows(), hashes);
        Ok(chunks)
    }

    /// The rows that are left.
    ///
    /// # Errors
    /// When the batches differ in their columns.
    pub fn finish(mut self) -> Result<Option<Chunk>> {
        self.close()
    }

    fn close(&mut self) -> Result<Option<Chunk>> {
        let open = std::mem::take(&mut self.open);
        let Some(first) = open.pieces.first() else {
            return Ok(None);
        };
        // A copy even of a single piece: as a slice it would keep the whole batch in memory that it was cut from. With one
        // input Arrow makes no copy, hence the empty one.
        let empty = first.slice(0, 0);
        let rows = concat_batches(
            first.schema_ref(),
            open.pieces.iter().chain(std::iter::once(&empty)),
        )
        .map_err(|error| {
            StoreError::Rows(format!("cannot put the rows of a part together: {error}"))
        })?;
        let chunk = Chunk {
            first_row: self.first_row,
            digest: open.hasher.digest(),
            bytes: open.bytes,
            rows,
        };
        self.first_row += chunk.rows.num_rows() as u64;
        Ok(Some(chunk))
    }
}

impl OpenChunk {
    /// Takes up rows that are already counted.
    fn take(&mut self, batch: &RecordBatch, range: std::ops::Range<usize>, hashes: &[u128]) {
        if !range.is_empty() {
            self.pieces.push(batch.slice(range.start, range.len()));
            self.hasher.update_hashes(&hashes[range]);
        }
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
