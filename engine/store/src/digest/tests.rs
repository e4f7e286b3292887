//! What a digest must and must not notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray,
    FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int64Array, LargeListArray,
    LargeStringArray, ListArray, MapBuilder, StringArray, StringBuilder, StringViewArray,
    StructArray, UInt32Array, UInt32Builder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Fields, Int32Type};

use super::*;

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }

    fn mask(&mut self, length: usize) -> NullBuffer {
        (0..length).map(|_| self.below(4) != 0).collect()
    }

    fn text(&mut self) -> String {
        let length = self.below(20);
        (0..length)
            .map(|_| char::from(b'a' + self.below(3) as u8))
            .collect()
    }

    fn lengths(&mut self, rows: usize) -> Vec<usize> {
        (0..rows).map(|_| self.below(4)).collect()
    }
}

/// A column of each kind, with nulls at every level.
fn columns(rows: usize, numbers: &mut Numbers) -> Vec<ArrayRef> {
    let texts: LargeStringArray = (0..rows)
        .map(|_| (numbers.below(5) != 0).then(|| numbers.text()))
        .collect();
    let views: StringViewArray = (0..rows).map(|_| Some(numbers.text())).collect();
    let words: Vec<Option<&str>> = (0..rows)
        .map(|_| [Some("yes"), Some("no"), None][numbers.below(3)])
        .collect();
    let dictionary: DictionaryArray<Int32Type> = words.into_iter().collect();
    let binary: BinaryArray = (0..rows)
        .map(|_| Some(numbers.text().into_bytes()))
        .collect();
    let small: Int8Array = (0..rows).map(|_| Some(numbers.below(100) as i8)).collect();
    let large: Int64Array = (0..rows)
        .map(|_| (numbers.below(3) != 0).then(|| numbers.below(1000) as i64))
        .collect();
    let flags: BooleanArray = (0..rows)
        .map(|_| [Some(true), Some(false), None][numbers.below(3)])
        .collect();
    let decimals: Decimal128Array = (0..rows).map(|_| Some(numbers.below(9) as i128)).collect();
    vec![
        Arc::new(texts),
        Arc::new(views),
        Arc::new(dictionary),
        Arc::new(binary),
        Arc::new(small),
        Arc::new(large),
        Arc::new(flags),
        Arc::new(decimals),
        number_lists(rows, numbers),
        struct_lists(rows, numbers),
        fixed_lists(rows, numbers),
        maps(rows, numbers),
        Arc::new(arrow::array::NullArray::new(rows)),
    ]
}

fn number_lists(rows: usize, numbers: &mut Numbers) -> ArrayRef {
    let lengths = numbers.lengths(rows);
    let items: usize = lengths.iter().sum();
    let values: Float32Array = (0..items)
        .map(|_| (numbers.below(6) != 0).then(|| numbers.below(9) as f32 / 4.0))
        .collect();
    Arc::new(LargeListArray::new(
        Arc::new(Field::new("item", DataType::Float32, true)),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(values),
        Some(numbers.mask(rows)),
    ))
}

fn struct_lists(rows: usize, numbers: &mut Numbers) -> ArrayRef {
    let lengths = numbers.lengths(rows);
    let items: usize = lengths.iter().sum();
    let roles: StringArray = (0..items).map(|_| Some(numbers.text())).collect();
    let weights: Float64Array = (0..items)
        .map(|_| (numbers.below(4) != 0).then_some(0.5))
        .collect();
    let fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("weight", DataType::Float64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![Arc::new(roles), Arc::new(weights)];
    let structs = StructArray::new(fields.clone(), columns, Some(numbers.mask(items)));
    Arc::new(ListArray::new(
        Arc::new(Field::new("item", DataType::Struct(fields), true)),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(structs),
        Some(numbers.mask(rows)),
    ))
}

fn fixed_lists(rows: usize, numbers: &mut Numbers) -> ArrayRef {
    let values: UInt32Array = (0..rows * 3)
        .map(|_| Some(numbers.below(9) as u32))
        .collect();
    Arc::new(FixedSizeListArray::new(
        Arc::new(Field::new("item", DataType::UInt32, true)),
        3,
        Arc::new(values),
        Some(numbers.mask(rows)),
    ))
}

fn maps(rows: usize, numbers: &mut Numbers) -> ArrayRef {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), UInt32Builder::new());
    for row in 0..rows {
        for key in 0..numbers.below(3) {
            builder.keys().append_value(format!("k{key}"));
            builder.values().append_option((row % 2 == 0).then_some(7));
        }
        builder.append(numbers.below(4) != 0).unwrap();
    }
    Arc::new(builder.finish())
}

fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
    let names = (0..columns.len()).map(|index| format!("c{index}"));
    RecordBatch::try_from_iter_with_nullable(
        names
            .zip(columns)
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

fn random(rows: usize, seed: u64) -> RecordBatch {
    batch(columns(rows, &mut Numbers(seed)))
}

fn one(name: &str, column: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

fn digest(batches: &[RecordBatch]) -> RowsDigest {
    let mut hasher = RowsHasher::default();
    for batch in batches {
        hasher.update(batch).unwrap();
    }
    hasher.digest()
}

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(LargeStringArray::from(values.to_vec()))
}

#[test]
fn however_rows_are_split_their_digest_is_the_same() {
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let whole = random(1 + numbers.below(300), seed);
        let expected = digest(std::slice::from_ref(&whole));
        let (mut pieces, mut parts, mut start) = (Vec::new(), Vec::new(), 0);
        while start < whole.num_rows() {
            let length = numbers.below(whole.num_rows() - start + 1);
            pieces.push(whole.slice(start, length));
            parts.push(digest(&pieces[pieces.len() - 1..]));
            start += length;
        }
        assert_eq!(digest(&pieces), expected, "seed {seed}");
        assert_eq!(combine_digests(&parts).unwrap(), expected, "seed {seed}");
        assert_eq!(
            dataset_digest(&whole.schema(), &parts).unwrap(),
            dataset_digest(&whole.schema(), [&expected]).unwrap()
        );
        let hashes: Vec<u128> = pieces
            .iter()
            .flat_map(|piece| row_hashes(piece).unwrap())
            .collect();
        assert_eq!(hashes, row_hashes(&whole).unwrap());
        let mut hasher = RowsHasher::from_digest(&parts[0]).unwrap();
        hasher.update_hashes(&hashes[pieces[0].num_rows()..]);
        assert_eq!(hasher.digest(), expected);
        // A copy has other offsets and buffers.
        let copy = concat_batches(&whole.schema(), [&whole.slice(0, 0), &whole]).unwrap();
        assert_eq!(digest(&[copy]), expected);
    }
}

#[test]
fn a_change_of_any_value_or_of_the_order_changes_the_digest() {
    let rows = 40;
    let whole = random(rows, 1);
    let expected = digest(std::slice::from_ref(&whole));
    let other = random(rows, 2);
    let mut seen = BTreeSet::from([expected]);
    for (index, column) in whole.columns().iter().enumerate() {
        for row in 0..rows {
            let theirs = other.column(index).slice(row, 1);
            if *column.slice(row, 1) == *theirs {
                continue;
            }
            let pieces = [
                column.slice(0, row),
                theirs,
                column.slice(row + 1, rows - row - 1),
            ];
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            let mut columns = whole.columns().to_vec();
            columns[index] = arrow::compute::concat(&pieces).unwrap();
            let changed = RecordBatch::try_new(whole.schema(), columns).unwrap();
            assert!(seen.insert(digest(&[changed])), "column {index}, row {row}");
        }
    }
    for row in 1..rows {
        let swapped = [whole.slice(row, rows - row), whole.slice(0, row)];
        assert!(seen.insert(digest(&swapped)), "turned at {row}");
        let missing = [whole.slice(0, row), whole.slice(row + 1, rows - row - 1)];
        assert!(seen.insert(digest(&missing)), "without {row}");
        let twice = [whole.slice(0, row + 1), whole.slice(row, rows - row)];
        assert!(seen.insert(digest(&twice)), "twice {row}");
    }
}

