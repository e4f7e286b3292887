//! Small tables for tests.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, LargeListBuilder, LargeStringArray, LargeStringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, UInt32Type};
use arrow::record_batch::RecordBatch;
use schemas::TableName;
use schemas::tables::{content_fields, list, message_fields};

use crate::columns::list_builder;

/// Prompts of one user turn: id, question, gold answer, worked solution. A question `image:DIGEST` is an image.
pub(crate) fn prompt_batch(rows: &[(&str, &str, Option<&str>, Option<&str>)]) -> RecordBatch {
    let ids = LargeStringArray::from_iter_values(rows.iter().map(|row| row.0));
    let answers: LargeStringArray = rows.iter().map(|row| row.2).collect();
    let solutions: LargeStringArray = rows.iter().map(|row| row.3).collect();
    let categories: LargeStringArray = rows.iter().map(|_| Some("sum")).collect();
    let sources = LargeStringArray::from_iter_values(rows.iter().map(|_| "test"));
    let questions: Vec<&str> = rows.iter().map(|row| row.1).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        messages(&questions),
        Arc::new(answers),
        Arc::new(solutions),
        Arc::new(categories),
        Arc::new(sources),
    ];
    RecordBatch::try_new(TableName::Prompts.schema(), columns).unwrap()
}

/// Examples: prompt id, text, token ids.
pub(crate) fn example_batch(rows: &[(&str, &str, Option<&[u32]>)]) -> RecordBatch {
    let mut token_ids = list_builder::<UInt32Type>();
    for (_, _, ids) in rows {
        if let Some(ids) = ids {
            token_ids.values().append_slice(ids);
        }
        token_ids.append(ids.is_some());
    }
    let questions: Vec<&str> = rows.iter().map(|_| "Why?").collect();
    let models: LargeStringArray = rows.iter().map(|_| None::<&str>).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(LargeStringArray::from_iter_values(
            rows.iter().map(|row| row.0),
        )),
        messages(&questions),
        Arc::new(LargeStringArray::from_iter_values(
            rows.iter().map(|row| row.1),
        )),
        Arc::new(token_ids.finish()),
        Arc::new(LargeStringArray::from_iter_values(
            rows.iter().map(|_| "self"),
        )),
        Arc::new(models),
    ];
    RecordBatch::try_new(TableName::Examples.schema(), columns).unwrap()
}

fn messages(questions: &[&str]) -> ArrayRef {
    let item = |fields: Fields| Arc::new(Field::new("item", DataType::Struct(fields), false));
    let content = LargeListBuilder::new(StructBuilder::from_fields(content_fields(), 0))
        .with_field(item(content_fields()));
    let turn = StructBuilder::new(
        message_fields(),
        vec![Box::new(LargeStringBuilder::new()), Box::new(content)],
    );
    let mut turns = LargeListBuilder::new(turn).with_field(item(message_fields()));
    for question in questions {
        let turn = turns.values();
        turn.field_builder::<LargeStringBuilder>(0)
            .unwrap()
            .append_value("user");
        let content = turn
            .field_builder::<LargeListBuilder<StructBuilder>>(1)
            .unwrap();
        let part = content.values();
        let (kind, text, image) = match question.strip_prefix("image:") {
            Some(digest) => ("image", None, Some(digest)),
            None => ("text", Some(*question), None),
        };
        part.field_builder::<LargeStringBuilder>(0)
            .unwrap()
            .append_value(kind);
        part.field_builder::<LargeStringBuilder>(1)
            .unwrap()
            .append_option(text);
        part.field_builder::<LargeStringBuilder>(2)
            .unwrap()
            .append_option(image);
        part.append(true);
        content.append(true);
        turn.append(true);
        turns.append(true);
    }
    let column = turns.finish();
    assert_eq!(
        arrow::array::Array::data_type(&column),
        &list(DataType::Struct(message_fields()))
    );
    Arc::new(column)
}
