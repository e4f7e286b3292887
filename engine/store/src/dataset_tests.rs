//! What goes into a dataset comes out of it, and its digest sees rows alone.

use std::sync::Arc;

use arrow::array::{
    Float32Array, LargeListBuilder, LargeStringArray, UInt32Array, UInt32Builder, UInt64Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};

use super::*;

fn rollouts(rows: usize) -> RecordBatch {
    let text = |prefix: &str| {
        Arc::new(
            (0..rows)
                .map(|row| Some(format!("{prefix} {row}")))
                .collect::<LargeStringArray>(),
        )
    };
    let mut tokens = LargeListBuilder::new(UInt32Builder::new()).with_field(Field::new(
        "item",
        DataType::UInt32,
        false,
    ));
    let mut lengths = Vec::new();
    for row in 0..rows {
        for token in 0..row % 5 {
            tokens.values().append_value(token as u32);
        }
        tokens.append(true);
        lengths.push(row % 5);
    }
    let logprobs = arrow::array::LargeListArray::new(
        Arc::new(Field::new("item", DataType::Float32, false)),
        arrow::buffer::OffsetBuffer::from_lengths(lengths.iter().copied()),
        Arc::new(Float32Array::from(vec![-0.5; lengths.iter().sum()])),
        None,
    );
    let columns: Vec<ArrayRef> = vec![
        text("prompt"),
        Arc::new(UInt32Array::from(vec![0; rows])),
        text("answer"),
        Arc::new(tokens.finish()),
        Arc::new(logprobs),
        text("stop"),
        Arc::new(UInt32Array::from(vec![7; rows])),
        text("model"),
        Arc::new(UInt64Array::from(vec![1; rows])),
    ];
    RecordBatch::try_new(TableName::Rollouts.schema(), columns).unwrap()
}

fn write(store: &Store, batches: &[RecordBatch], limits: PartLimits) -> Dataset {
    let mut writer = DatasetWriter::try_new(
        store,
        TableName::Rollouts,
        TableName::Rollouts.schema(),
        limits,
    )
    .unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn nested_rows_come_back_equal_from_any_store() {
    let folder = tempfile::tempdir().unwrap();
    for store in [
        Store::open("memory://").unwrap(),
        Store::open(folder.path().to_str().unwrap()).unwrap(),
    ] {
        let batch = rollouts(1000);
        let dataset = write(
            &store,
            std::slice::from_ref(&batch),
            PartLimits {
                rows: 300,
                ..PartLimits::default()
            },
        );
        assert_eq!(
            dataset
                .parts
                .iter()
                .map(|part| part.rows)
                .collect::<Vec<_>>(),
            [300, 300, 300, 100]
        );
        let read: Vec<RecordBatch> = store
            .read(&dataset)
            .map(std::result::Result::unwrap)
            .collect();
        assert_eq!(concat_batches(&batch.schema(), &read).unwrap(), batch);
    }
}

#[test]
fn parts_row_groups_and_batches_do_not_change_the_digest() {
    let store = Store::open("memory://").unwrap();
    let batch = rollouts(500);
    let expected = write(&store, std::slice::from_ref(&batch), PartLimits::default());
    let halves = [batch.slice(0, 123), batch.slice(123, 377)];
    for limits in [
        PartLimits {
            rows: 7,
            ..PartLimits::default()
        },
        PartLimits {
            bytes: 1,
            ..PartLimits::default()
        },
        PartLimits {
            row_group_rows: 10,
            ..PartLimits::default()
        },
    ] {
        let dataset = write(&store, &halves, limits);
        assert_eq!(
            (dataset.digest, dataset.rows),
            (expected.digest.clone(), 500),
            "{limits:?}"
        );
    }
}

#[test]
fn a_dataset_without_rows_keeps_its_schema() {
    let store = Store::open("memory://").unwrap();
    let dataset = write(&store, &[], PartLimits::default());
    assert_eq!((dataset.rows, dataset.parts.len()), (0, 1));
    assert_eq!(
        store.schema(&dataset).unwrap(),
        TableName::Rollouts.schema()
    );
    assert_eq!(store.read(&dataset).count(), 0);
}

#[test]
fn rows_of_another_shape_are_refused_by_column() {
    let store = Store::open("memory://").unwrap();
    let declared = Arc::new(Schema::new(vec![Field::new(
        "a",
        DataType::LargeUtf8,
        false,
    )]));
    let mut writer =
        DatasetWriter::try_new(&store, TableName::Rows, declared, PartLimits::default()).unwrap();
    let number =
        RecordBatch::try_from_iter([("a", Arc::new(UInt32Array::from(vec![1])) as ArrayRef)])
            .unwrap();
    let message = writer.write(&number).unwrap_err().to_string();
    assert!(
        message.contains("column `a`") && message.contains("UInt32"),
        "{message}"
    );
    let other = RecordBatch::try_from_iter([(
        "b",
        Arc::new(LargeStringArray::from(vec!["x"])) as ArrayRef,
    )])
    .unwrap();
    assert!(
        writer
            .write(&other)
            .unwrap_err()
            .to_string()
            .contains("[b] where [a]")
    );
}

#[test]
fn a_damaged_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let dataset = write(&store, &[rollouts(10)], PartLimits::default());
    let path = &dataset.parts[0].path;
    std::fs::write(folder.path().join(path), b"PAR1 and then nothing").unwrap();
    let error = store.read(&dataset).next().unwrap().unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { path: named, .. } if named == path),
        "{error}"
    );
}