#[test]
fn where_a_value_ends_counts() {
    let list = |lengths: &[usize], items: &[&str]| -> ArrayRef {
        Arc::new(LargeListArray::new(
            Arc::new(Field::new("item", DataType::LargeUtf8, false)),
            OffsetBuffer::from_lengths(lengths.iter().copied()),
            text(items),
            None,
        ))
    };
    let nullable =
        |values: &[Option<&str>]| -> ArrayRef { Arc::new(LargeStringArray::from(values.to_vec())) };
    let variants = [
        batch(vec![text(&["ab", "c"]), text(&["d", "e"])]),
        batch(vec![text(&["a", "bc"]), text(&["d", "e"])]),
        batch(vec![text(&["a", "c"]), text(&["bd", "e"])]),
        batch(vec![text(&["d", "e"]), text(&["ab", "c"])]),
        batch(vec![nullable(&[Some(""), None])]),
        batch(vec![nullable(&[None, Some("")])]),
        batch(vec![nullable(&[None, None])]),
        batch(vec![nullable(&[Some(""), Some("")])]),
        batch(vec![list(&[2, 0], &["a", "b"])]),
        batch(vec![list(&[1, 1], &["a", "b"])]),
        batch(vec![list(&[0, 2], &["a", "b"])]),
        batch(vec![list(&[2, 0], &["ab", ""])]),
        batch(vec![list(&[2, 0], &["", "ab"])]),
        batch(vec![list(&[1, 0], &["ab"])]),
        batch(vec![list(&[1, 0], &[""])]),
        batch(vec![list(&[0, 0], &[])]),
    ];
    let digests: BTreeSet<RowsDigest> = variants
        .iter()
        .map(|variant| digest(std::slice::from_ref(variant)))
        .collect();
    assert_eq!(digests.len(), variants.len());
}

#[test]
fn what_lies_under_a_null_does_not_count() {
    let nulls = || Some(NullBuffer::from(vec![true, false, true]));
    let numbers =
        |hidden| -> ArrayRef { Arc::new(Int64Array::new(vec![1, hidden, 3].into(), nulls())) };
    let lists = |lengths: [usize; 3]| -> ArrayRef {
        Arc::new(LargeListArray::new(
            Arc::new(Field::new("item", DataType::UInt32, false)),
            OffsetBuffer::from_lengths(lengths),
            Arc::new(UInt32Array::from(vec![5; lengths.iter().sum()])),
            nulls(),
        ))
    };
    let structs = |hidden| -> ArrayRef {
        let fields = Fields::from(vec![Field::new("a", DataType::LargeUtf8, true)]);
        Arc::new(StructArray::new(
            fields,
            vec![text(&["x", hidden, "z"])],
            nulls(),
        ))
    };
    for (left, right) in [
        (numbers(2), numbers(9)),
        (lists([1, 0, 1]), lists([1, 2, 1])),
        (structs("y"), structs("")),
    ] {
        assert_eq!(digest(&[one("a", left)]), digest(&[one("a", right)]));
    }
}

#[test]
fn names_and_types_count_and_ways_of_storing_do_not() {
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 1]));
    let words = text(&["a", "b", "a"]);
    let renamed = digest(&[one("b", Arc::clone(&words))]);
    let rows = one("a", Arc::clone(&words));
    let expected = digest(std::slice::from_ref(&rows));
    assert_ne!(renamed, expected);
    let narrow = cast(&ints, &DataType::UInt32).unwrap();
    assert_ne!(digest(&[one("a", narrow)]), digest(&[one("a", ints)]));
    for data_type in [
        DataType::Utf8,
        DataType::Utf8View,
        DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
    ] {
        let column = cast(&words, &data_type).unwrap();
        assert_eq!(digest(&[one("a", column)]), expected, "{data_type}");
    }
    let nullable = RecordBatch::try_from_iter_with_nullable([("a", words, true)]).unwrap();
    assert_eq!(digest(std::slice::from_ref(&nullable)), expected);
    // The dataset is another one: what reads it sees the schema too.
    assert_ne!(
        dataset_digest(&nullable.schema(), [&expected]).unwrap(),
        dataset_digest(&rows.schema(), [&expected]).unwrap()
    );
}

