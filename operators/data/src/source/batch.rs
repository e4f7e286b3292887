//! Converted rows as batches under our names.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeBinaryBuilder, LargeListBuilder, LargeStringArray, RecordBatch};
use arrow::datatypes::{Field, SchemaRef};
use engine_core::OperatorError;

use super::convert::Row;
use super::rows::{ANSWER, CATEGORY, ID, IMAGES, MESSAGES, PROBLEM, SOLUTION, SOURCE};
use super::turns::TurnPart;
use crate::messages::MessagesBuilder;

/// Bytes of a row, about.
pub(super) fn size(row: &Row) -> usize {
    let turns = row.turns.iter().flat_map(|turn| &turn.parts);
    let turns: usize = turns
        .map(|part| match part {
            TurnPart::Text(text) => text.len(),
            TurnPart::Image(_) => 8,
        })
        .sum();
    let texts = [&row.problem, &row.answer, &row.solution]
        .into_iter()
        .flatten();
    let images: usize = row.images.iter().map(Vec::len).sum();
    64 + turns + images + texts.map(String::len).sum::<usize>()
}

/// Converted rows as a batch; of one with a fault only the fault.
pub(super) fn batch(
    schema: &SchemaRef,
    rows: &[Result<Row, String>],
) -> Result<RecordBatch, OperatorError> {
    let texts = |of: fn(&Row) -> &Option<String>| -> ArrayRef {
        let values = rows.iter().map(|row| of(row.as_ref().ok()?).as_deref());
        Arc::new(values.collect::<LargeStringArray>())
    };
    let column = |field: &Arc<Field>| -> ArrayRef {
        match field.name().as_str() {
            PROBLEM => texts(|row| &row.problem),
            ANSWER => texts(|row| &row.answer),
            ID => texts(|row| &row.id),
            SOLUTION => texts(|row| &row.solution),
            CATEGORY => texts(|row| &row.category),
            SOURCE => texts(|row| &row.source),
            MESSAGES => conversations(rows),
            IMAGES => pictures(rows),
            _ => {
                let faults = rows.iter().map(|row| row.as_ref().err());
                Arc::new(faults.collect::<LargeStringArray>())
            }
        }
    };
    let arrays = schema.fields().iter().map(column).collect();
    Ok(RecordBatch::try_new(SchemaRef::clone(schema), arrays)?)
}

fn conversations(rows: &[Result<Row, String>]) -> ArrayRef {
    let mut messages = MessagesBuilder::default();
    for row in rows {
        for turn in row.iter().flat_map(|row| &row.turns) {
            messages.message(turn.role);
            for part in &turn.parts {
                match part {
                    TurnPart::Text(text) => messages.text(text),
                    TurnPart::Image(number) => messages.image(&number.to_string()),
                }
            }
        }
        messages.end_row();
    }
    messages.finish()
}

fn pictures(rows: &[Result<Row, String>]) -> ArrayRef {
    let mut lists = LargeListBuilder::new(LargeBinaryBuilder::new());
    for row in rows {
        for image in row.iter().flat_map(|row| &row.images) {
            lists.values().append_value(image);
        }
        lists.append(row.is_ok());
    }
    Arc::new(lists.finish())
}
