//! Side tables that are matched row by row: a digest for every key, so that the key of a part can cover the rows that the
//! part can see and no others.

use arrow::array::{Array, ArrayRef, AsArray as _, LargeStringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use engine_core::OperatorError;
use engine_core::operator::BatchReader;
use engine_store::row_hashes;
use rayon::slice::ParallelSliceMut as _;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bits of a key's hash by which the table is entered.
const ENTRY_BITS: u32 = 16;

/// Digests of the rows of a table by the hash of their key.
///
/// Two keys may share a hash: then each counts as having the rows of both, and a part may be computed once too often.
#[derive(Debug)]
pub(super) struct SideTable {
    column: &'static str,
    /// Sorted, each key once.
    rows: Vec<SideRow>,
    /// Where the keys with each first bits begin.
    entries: Vec<usize>,
}

/// There may be very many: half of a row's hash is enough to tell whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SideRow {
    /// Hash of the key.
    key: u64,
    /// Place among the rows, so that rows of one key count in their order.
    place: u32,
    digest: u64,
}

impl SideTable {
    /// Reads a side table with this column of keys.
    pub(super) fn read(
        column: &'static str,
        reader: BatchReader,
        has_ended: impl Fn() -> bool,
    ) -> Result<Self, OperatorError> {
        let mut rows: Vec<SideRow> = Vec::new();
        for batch in reader {
            if has_ended() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let keys = keys(&batch, column)?;
            for (row, hash) in row_hashes(&batch)?.into_iter().enumerate() {
                rows.push(SideRow {
                    key: hash_of(&keys, row),
                    // Order alone counts, and beyond this number only that of rows with one key.
                    place: u32::try_from(rows.len()).unwrap_or(u32::MAX),
                    digest: hash as u64,
                });
            }
        }
        rows.par_sort_unstable();
        rows.dedup_by(|next, kept| {
            let is_same = next.key == kept.key;
            if is_same {
                kept.digest = xxh3_64_with_seed(&next.digest.to_le_bytes(), kept.digest);
            }
            is_same
        });
        let entries = (0..=1_u64 << ENTRY_BITS)
            .map(|bits| rows.partition_point(|row| row.key >> (u64::BITS - ENTRY_BITS) < bits))
            .collect();
        Ok(Self {
            column,
            rows,
            entries,
        })
    }

    /// Adds the rows that belong to some mapped rows to the key of a part.
    pub(super) fn add_matches(
        &self,
        mapped: &RecordBatch,
        hasher: &mut blake3::Hasher,
    ) -> Result<(), OperatorError> {
        let keys = keys(mapped, self.column)?;
        let mut bytes = Vec::with_capacity(keys.len() * 9);
        for row in 0..keys.len() {
            match self.find(hash_of(&keys, row)) {
                Some(digest) => {
                    bytes.push(1);
                    bytes.extend_from_slice(&digest.to_le_bytes());
                }
                None => bytes.push(0),
            }
        }
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
        Ok(())
    }

    fn find(&self, hash: u64) -> Option<u64> {
        let bits = (hash >> (u64::BITS - ENTRY_BITS)) as usize;
        let near = &self.rows[self.entries[bits]..self.entries[bits + 1]];
        near.binary_search_by_key(&hash, |row| row.key)
            .ok()
            .map(|place| near[place].digest)
    }
}

fn hash_of(keys: &LargeStringArray, row: usize) -> u64 {
    if keys.is_valid(row) {
        xxh3_64(keys.value(row).as_bytes())
    } else {
        0
    }
}

fn keys(batch: &RecordBatch, column: &str) -> Result<LargeStringArray, OperatorError> {
    let array = batch.column_by_name(column).ok_or_else(|| {
        OperatorError::Internal(format!(
            "a planned input has no column `{column}` to join on"
        ))
    })?;
    let text: ArrayRef = cast(array, &DataType::LargeUtf8)?;
    Ok(text.as_string::<i64>().clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn table(rows: &[(&str, &str)]) -> RecordBatch {
        let column = |texts: Vec<&str>| Arc::new(LargeStringArray::from(texts)) as ArrayRef;
        RecordBatch::try_from_iter([
            ("id", column(rows.iter().map(|row| row.0).collect())),
            ("text", column(rows.iter().map(|row| row.1).collect())),
        ])
        .unwrap()
    }

    /// What the side table adds to the key of a part with rows of these ids.
    fn key(side: &[(&str, &str)], ids: &[&str]) -> blake3::Hash {
        let (one, two) = side.split_at(side.len() / 2);
        let batches = [Ok(table(one)), Ok(table(two))];
        let side = SideTable::read("id", Box::new(batches.into_iter()), || false).unwrap();
        let mapped: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "")).collect();
        let mut hasher = blake3::Hasher::new();
        side.add_matches(&table(&mapped), &mut hasher).unwrap();
        hasher.finalize()
    }

    #[test]
    fn only_rows_with_the_keys_of_the_part_count_and_those_in_their_order() {
        let base = key(&[("a", "1"), ("b", "2"), ("a", "3")], &["a", "c"]);
        let same = [
            &[("b", "9"), ("a", "1"), ("a", "3"), ("d", "0")][..],
            &[("a", "1"), ("a", "3")],
        ];
        for side in same {
            assert_eq!(key(side, &["a", "c"]), base);
        }
        let different = [
            &[("a", "3"), ("a", "1")][..],
            &[("a", "1")],
            &[("a", "1"), ("a", "3"), ("c", "")],
        ];
        for side in different {
            assert_ne!(key(side, &["a", "c"]), base);
        }
        assert_ne!(key(&[("a", "1"), ("a", "3")], &["c", "a"]), base);
    }
}
