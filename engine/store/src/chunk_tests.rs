//! Where chunks are cut, and how little a change of one row changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringArray, UInt32Array};

use super::*;
use crate::row_hashes;

const SIZE: PartSize = PartSize {
    rows: 64,
    bytes: 1 << 20,
};

fn rows(numbers: impl IntoIterator<Item = u32>) -> RecordBatch {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let text: LargeStringArray = numbers
        .iter()
        .map(|number| Some(format!("row {number}")))
        .collect();
    let columns: [(&str, ArrayRef); 2] = [
        ("number", Arc::new(UInt32Array::from(numbers))),
        ("text", Arc::new(text)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn chunks(size: PartSize, batches: &[RecordBatch]) -> Vec<Chunk> {
    let mut chunker = Chunker::new(size);
    let mut chunks = Vec::new();
    for batch in batches {
        chunks.extend(chunker.push(batch, &row_hashes(batch).unwrap()).unwrap());
    }
    chunks.extend(chunker.finish().unwrap());
    chunks
}

fn digests(chunks: &[Chunk]) -> BTreeSet<RowsDigest> {
    chunks.iter().map(|chunk| chunk.digest.clone()).collect()
}

#[test]
fn chunks_are_the_rows_in_order_within_their_bounds() {
    let all = rows(0..10_000);
    let chunks = chunks(SIZE, std::slice::from_ref(&all));
    let mut next = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        let length = chunk.rows.num_rows();
        assert_eq!(chunk.first_row, next);
        assert_eq!(chunk.rows, all.slice(next as usize, length));
        let mut hasher = RowsHasher::default();
        hasher.update(&chunk.rows).unwrap();
        assert_eq!(chunk.digest, hasher.digest());
        assert!(length <= 128, "{length} rows");
        assert!(length >= 16 || index + 1 == chunks.len(), "{length} rows");
        next += length as u64;
    }
    assert_eq!(next, 10_000);
    let average = 10_000 / chunks.len();
    assert!((40..100).contains(&average), "{average} rows on average");
}

#[test]
fn batches_do_not_decide_where_chunks_are_cut() {
    let all = rows(0..5_000);
    let expected: Vec<RowsDigest> = chunks(SIZE, std::slice::from_ref(&all))
        .into_iter()
        .map(|chunk| chunk.digest)
        .collect();
    for length in [1, 7, 100, 999] {
        let pieces: Vec<RecordBatch> = (0..5_000)
            .step_by(length)
            .map(|start| all.slice(start, length.min(5_000 - start)))
            .collect();
        let found = chunks(SIZE, &pieces).into_iter();
        assert_eq!(
            found.map(|chunk| chunk.digest).collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn a_row_that_comes_goes_or_changes_touches_few_chunks() {
    let count = 20_000;
    let before = digests(&chunks(SIZE, &[rows(0..count)]));
    let (mut fresh, mut most, mut edits) = (0, 0, 0);
    for place in (0..count).step_by(397) {
        let (head, tail) = (0..place, place + 1..count);
        for edited in [
            rows(head.clone().chain([count + 1, place]).chain(tail.clone())),
            rows(head.clone().chain(tail.clone())),
            rows(head.chain([count + 1]).chain(tail)),
        ] {
            let after = digests(&chunks(SIZE, &[edited]));
            let new = after.difference(&before).count();
            (fresh, most, edits) = (fresh + new, most.max(new), edits + 1);
        }
    }
    assert!(fresh <= edits * 2, "{fresh} new chunks in {edits} edits");
    assert!(most <= 12, "one edit made {most} new chunks");
}

#[test]
fn bytes_end_a_chunk_and_a_larger_row_stands_alone() {
    let text = |length: usize| "x".repeat(length);
    let lengths = [10, 10, 500, 10, 60, 60, 10];
    let column: LargeStringArray = lengths.iter().map(|length| Some(text(*length))).collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(column) as ArrayRef)]).unwrap();
    let size = PartSize {
        rows: 1000,
        bytes: 100,
    };
    let expected = [2, 1, 2, 2];
    let found = chunks(size, std::slice::from_ref(&batch)).into_iter();
    let lengths: Vec<usize> = found.map(|chunk| chunk.rows.num_rows()).collect();
    assert_eq!(lengths, expected);
    let single: Vec<RecordBatch> = (0..batch.num_rows())
        .map(|row| batch.slice(row, 1))
        .collect();
    let found = chunks(size, &single).into_iter();
    assert_eq!(
        found.map(|chunk| chunk.rows.num_rows()).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn a_chunk_does_not_hold_the_batch_that_it_was_cut_from() {
    let all = rows(0..100_000);
    let held = all.get_array_memory_size();
    for chunk in chunks(SIZE, &[all]) {
        assert!(chunk.rows.get_array_memory_size() < held / 100);
    }
}

#[test]
fn equal_rows_and_odd_sizes_are_cut_too() {
    let same = chunks(SIZE, &[rows(std::iter::repeat_n(7, 1000))]);
    assert!(same.iter().all(|chunk| chunk.rows.num_rows() <= 128));
    for rows_in_part in [0, 1, 2, 3] {
        let size = PartSize {
            rows: rows_in_part,
            bytes: 0,
        };
        let found = chunks(size, &[rows(0..100)]);
        assert_eq!(
            found
                .iter()
                .map(|chunk| chunk.rows.num_rows())
                .sum::<usize>(),
            100
        );
    }
    assert!(chunks(SIZE, &[rows([])]).is_empty());
}
