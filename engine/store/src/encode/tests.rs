//! Files of ours beside those of Arrow's writer.

use std::sync::Arc;

use arrow::array::{
    Array, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray,
    ListArray, UInt32Array, UInt64Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Int32Type, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use super::*;

const GROUP_ROWS: usize = 50_000;

fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build()
}

fn ours(batches: &[RecordBatch], schema: &SchemaRef) -> (Bytes, RowsHasher) {
    let mut encoder = PartEncoder::try_new(schema, properties(), 1 << 30, true).unwrap();
    for batch in batches {
        let bytes = batch.get_array_memory_size();
        encoder.append(batch, bytes).unwrap();
    }
    let (bytes, hasher) = encoder.close().unwrap();
    (bytes.into(), hasher)
}

fn theirs(batches: &[RecordBatch], schema: &SchemaRef) -> Bytes {
    let properties = Some(properties());
    let mut writer =
        ArrowWriter::try_new(Vec::new(), SchemaRef::clone(schema), properties).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap().into()
}

fn read(file: &Bytes) -> (RecordBatch, Arc<ParquetMetaData>) {
    let options = ArrowReaderOptions::new()
        .with_column_index_policy(PageIndexPolicy::Required)
        .with_offset_index_policy(PageIndexPolicy::Required);
    let metadata = ArrowReaderMetadata::load(file, options).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), metadata.clone());
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    (
        concat_batches(&schema, &batches).unwrap(),
        Arc::clone(metadata.metadata()),
    )
}

