//! Chat templates of model folders: Jinja as Hugging Face renders it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::chat::Chat;
use super::{methods, python};

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

/// What a template may always name.
const GIVEN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Names of special tokens that templates print whether the tokenizer has them or not.
const TOKEN_NAMES: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// Refuses to print what is undefined, but not the missing half of an `if` without `else`, which nothing but its own check
/// can tell apart.
static STRICT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment
});

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
    pub fn new(
        source: String,
        mut special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // Errors then know the expression that failed.
        environment.set_debug(true);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, _, value| {
            if value.is_undefined() {
                return STRICT.empty_state().format(value.clone()).map(drop);
            }
            let mut text = String::new();
            python::write_str(&mut text, value);
            out.write_str(&text).map_err(Error::from)
        });
        add_functions(&mut environment);
        // Jinja reads all kinds of line ends as one.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment
            .add_template_owned(NAME, without_generation_tags(&source))
            .map_err(|error| error.to_string())?;
        for name in TOKEN_NAMES {
            special_tokens.entry(name.to_owned()).or_default();
        }
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// When the template refuses the conversation or names something unknown, or a variable is given that it does not read; a
    /// lower-case fragment that says which.
    pub fn render(&self, chat: &Chat) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| error.to_string())?;
        check_variables(chat, template.source())?;
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            variables.insert(name, token.into());
        }
        variables.insert("documents", Value::from(()));
        for (name, value) in &chat.variables {
            variables.insert(name, Value::from_serialize(value));
        }
        variables.insert("messages", Value::from_serialize(&chat.messages));
        variables.insert("tools", Value::from_serialize(&chat.tools));
        variables.insert("add_generation_prompt", chat.add_generation_prompt.into());
        template
            .render(Value::from_serialize(variables))
            .map_err(|error| explain(&error, template.source()))
    }
}

fn check_variables(chat: &Chat, source: &str) -> Result<(), String> {
    for name in chat.variables.keys() {
        if GIVEN.contains(&name.as_str()) && name != "documents" {
            return Err(format!(
                "`{name}` is given to the chat template by itself, not as a variable"
            ));
        }
        if !has_word(source, name) {
            return Err(format!(
                "the chat template reads no variable `{name}`; take it away or correct its name"
            ));
        }
    }
    Ok(())
}

fn add_functions(environment: &mut Environment<'static>) {
    environment.add_function(
        "raise_exception",
        |message: Value| -> Result<Value, Error> {
            let mut text = String::new();
            python::write_str(&mut text, &message);
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
                .with_source(Refusal(text)))
        },
    );
    environment.add_function("strftime_now", |format: String| fixed_date(&format));
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        python::to_json(&value, &options)
    });
    environment.add_filter("string", |value: Value| {
        let mut text = String::new();
        python::write_str(&mut text, &value);
        text
    });
    environment.add_filter("trim", |value: Value, set: Option<String>| {
        let mut text = String::new();
        python::write_str(&mut text, &value);
        let matches = |character: char| match &set {
            Some(set) => set.contains(character),
            None => methods::is_space(character),
        };
        text.trim_matches(matches).to_owned()
    });
    environment.add_filter("indent", methods::indent);
    let length = |value: Value| match value.kind() {
        ValueKind::Undefined => Ok(0),
        kind => value.len().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of the kind `{kind}` has no length"),
            )
        }),
    };
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    // In Python texts and dictionaries count as sequences, what is undefined can be iterated, and `none` cannot.
    let is_sequence = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Iterable
        )
    };
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", move |value: &Value| {
        value.is_undefined() || is_sequence(value)
    });
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Why rendering failed, with the expression of the template.
fn explain(error: &Error, template: &str) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(Refusal(message)) = this.downcast_ref() {
            return format!("the chat template refuses the conversation: {message}");
        }
        cause = this.source();
    }
    let line = error
        .line()
        .map_or_else(String::new, |line| format!(", line {line}"));
    let expression = error
        .range()
        .and_then(|range| template.get(start_of_expression(template, range.start)?..range.end))
        .map(|text| text.trim().trim_matches(['{', '}', '%', '-']).trim())
        .filter(|text| !text.is_empty() && text.len() < 200)
        .map_or_else(String::new, |text| format!(", `{text}`"));
    if error.kind() == ErrorKind::UndefinedError {
        return format!(
            "the chat template{line}{expression}: a variable or field that is not there"
        );
    }
    let reason = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    format!("the chat template{line}{expression}: {reason}")
}

/// The engine points at the last field or index of a chain; the reader wants the whole of it.
fn start_of_expression(template: &str, at: usize) -> Option<usize> {
    let is_part = |character: char| character.is_alphanumeric() || "_.[]'\"".contains(character);
    let before = template.get(..at)?.trim_end_matches(is_part);
    Some(before.len())
}

/// Whether a name stands in a template as a word.
pub(super) fn has_word(source: &str, name: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    source.match_indices(name).any(|(start, _)| {
        let before = source[..start].chars().next_back();
        let after = source[start + name.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// `{% generation %}` marks what an assistant said, for training. It changes no text, so it becomes a block that always counts;
/// lines stay where they are.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let end = start + length + 2;
        let inside = &rest[start + 2..end - 2];
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..start]);
        match replacement {
            Some(replacement) => {
                out.push_str("{%");
                out.push_str(&inside.replace(name, replacement));
                out.push_str("%}");
            }
            None => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
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

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
