//! A conversation as chat templates take it: messages, tools and variables, all of them JSON.

use serde_json::{Map, Value, json};

use crate::prompt_rows::{ContentPart, Message};

/// What a chat template is rendered with.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// Turns: objects with `role` and `content` (text, or a list of `{"type": "text", "text": ..}` and `{"type": "image"}`), and
    /// what else the template reads, such as `tool_calls`, `reasoning_content` or `name`.
    pub messages: Vec<Value>,
    /// Descriptions of the functions that the model may call; the template gets `none` where there are none.
    pub tools: Option<Vec<Value>>,
    /// Further variables, such as `enable_thinking`. The template must name each of them.
    pub variables: Map<String, Value>,
    /// Whether the text ends with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
}

impl Chat {
    /// A conversation that the assistant is to continue.
    #[must_use]
    pub fn new(messages: Vec<Value>) -> Self {
        Self {
            messages,
            tools: None,
            variables: Map::new(),
            add_generation_prompt: true,
        }
    }

    /// The conversation of a prompt.
    #[must_use]
    pub fn from_messages(messages: &[Message]) -> Self {
        Self::new(messages.iter().map(message_value).collect())
    }

    /// The same with tools.
    #[must_use]
    pub fn with_tools(mut self, tools: Vec<Value>) -> Self {
        self.tools = Some(tools);
        self
    }

    /// The same with a further variable.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: Value) -> Self {
        self.variables.insert(name.to_owned(), value);
        self
    }
}

/// A message as templates expect it: plain text where there is only text, else a list of typed parts.
fn message_value(message: &Message) -> Value {
    let has_image = message
        .content
        .iter()
        .any(|part| matches!(part, ContentPart::Image(_)));
    let content: Value = if has_image {
        let parts = message.content.iter().map(|part| match part {
            ContentPart::Text(text) => json!({ "type": "text", "text": text }),
            ContentPart::Image(_) => json!({ "type": "image" }),
        });
        parts.collect()
    } else {
        message.text().into()
    };
    json!({ "role": message.role, "content": content })
}