/// Columns of every kind: those with few values, one whose values turn out to be many, long texts, nulls, lists.
fn rows(count: usize) -> RecordBatch {
    let id = |row: usize| format!("prompt-{:06}", row / 7);
    let number = |row: usize| (row * 7919 % 100) as i64 - 50;
    let nullable =
        |row: usize| (row > count / 2 || !row.is_multiple_of(3)).then_some(row as i64 % 5);
    let text = |row: usize| {
        let letters = if row == count / 3 { 70 } else { row % 4 };
        "ä".repeat(letters)
    };
    let list = (0..count).map(|row| Some(vec![Some(row as i32 % 9); row % 3]));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        (
            "id",
            Arc::new(LargeStringArray::from_iter_values((0..count).map(id))),
            false,
        ),
        (
            "unique",
            Arc::new(LargeStringArray::from_iter_values(
                (0..count).map(|row| row.to_string()),
            )),
            false,
        ),
        (
            "text",
            Arc::new(LargeStringArray::from_iter_values((0..count).map(text))),
            true,
        ),
        (
            "u32",
            Arc::new(UInt32Array::from_iter_values(
                (0..count).map(|row| u32::MAX - row as u32 % 8),
            )),
            true,
        ),
        (
            "u64",
            Arc::new(UInt64Array::from_iter_values(
                (0..count).map(|row| row as u64 / 999 * (u64::MAX / 400)),
            )),
            false,
        ),
        (
            "i32",
            Arc::new(Int32Array::from_iter_values(
                (0..count).map(|row| -(row as i32) / 5000),
            )),
            false,
        ),
        (
            "i64",
            Arc::new(Int64Array::from_iter_values((0..count).map(number))),
            true,
        ),
        (
            "f64",
            Arc::new(Float64Array::from_iter_values(
                (0..count).map(|row| number(row) as f64 * -0.25),
            )),
            false,
        ),
        (
            "zero",
            Arc::new(Float64Array::from_iter_values(
                (0..count).map(|row| row as f64 * 0.0),
            )),
            true,
        ),
        (
            "nan",
            Arc::new(Float64Array::from_iter_values((0..count).map(|row| {
                if row % 40_000 == 39_999 {
                    f64::NAN
                } else {
                    1.0
                }
            }))),
            false,
        ),
        (
            "nullable",
            Arc::new(Int64Array::from_iter((0..count).map(nullable))),
            true,
        ),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(list)),
            true,
        ),
    ];
    let fields = columns.iter().map(|(name, array, is_nullable)| {
        Field::new(*name, array.data_type().clone(), *is_nullable)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let arrays = columns.into_iter().map(|(_, array, _)| array).collect();
    RecordBatch::try_new(schema, arrays).unwrap()
}

fn cut(batch: &RecordBatch, rows: usize) -> Vec<RecordBatch> {
    let starts = (0..batch.num_rows()).step_by(rows);
    starts
        .map(|start| batch.slice(start, rows.min(batch.num_rows() - start)))
        .collect()
}

#[test]
fn a_file_says_what_that_of_arrows_writer_says() {
    let batch = rows(120_000);
    let schema = batch.schema();
    let (mine, _) = ours(&cut(&batch, 8192), &schema);
    let (found, mine) = read(&mine);
    assert_eq!(found, batch);
    let (_, theirs) = read(&theirs(&cut(&batch, 8192), &schema));
    assert_eq!(mine.num_row_groups(), theirs.num_row_groups());
    assert_eq!(
        mine.file_metadata().key_value_metadata(),
        theirs.file_metadata().key_value_metadata()
    );
    for (mine, theirs) in mine.row_groups().iter().zip(theirs.row_groups()) {
        for (mine, theirs) in mine.columns().iter().zip(theirs.columns()) {
            let name = mine.column_path().string();
            assert_eq!(mine.statistics(), theirs.statistics(), "{name}");
            assert_eq!(mine.num_values(), theirs.num_values(), "{name}");
            assert_eq!(mine.encodings_mask(), theirs.encodings_mask(), "{name}");
        }
    }
    assert_eq!(mine.column_index(), theirs.column_index());
}

#[test]
fn batches_dictionaries_and_threads_leave_no_trace_in_the_rows() {
    let batch = rows(60_000);
    let schema = batch.schema();
    let (_, expected) = ours(std::slice::from_ref(&batch), &schema);
    let mut alone = PartEncoder::try_new(&schema, properties(), 1 << 30, false).unwrap();
    alone.append(&batch, 1).unwrap();
    let (alone, digest) = alone.close().unwrap();
    assert_eq!(digest.digest(), expected.digest());
    assert_eq!(read(&alone.into()).0, batch);
    // Batches of two dictionaries, in another order than that of the rows.
    let batches: Vec<RecordBatch> = cut(&batch, 7001)
        .into_iter()
        .map(|piece| {
            let ids = piece.column(0).as_string::<i64>();
            let first = (piece.num_rows() > 0).then(|| ids.value(0)).unwrap();
            let values = ["unused", first].into_iter();
            let mut values: Vec<&str> = values.chain(ids.iter().flatten()).collect();
            values.dedup();
            let keys = ids.iter().flatten().map(|id| {
                let place = values.iter().rposition(|value| *value == id);
                place.unwrap() as i32
            });
            let keys = Int32Array::from_iter_values(keys);
            let values = Arc::new(LargeStringArray::from(values.clone()));
            let ids = DictionaryArray::<Int32Type>::new(keys, values);
            let mut columns = piece.columns().to_vec();
            let mut fields: Vec<Field> = schema
                .fields()
                .iter()
                .map(|field| field.as_ref().clone())
                .collect();
            fields[0] = Field::new("id", ids.data_type().clone(), false);
            columns[0] = Arc::new(ids);
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
        })
        .collect();
    let (file, digest) = ours(&batches, &schema);
    assert_eq!(digest.digest(), expected.digest());
    assert_eq!(read(&file).0, batch);
}

#[test]
fn no_rows_are_a_file_without_row_groups() {
    let batch = rows(3);
    let (file, hasher) = ours(&[batch.slice(0, 0)], &batch.schema());
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert_eq!(reader.schema(), &batch.schema());
    assert_eq!(reader.metadata().num_row_groups(), 0);
    assert_eq!(hasher.rows(), 0);
}
