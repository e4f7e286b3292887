//! Chat templates of model folders: Jinja as Hugging Face renders it.

use std::collections::BTreeMap;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

use crate::prompt_rows::{ContentPart, Message};

/// The date that `strftime_now` formats. A prompt must not depend on the day on which it is rendered, so this is
/// the fixed date that published templates fall back to.
const TEMPLATE_DATE: [(char, &str); 8] = [
    ('d', "26"),
    ('m', "07"),
    ('Y', "2024"),
    ('y', "24"),
    ('b', "Jul"),
    ('B', "July"),
    ('a', "Fri"),
    ('A', "Friday"),
];

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like, which templates may name.
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is not valid; the message has the line.
    pub fn new(source: String, special_tokens: BTreeMap<String, String>) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| fixed_date(&format));
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// The text of a conversation, with the opening of the assistant's turn.
    ///
    /// # Errors
    /// When the template refuses the conversation or names something unknown; a lower-case fragment.
    pub fn render(&self, messages: &[Message]) -> Result<String, String> {
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| error.to_string())?;
        let variables = context! {
            messages => messages,
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => true,
            ..Value::from_serialize(&self.special_tokens)
        };
        template
            .render(variables)
            .map_err(|error| format!("the chat template failed: {error}"))
    }
}

/// A message as templates expect it: plain text where there is only text, else a list of typed parts.
fn message_value(message: &Message) -> Value {
    let has_image = message
        .content
        .iter()
        .any(|part| matches!(part, ContentPart::Image(_)));
    let content = if has_image {
        let parts = message.content.iter().map(|part| match part {
            ContentPart::Text(text) => context! { type => "text", text => text },
            ContentPart::Image(_) => context! { type => "image" },
        });
        Value::from_iter(parts)
    } else {
        Value::from(message.text())
    };
    context! { role => message.role, content => content }
}

fn fixed_date(format: &str) -> String {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let Some(code) = characters.next() else { break };
        match TEMPLATE_DATE.iter().find(|(known, _)| *known == code) {
            Some((_, value)) => text.push_str(value),
            // Hours, minutes, seconds: midnight.
            None if matches!(code, 'H' | 'M' | 'S') => text.push_str("00"),
            None => text.push(code),
        }
    }
    text
}

/// `tojson` as Python's `json.dumps(value, ensure_ascii=False)` spells it, without HTML escapes.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let fault =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(
                    &mut bytes, formatter,
                ))
                .map_err(fault)?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes,
                PythonSpacing,
            ))
            .map_err(fault)?,
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// A space after every comma and colon.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