#[test]
fn a_writer_that_was_broken_off_goes_on_from_its_parts() {
    let store = Store::open("memory://").unwrap();
    let batch = rollouts(500);
    let expected = write(&store, std::slice::from_ref(&batch), PartLimits::default());
    let writer = |parts| {
        let table = TableName::Rollouts;
        let limits = PartLimits::default();
        DatasetWriter::resume(&store, table, table.schema(), limits, parts).unwrap()
    };
    let mut first = writer(vec![]);
    assert!(first.flush().unwrap().is_empty());
    first.write(&batch.slice(0, 200)).unwrap();
    let parts = first.flush().unwrap();
    // These rows are lost with the process.
    first.write(&batch.slice(200, 100)).unwrap();
    let mut second = writer(parts);
    second.write(&batch.slice(200, 300)).unwrap();
    let dataset = second.finish().unwrap();
    assert_eq!((dataset.digest, dataset.rows), (expected.digest, 500));
    assert_eq!(dataset.parts.len(), 2);
}

#[test]
fn parts_that_were_written_alone_make_the_same_dataset() {
    let store = Store::open("memory://").unwrap();
    let batch = rollouts(300);
    let schema = TableName::Rollouts.schema();
    let expected = write(&store, std::slice::from_ref(&batch), PartLimits::default());
    let part = |pieces: &[RecordBatch]| {
        store
            .write_part(TableName::Rollouts, &schema, pieces)
            .unwrap()
    };
    let empty = part(&[]);
    let parts = vec![
        empty.clone(),
        part(&[batch.slice(0, 10), batch.slice(10, 0), batch.slice(10, 90)]),
        empty.clone(),
        part(&[batch.slice(100, 200)]),
    ];
    let dataset = store
        .dataset(TableName::Rollouts, &schema, parts.clone())
        .unwrap();
    assert_eq!((dataset.digest, dataset.rows), (expected.digest, 300));
    assert_eq!(dataset.parts, [parts[1].clone(), parts[3].clone()]);
    let none = write(&store, &[], PartLimits::default());
    for parts in [vec![], vec![empty.clone(), empty]] {
        let dataset = store.dataset(TableName::Rollouts, &schema, parts).unwrap();
        assert_eq!(dataset, none);
        assert_eq!(store.schema(&dataset).unwrap(), schema);
    }
}

#[test]
fn a_large_batch_is_written_in_parts_of_bounded_size() {
    let store = Store::open("memory://").unwrap();
    // Text that does not compress, in one batch that is larger than a part.
    let mut state = 7_u64;
    let texts: LargeStringArray = (0..4_000)
        .map(|_| {
            let text: String = (0..10_000)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    char::from(b' ' + (state >> 40) as u8 % 95)
                })
                .collect();
            Some(text)
        })
        .collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
    let limits = PartLimits {
        bytes: 8 << 20,
        ..PartLimits::default()
    };
    let mut writer =
        DatasetWriter::try_new(&store, TableName::Rows, batch.schema(), limits).unwrap();
    writer.write(&batch).unwrap();
    let dataset = writer.finish().unwrap();
    assert!(dataset.parts.len() > 2);
    assert!(dataset.parts.iter().all(|part| part.bytes < 20 << 20));
    let rows: usize = store
        .read(&dataset)
        .map(|batch| batch.unwrap().num_rows())
        .sum();
    assert_eq!(rows, 4_000);
}

#[test]
fn dictionaries_are_stored_as_their_values() {
    let store = Store::open("memory://").unwrap();
    let plain = Arc::new(LargeStringArray::from(vec!["a", "b", "a"])) as ArrayRef;
    let schema = Arc::new(Schema::new(vec![Field::new(
        "word",
        DataType::LargeUtf8,
        false,
    )]));
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::LargeUtf8));
    let coded = cast(&plain, &dictionary).unwrap();
    let parts = [plain, coded].map(|column| {
        let batch = RecordBatch::try_from_iter([("word", column)]).unwrap();
        store
            .write_part(TableName::Rows, &schema, &[batch])
            .unwrap()
    });
    assert_eq!(parts[0], parts[1]);
}
