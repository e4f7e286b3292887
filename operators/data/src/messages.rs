//! Builds the `messages` column of prompts.

use std::sync::Arc;

use arrow::array::{ArrayRef, LargeListArray, LargeStringBuilder, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use schemas::tables::{content_fields, message_fields};

/// Builds conversations row by row: [`MessagesBuilder::message`], its parts, the next message, [`MessagesBuilder::end_row`].
#[derive(Debug, Default)]
pub struct MessagesBuilder {
    roles: LargeStringBuilder,
    types: LargeStringBuilder,
    texts: LargeStringBuilder,
    images: LargeStringBuilder,
    parts_in_message: Vec<usize>,
    messages_in_row: Vec<usize>,
    open_messages: usize,
}

impl MessagesBuilder {
    /// Begins a message.
    pub fn message(&mut self, role: &str) {
        self.roles.append_value(role);
        self.parts_in_message.push(0);
        self.open_messages += 1;
    }

    /// Adds text to the message.
    pub fn text(&mut self, text: &str) {
        self.types.append_value("text");
        self.texts.append_value(text);
        self.images.append_null();
        self.end_part();
    }

    /// Adds an image, by the digest of its bytes, to the message.
    pub fn image(&mut self, digest: &str) {
        self.types.append_value("image");
        self.texts.append_null();
        self.images.append_value(digest);
        self.end_part();
    }

    fn end_part(&mut self) {
        *self
            .parts_in_message
            .last_mut()
            .expect("a part follows its message") += 1;
    }

    /// Ends the conversation of a row.
    pub fn end_row(&mut self) {
        self.messages_in_row
            .push(std::mem::take(&mut self.open_messages));
    }

    /// The column; the builder is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let parts = StructArray::new(
            content_fields(),
            vec![
                Arc::new(self.types.finish()),
                Arc::new(self.texts.finish()),
                Arc::new(self.images.finish()),
            ],
            None,
        );
        let content_item = Arc::new(Field::new(
            "item",
            DataType::Struct(content_fields()),
            false,
        ));
        let parts_in_message =
            OffsetBuffer::from_lengths(std::mem::take(&mut self.parts_in_message));
        let content = LargeListArray::new(content_item, parts_in_message, Arc::new(parts), None);
        let messages = StructArray::new(
            message_fields(),
            vec![Arc::new(self.roles.finish()), Arc::new(content)],
            None,
        );
        let message_item = Arc::new(Field::new(
            "item",
            DataType::Struct(message_fields()),
            false,
        ));
        let messages_in_row = OffsetBuffer::from_lengths(std::mem::take(&mut self.messages_in_row));
        Arc::new(LargeListArray::new(
            message_item,
            messages_in_row,
            Arc::new(messages),
            None,
        ))
    }
}
