//! What the digest of a dataset must and must not notice.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float32Array, Int64Array, LargeListArray, LargeStringArray, RecordBatch,
    StructArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use engine_core::Digest;

use super::DatasetHasher;

fn digest(batches: &[RecordBatch]) -> Digest {
    let mut hasher = DatasetHasher::try_new(batches[0].schema()).unwrap();
    for batch in batches {
        hasher.update(batch).unwrap();
    }
    hasher.finish()
}

/// A batch with text, numbers, a list of structs with nulls at both levels, and a nullable list.
fn nested(rows: usize) -> RecordBatch {
    let text: LargeStringArray = (0..rows)
        .map(|row| (row % 3 != 0).then(|| format!("text {row}")))
        .collect();
    let numbers: Int64Array = (0..rows as i64).map(Some).collect();
    let fields = Fields::from(vec![
        Field::new("role", DataType::LargeUtf8, false),
        Field::new("weight", DataType::Float32, true),
    ]);
    let items = rows * 2;
    let roles: LargeStringArray = (0..items)
        .map(|item| Some(format!("role {item}")))
        .collect();
    let weights: Float32Array = (0..items)
        .map(|item| (item % 4 != 1).then_some(item as f32))
        .collect();
    let item_nulls = NullBuffer::from((0..items).map(|item| item % 5 != 2).collect::<Vec<_>>());
    let structs = StructArray::new(
        fields.clone(),
        vec![Arc::new(roles), Arc::new(weights)],
        Some(item_nulls),
    );
    let list_nulls = NullBuffer::from((0..rows).map(|row| row % 7 != 3).collect::<Vec<_>>());
    let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
    let lists = LargeListArray::new(
        Arc::clone(&item),
        OffsetBuffer::from_lengths(vec![2; rows]),
        Arc::new(structs),
        Some(list_nulls),
    );
    let schema = Schema::new(vec![
        Field::new("text", DataType::LargeUtf8, true),
        Field::new("number", DataType::Int64, false),
        Field::new("parts", DataType::LargeList(item), true),
    ]);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![Arc::new(text), Arc::new(numbers), Arc::new(lists)],
    )
    .unwrap()
}

fn one_column(name: &str, column: ArrayRef) -> RecordBatch {
    let field = Field::new(name, column.data_type().clone(), column.is_nullable());
    RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap()
}

#[test]
fn batch_boundaries_leave_no_trace() {
    let whole = nested(100);
    let expected = digest(std::slice::from_ref(&whole));
    for size in [1, 3, 7, 64] {
        let pieces: Vec<RecordBatch> = (0..100)
            .step_by(size)
            .map(|start| whole.slice(start, size.min(100 - start)))
            .collect();
        assert_eq!(digest(&pieces), expected, "batches of {size} rows");
    }
    let empty = whole.slice(0, 0);
    assert_eq!(
        digest(&[
            empty.clone(),
            whole.slice(0, 40),
            empty,
            whole.slice(40, 60)
        ]),
        expected
    );
}

#[test]
fn what_lies_under_a_null_does_not_count() {
    let nulls = NullBuffer::from(vec![true, false, true]);
    let left = Int64Array::new(vec![1, 2, 3].into(), Some(nulls.clone()));
    let right = Int64Array::new(vec![1, 9, 3].into(), Some(nulls));
    assert_eq!(
        digest(&[one_column("a", Arc::new(left))]),
        digest(&[one_column("a", Arc::new(right))])
    );
}

#[test]
fn rows_values_names_and_types_count() {
    let base = one_column("a", Arc::new(Int64Array::from(vec![1, 2, 3])));
    let mut seen = vec![digest(std::slice::from_ref(&base))];
    let variants: Vec<RecordBatch> = vec![
        one_column("a", Arc::new(Int64Array::from(vec![1, 2, 4]))),
        one_column("a", Arc::new(Int64Array::from(vec![2, 1, 3]))),
        one_column("a", Arc::new(Int64Array::from(vec![1, 2]))),
        one_column("b", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        one_column("a", Arc::new(UInt32Array::from(vec![1, 2, 3]))),
        one_column(
            "a",
            Arc::new(Int64Array::from(vec![Some(1), Some(2), None])),
        ),
        one_column("a", Arc::new(LargeStringArray::from(vec!["ab", "c"]))),
        one_column("a", Arc::new(LargeStringArray::from(vec!["a", "bc"]))),
        one_column(
            "a",
            Arc::new(LargeStringArray::from(vec![Some("a"), None, Some("")])),
        ),
        one_column(
            "a",
            Arc::new(LargeStringArray::from(vec![Some("a"), Some(""), None])),
        ),
    ];
    for variant in &variants {
        let digest = digest(std::slice::from_ref(variant));
        assert!(!seen.contains(&digest), "{variant:?}");
        seen.push(digest);
    }
}

#[test]
fn the_digest_is_the_one_of_earlier_versions() {
    // A change here makes every stored artifact a stranger: raise the version in the layout instead.
    assert_eq!(
        digest(&[nested(10)]).as_str(),
        "42cb3620a6c91f87db3f68bb32eff96a060f6d027c2a2751e953aaf58cc05287"
    );
}
