//! Prompts as operators use them, read from the `prompts` table.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, LargeListArray, LargeStringArray, StructArray};
use arrow::record_batch::RecordBatch;
use engine_core::{OperatorError, StageView, seed};
use operators_verifier::question_text;

use crate::columns::{optional_text, text_column};

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentPart {
    /// Some text.
    Text(String),
    /// An image, by its media digest.
    Image(String),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: Vec<ContentPart>,
}

impl Message {
    /// The text parts, joined.
    #[must_use]
    pub fn text(&self) -> String {
        let texts = self.content.iter().filter_map(|part| match part {
            ContentPart::Text(text) => Some(text.as_str()),
            ContentPart::Image(_) => None,
        });
        texts.collect()
    }
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptRow {
    /// Its identity.
    pub prompt_id: String,
    /// The conversation up to the answer.
    pub messages: Vec<Message>,
    /// The gold answer, where the table has one.
    pub answer: Option<String>,
    /// The worked solution, where the table has one.
    pub solution: Option<String>,
}

impl PromptRow {
    /// Digests of its images, in order.
    pub fn image_digests(&self) -> impl Iterator<Item = &str> {
        self.messages
            .iter()
            .flat_map(|message| &message.content)
            .filter_map(|part| match part {
                ContentPart::Image(digest) => Some(digest.as_str()),
                ContentPart::Text(_) => None,
            })
    }

    /// The gold answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn gold(&self) -> Result<&str, OperatorError> {
        self.answer.as_deref().ok_or_else(|| {
            self.fault(
                "it has no answer, so nothing can be verified; give it one or leave the prompt out",
            )
        })
    }

    /// What is asked, as verifiers see it: the text of the last user turns.
    #[must_use]
    pub fn question(&self) -> String {
        question_text(self.messages.iter().map(|message| {
            let parts = message.content.iter().map(|part| match part {
                ContentPart::Text(text) => Some(text.as_str()),
                ContentPart::Image(_) => None,
            });
            (message.role.as_str(), parts)
        }))
    }

    /// An error about this prompt.
    #[must_use]
    pub fn fault(&self, message: &str) -> OperatorError {
        OperatorError::Data(format!("prompt `{}`: {message}", self.prompt_id))
    }
}

/// Reads all prompts of an input port.
///
/// # Errors
/// When the store fails or a prompt id occurs twice.
pub fn read_prompts(view: &dyn StageView, port: &str) -> Result<Vec<PromptRow>, OperatorError> {
    let mut rows = Vec::new();
    for batch in view.read(port)? {
        rows.extend(prompt_rows(&batch?)?);
    }
    let mut seen = HashSet::with_capacity(rows.len());
    match rows.iter().find(|row| !seen.insert(&row.prompt_id)) {
        Some(row) => Err(repeated(&row.prompt_id)),
        None => Ok(rows),
    }
}

/// Looks through the ids of an input port whose rows are read elsewhere, part by part.
///
/// # Errors
/// When the store fails or a prompt id occurs twice.
pub(crate) fn check_prompt_ids(view: &dyn StageView, port: &str) -> Result<(), OperatorError> {
    // Ids are remembered as the 64 bits that name their random streams: what must not occur twice.
    let mut seen = HashSet::new();
    for batch in view.read(port)? {
        let batch = batch?;
        let ids = text_column(&batch, "prompt_id")?;
        let twice = (0..ids.len())
            .map(|row| ids.value(row))
            .find(|id| !seen.insert(seed::prompt_stream(id)));
        if let Some(id) = twice {
            return Err(repeated(id));
        }
    }
    Ok(())
}

fn repeated(prompt_id: &str) -> OperatorError {
    OperatorError::Data(format!(
        "prompt `{prompt_id}`: its id occurs twice; ids must be unique, because samples are drawn by them"
    ))
}

/// The prompts of a batch.
///
/// # Errors
/// `Internal` when a column is missing.
pub fn prompt_rows(batch: &RecordBatch) -> Result<Vec<PromptRow>, OperatorError> {
    let ids = text_column(batch, "prompt_id")?;
    let messages = messages_column(batch)?;
    let answers = optional_text(batch, "answer");
    let solutions = optional_text(batch, "solution");
    let row = |row: usize| PromptRow {
        prompt_id: ids.value(row).to_owned(),
        messages: messages_at(messages, row),
        answer: answers.and_then(|column| text_at(column, row)),
        solution: solutions.and_then(|column| text_at(column, row)),
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// The `messages` column.
pub(crate) fn messages_column(batch: &RecordBatch) -> Result<&LargeListArray, OperatorError> {
    batch
        .column_by_name("messages")
        .filter(|column| column.data_type() == &schemas::tables::messages_type())
        .map(AsArray::as_list::<i64>)
        .ok_or_else(|| {
            OperatorError::Internal("column `messages` is missing or has another type".into())
        })
}

/// The conversation of one row.
pub(crate) fn messages_at(column: &LargeListArray, row: usize) -> Vec<Message> {
    let turns = column.value(row);
    let turns = turns.as_struct();
    let roles = field_text(turns, "role");
    let contents = turns
        .column_by_name("content")
        .expect("the message type has a content")
        .as_list::<i64>();
    (0..turns.len())
        .map(|turn| Message {
            role: roles.value(turn).to_owned(),
            content: parts(contents.value(turn).as_struct()),
        })
        .collect()
}

fn parts(content: &StructArray) -> Vec<ContentPart> {
    let texts = field_text(content, "text");
    let images = field_text(content, "image");
    (0..content.len())
        .map(|part| match text_at(images, part) {
            Some(digest) => ContentPart::Image(digest),
            None => ContentPart::Text(text_at(texts, part).unwrap_or_default()),
        })
        .collect()
}

fn field_text<'a>(array: &'a StructArray, name: &str) -> &'a LargeStringArray {
    array
        .column_by_name(name)
        .expect("the message type has this field")
        .as_string::<i64>()
}

fn text_at(column: &LargeStringArray, row: usize) -> Option<String> {
    column.is_valid(row).then(|| column.value(row).to_owned())
}