#[test]
fn floats_count_by_their_bits() {
    let floats = |value: f64| digest(&[one("a", Arc::new(Float64Array::from(vec![value])))]);
    assert_ne!(floats(0.0), floats(-0.0));
    assert_eq!(floats(f64::NAN), floats(f64::NAN));
    assert_ne!(
        floats(f64::NAN),
        floats(f64::from_bits(f64::NAN.to_bits() + 1))
    );
}

#[test]
fn rows_of_small_numbers_have_hashes_of_their_own() {
    // Counters, powers of two and signs are where weak mixing shows.
    let words: Vec<u64> = (0..600)
        .chain((0..64).map(|bit| 1 << bit))
        .chain((0..64).map(|bit| 1 << bit | 1 << 63))
        .collect();
    let pairs: Vec<(u64, u64)> = words
        .iter()
        .flat_map(|left| words.iter().map(move |right| (*left, *right)))
        .collect();
    let column =
        |values: Vec<u64>| -> ArrayRef { Arc::new(arrow::array::UInt64Array::from(values)) };
    let rows = batch(vec![
        column(pairs.iter().map(|pair| pair.0).collect()),
        column(pairs.iter().map(|pair| pair.1).collect()),
    ]);
    let hashes = row_hashes(&rows).unwrap();
    let distinct: BTreeSet<&(u64, u64)> = pairs.iter().collect();
    for shift in [0, 64] {
        let halves: BTreeSet<u64> = hashes.iter().map(|hash| (hash >> shift) as u64).collect();
        assert_eq!(halves.len(), distinct.len());
    }
}

#[test]
fn no_rows_add_nothing() {
    let rows = random(5, 3);
    let some = digest(std::slice::from_ref(&rows));
    let none = RowsHasher::try_new(&rows.schema()).unwrap().digest();
    assert_eq!(none, RowsHasher::default().digest());
    assert_eq!(combine_digests([&none, &some, &none]).unwrap(), some);
}

#[test]
fn a_column_that_cannot_be_stored_is_named() {
    let field = Field::new("item", DataType::Int32, true);
    let schema = Schema::new(vec![Field::new(
        "odd",
        DataType::LargeList(Arc::new(Field::new(
            "item",
            DataType::ListView(Arc::new(field)),
            true,
        ))),
        true,
    )]);
    let error = RowsHasher::try_new(&Arc::new(schema))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("column `odd`") && error.contains("cast it"),
        "{error}"
    );
}

#[test]
fn a_text_that_is_no_digest_is_refused() {
    for text in [
        "",
        "0",
        &"g".repeat(48),
        &"f".repeat(48),
        &"0".repeat(49),
        &"+".repeat(48),
    ] {
        let error = RowsHasher::from_digest(&RowsDigest(text.to_owned())).unwrap_err();
        assert!(error.to_string().contains("no digest of rows"), "{text}");
    }
}

#[test]
fn digests_are_those_of_earlier_versions() {
    // A change here makes every stored artifact a stranger: raise the version in the layout instead.
    let rows = random(10, 7);
    let found = digest(std::slice::from_ref(&rows));
    assert_eq!(found.0, "000000000000000a17326ef2603170871a4c048b911e28ca");
    let dataset = dataset_digest(&rows.schema(), [&found]).unwrap();
    assert_eq!(
        dataset.as_str(),
        "7187e64b3bec15ac7561acbe8e239dd06c4417c1ff1591d09d1d77df567cfde3"
    );
    assert!(rows.column(2).as_any_dictionary_opt().is_some());
}
