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

/// A turn of a conversation: its role, and its text or `image:DIGEST`.
pub(crate) type Turn<'a> = (&'a str, &'a str);

/// Examples whose conversations have several turns: prompt id, turns before the last answer, the last answer.
pub(crate) fn conversation_batch(rows: &[(&str, &[Turn<'_>], &str)]) -> RecordBatch {
    let texts: Vec<(&str, &str, Option<&[u32]>)> = rows
        .iter()
        .map(|(id, _, text)| (*id, *text, None))
        .collect();
    let turns: Vec<&[Turn<'_>]> = rows.iter().map(|(_, turns, _)| *turns).collect();
    let mut columns = example_batch(&texts).columns().to_vec();
    columns[1] = conversations(&turns);
    RecordBatch::try_new(TableName::Examples.schema(), columns).unwrap()
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
    let turns: Vec<[Turn<'_>; 1]> = questions.iter().map(|text| [("user", *text)]).collect();
    conversations(
        &turns
            .iter()
            .map(<[Turn<'_>; 1]>::as_slice)
            .collect::<Vec<_>>(),
    )
}

fn conversations(rows: &[&[Turn<'_>]]) -> ArrayRef {
    let item = |fields: Fields| Arc::new(Field::new("item", DataType::Struct(fields), false));
    let content = LargeListBuilder::new(StructBuilder::from_fields(content_fields(), 0))
        .with_field(item(content_fields()));
    let turn = StructBuilder::new(
        message_fields(),
        vec![Box::new(LargeStringBuilder::new()), Box::new(content)],
    );
    let mut turns = LargeListBuilder::new(turn).with_field(item(message_fields()));
    for row in rows {
        for (role, text) in *row {
            push_turn(turns.values(), role, text);
        }
        turns.append(true);
    }
    let column = turns.finish();
    assert_eq!(
        arrow::array::Array::data_type(&column),
        &list(DataType::Struct(message_fields()))
    );
    Arc::new(column)
}

fn push_turn(turn: &mut StructBuilder, role: &str, text: &str) {
    turn.field_builder::<LargeStringBuilder>(0)
        .unwrap()
        .append_value(role);
    let content = turn
        .field_builder::<LargeListBuilder<StructBuilder>>(1)
        .unwrap();
    let part = content.values();
    let (kind, text, image) = match text.strip_prefix("image:") {
        Some(digest) => ("image", None, Some(digest)),
        None => ("text", Some(text), None),
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
}
