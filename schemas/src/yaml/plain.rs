//! Values as YAML text that reads back as the same values.

use super::node::{Entry, Node, Scalar, ScalarKind, Value};

/// Columns up to which a list or mapping stays on its line.
const WIDTH: usize = 100;

/// Writes a mapping of mappings, indented by two columns a level.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    text: String,
}

impl Writer {
    /// The text so far.
    pub(crate) fn finish(self) -> String {
        self.text
    }

    /// Opens a mapping under a key; what is written after it is indented deeper.
    pub(crate) fn open(&mut self, indent: usize, key: &str) {
        self.text += &format!("{}{}:\n", " ".repeat(indent), word(key));
    }

    /// A key with a value that is YAML already.
    pub(crate) fn raw(&mut self, indent: usize, key: &str, value: &str) {
        self.text += &format!("{}{}: {value}\n", " ".repeat(indent), word(key));
    }

    /// A key with a text.
    pub(crate) fn text(&mut self, indent: usize, key: &str, value: &str) {
        self.raw(indent, key, &word(value));
    }

    /// A text as one word, in quotes where it needs them.
    pub(crate) fn word(text: &str) -> String {
        word(text)
    }

    /// A key with its value.
    pub(crate) fn entry(&mut self, indent: usize, entry: &Entry) {
        let start = format!("{}{}:", " ".repeat(indent), word(&entry.key));
        self.value(indent, &start, &entry.value);
    }

    fn value(&mut self, indent: usize, start: &str, node: &Node) {
        let short = flow(node);
        let fits = start.len() + 1 + short.len() <= WIDTH;
        self.text += start;
        match &node.value {
            Value::Map(entries) if !fits => {
                self.text.push('\n');
                for entry in entries {
                    self.entry(indent + 2, entry);
                }
            }
            Value::List(items) if !fits => {
                self.text.push('\n');
                let dash = format!("{}-", " ".repeat(indent + 2));
                for item in items {
                    self.value(indent + 2, &dash, item);
                }
            }
            Value::Scalar(scalar) if scalar.kind == ScalarKind::Text && is_block(&scalar.text) => {
                let (mark, body) = match scalar.text.strip_suffix('\n') {
                    Some(body) => ("|", body),
                    None => ("|-", scalar.text.as_str()),
                };
                self.text += &format!(" {mark}\n");
                for line in escaped(body).lines() {
                    let margin = if line.is_empty() { 0 } else { indent + 4 };
                    self.text += &format!("{}{line}\n", " ".repeat(margin));
                }
            }
            _ => self.text += &format!(" {short}\n"),
        }
    }
}

/// A text of several lines that may stand as it is.
fn is_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let is_plain = |character: char| character == '\n' || !character.is_control();
    body.contains('\n')
        && !body.starts_with([' ', '\n'])
        && !body.ends_with('\n')
        && body.lines().all(|line| !line.ends_with(' '))
        && body.chars().all(is_plain)
        && !body.contains(['\u{2028}', '\u{2029}', '\u{feff}', '\u{85}'])
}

/// A value on one line.
fn flow(node: &Node) -> String {
    match &node.value {
        Value::Scalar(scalar) => self::scalar(scalar),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| format!("{}: {}", word(&entry.key), flow(&entry.value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

fn scalar(scalar: &Scalar) -> String {
    match scalar.kind {
        ScalarKind::Null => "null".to_owned(),
        ScalarKind::Bool(_) | ScalarKind::Integer(_) | ScalarKind::Float(_) => scalar.text.clone(),
        ScalarKind::Text | ScalarKind::Unresolved => word(&escaped(&scalar.text)),
    }
}

/// `${` would be read as a reference.
fn escaped(text: &str) -> String {
    text.replace("${", "$${")
}

/// A text without quotes where it cannot be anything else, else in quotes.
fn word(text: &str) -> String {
    let starts_as_word = text
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '/');
    let is_word = text
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || "-_./".contains(character));
    // Words that some reader takes for something else.
    let is_reserved = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if starts_as_word && is_word && !is_reserved {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{85}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other if other.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::node::read;
    use super::*;

    fn shape(node: &Node) -> String {
        match &node.value {
            Value::Scalar(scalar) => format!("{:?} {:?}", scalar.kind, scalar.text),
            Value::List(items) => format!("{:?}", items.iter().map(shape).collect::<Vec<_>>()),
            Value::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|entry| (&entry.key, shape(&entry.value)));
                format!("{:?}", entries.collect::<Vec<_>>())
            }
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = "a: { b: 1.0e-5, c: [x, \"2\", true, null, -3], \"d e\": \"say \\\"hi\\\" \\\\ \\u0007\" }\n\
            on: 'no'\nyes: \"\"\nlong: [aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb, { k: ccccccccccccccccccccccccccccccccccc }]\n\
            sql: |\n  select a\n    from t\n\n  where x = 'y: #z'\nlast: \"two\\nlines\"\nodd: \" a\\n b \\n\"\n\
            deep: { one: { two: { three: 'a fairly long text with spaces in it', four: 'and another one of these', five: 5 } } }\n";
        let (root, problems) = read(text, 0);
        assert!(problems.is_empty(), "{problems:?}");
        let root = root.expect("it is a tree");
        let mut writer = Writer::default();
        for entry in root.entries().expect("it is a mapping") {
            writer.entry(0, entry);
        }
        let written = writer.finish();
        let (again, problems) = read(&written, 0);
        assert!(problems.is_empty(), "{problems:?}\n{written}");
        assert_eq!(
            shape(&again.expect("it is a tree")),
            shape(&root),
            "{written}"
        );
        assert!(written.contains("sql: |\n    select a\n"), "{written}");
    }
}
