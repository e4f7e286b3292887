//! A YAML text as a tree in which every key and value has its place.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Spanned};

use crate::{Problem, Span};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

/// What stands there.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A word, a number, a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scalar {
    pub(crate) kind: ScalarKind,
    /// As written, without quotes.
    pub(crate) text: String,
}

/// What a scalar means where no type is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ScalarKind {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text,
    /// Text with a reference that could not be resolved, which was reported: it passes as anything.
    Unresolved,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

/// A node with the name that messages give it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) node: &'a Node,
    pub(crate) name: &'a str,
    /// Place of the key, or of the node itself where it has none.
    pub(crate) key_span: Span,
}

impl<'a> Place<'a> {
    /// The place at a path of keys and list positions below.
    pub(crate) fn find(self, path: &[&'a str]) -> Option<Place<'a>> {
        path.iter()
            .try_fold(self, |place, step| match &place.node.value {
                Value::Map(_) => place.node.entry(step).map(Entry::place),
                Value::List(items) => {
                    let item = items.get(step.parse::<usize>().ok()?)?;
                    Some(Place {
                        node: item,
                        name: place.name,
                        key_span: item.span,
                    })
                }
                Value::Scalar(_) => None,
            })
    }

    /// The value when it is a scalar, otherwise the key: a mapping over many lines is no place to point at.
    pub(crate) fn span(&self) -> Span {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => self.node.span,
            _ => self.key_span,
        }
    }
}

impl Node {
    /// The entries of a mapping.
    pub(crate) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entry with this key.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries()?.iter().find(|entry| entry.key == key)
    }

    /// The entry with this key, to change it.
    pub(crate) fn entry_mut(&mut self, key: &str) -> Option<&mut Entry> {
        match &mut self.value {
            Value::Map(entries) => entries.iter_mut().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// Removes the entry with this key.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let position = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(position))
    }

    /// Replaces the entry with the same key, or adds it at the end. Does nothing to what is no mapping.
    pub(crate) fn put(&mut self, entry: Entry) {
        let Value::Map(entries) = &mut self.value else {
            return;
        };
        match entries.iter_mut().find(|other| other.key == entry.key) {
            Some(other) => *other = entry,
            None => entries.push(entry),
        }
    }

    /// The place at a path of keys and list positions.
    pub(crate) fn find<'a>(&'a self, path: &[&'a str]) -> Option<Place<'a>> {
        let start = Place {
            node: self,
            name: "the file",
            key_span: self.span,
        };
        start.find(path)
    }

    /// Moves all places, for a text that stands behind others.
    fn shift(&mut self, base: usize) {
        self.span.start += base;
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(base)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.key_span.start += base;
                    entry.value.shift(base);
                }
            }
        }
    }

    /// What it is, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => "nothing".to_owned(),
                _ if scalar.text.chars().count() > 40 => "a long text".to_owned(),
                _ => format!("`{}`", scalar.text),
            },
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

impl Entry {
    /// The value as a place.
    pub(crate) fn place(&self) -> Place<'_> {
        Place {
            node: &self.value,
            name: &self.key,
            key_span: self.key_span,
        }
    }
}

/// Reads a text whose first byte has the place `base`. Syntax mistakes leave no tree; duplicate keys leave the first of each.
pub(crate) fn read(text: &str, base: usize) -> (Option<Node>, Vec<Problem>) {
    let (mut root, mut problems) = read_value(text, base);
    if matches!(&root, Some(Node { value: Value::Scalar(scalar), .. }) if scalar.kind == ScalarKind::Null)
    {
        let start = Span {
            start: base,
            len: 0,
        };
        problems = vec![Problem::new("syntax", "the file says nothing", start)];
        root = None;
    }
    (root, problems)
}

/// As [`read`], for a text that may say nothing.
pub(crate) fn read_value(text: &str, base: usize) -> (Option<Node>, Vec<Problem>) {
    let (mut root, mut problems) = parse(text);
    if base > 0 {
        if let Some(root) = &mut root {
            root.shift(base);
        }
        for problem in &mut problems {
            problem.shift(base);
        }
    }
    (root, problems)
}

fn parse(text: &str) -> (Option<Node>, Vec<Problem>) {
    // Byte offsets are counted without a byte order mark by the parser; nobody needs one in UTF-8.
    if text.starts_with('\u{feff}') {
        let problem = Problem::new(
            "syntax",
            "the file starts with a byte order mark",
            Span { start: 0, len: 3 },
        )
        .with_help("save it as UTF-8 without a byte order mark");
        return (None, vec![problem]);
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => {
            let mut problems = Vec::new();
            let root = resolve(raw, text, &mut problems);
            (Some(root), problems)
        }
        Err(error) => (None, vec![syntax_problem(error.without_snippet(), text)]),
    }
}

fn syntax_problem(error: &Error, text: &str) -> Problem {
    let span = error
        .location()
        .map_or_else(Span::default, |location| span_in(text, &location));
    // The end of the text has no character to point at.
    let last = text
        .trim_end()
        .char_indices()
        .next_back()
        .map_or(0, |(start, _)| start);
    let start = span.start.min(last);
    let letter = text[start..].chars().next().map_or(0, char::len_utf8);
    let span = Span {
        start,
        len: span.len.clamp(letter, text.len() - start),
    };
    match error {
        Error::ExternalMessage { msg, .. } | Error::Message { msg, .. } => {
            Problem::new("syntax", format!("this is not valid YAML: {msg}"), span)
        }
        Error::MultipleDocuments { .. } => {
            Problem::new("syntax", "the file holds more than one YAML document", span)
                .with_help("keep one pipeline in one file, without `---` lines between")
        }
        Error::Eof { .. } => Problem::new("syntax", "the file is empty or ends too early", span),
        Error::UnknownAnchor { .. } => {
            Problem::new("syntax", "this alias has no anchor before it", span)
        }
        other => {
            let message = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            // The span says where.
            let line = message.lines().next().unwrap_or_default();
            let message = line.split(" at line ").next().unwrap_or_default();
            if message.contains("too large or too complex") {
                let message = "the file is too large or too deeply nested, with all that its aliases stand for";
                return Problem::new("syntax", message, span)
                    .with_help("write less by alias, or several files with `include`");
            }
            Problem::new("syntax", format!("this is not valid YAML: {message}"), span)
        }
    }
}

fn span_of(location: &Location) -> Span {
    let span = location.span();
    let start = usize::try_from(span.byte_offset().unwrap_or(0)).unwrap_or(0);
    let len = usize::try_from(span.byte_len().unwrap_or(0)).unwrap_or(0);
    Span { start, len }
}

/// Place of a mistake of syntax, which often has no more than line and column, both from 1.
fn span_in(text: &str, location: &Location) -> Span {
    if location.span().byte_offset().is_some() {
        return span_of(location);
    }
    let as_index = |number: u64| {
        usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_sub(1)
    };
    let line_start: usize = text
        .split_inclusive('\n')
        .take(as_index(location.line()))
        .map(str::len)
        .sum();
    let column: usize = text[line_start..]
        .chars()
        .take(as_index(location.column()))
        .map(char::len_utf8)
        .sum();
    Span {
        start: line_start + column,
        len: 0,
    }
}

/// The tree as the YAML reader gives it.
enum Raw {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn resolve(raw: Spanned<Raw>, text: &str, problems: &mut Vec<Problem>) -> Node {
    let span = span_of(&raw.defined);
    let written = || {
        text.get(span.start..span.start + span.len)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let value = match raw.value {
        Raw::Null => Value::Scalar(Scalar {
            kind: ScalarKind::Null,
            text: String::new(),
        }),
        Raw::Bool(value) => Value::Scalar(Scalar {
            kind: ScalarKind::Bool(value),
            text: value.to_string(),
        }),
        Raw::Integer(value) => Value::Scalar(Scalar {
            kind: ScalarKind::Integer(value),
            text: written(),
        }),
        Raw::Float(value) => Value::Scalar(Scalar {
            kind: ScalarKind::Float(value),
            text: written(),
        }),
        Raw::Text(text) => Value::Scalar(Scalar {
            kind: ScalarKind::Text,
            text,
        }),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|item| resolve(item, text, problems))
                .collect(),
        ),
        Raw::Map(pairs) => Value::Map(resolve_map(pairs, text, problems)),
    };
    Node { span, value }
}

fn resolve_map(
    pairs: Vec<(Spanned<String>, Spanned<Raw>)>,
    text: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
    let mut positions: HashMap<String, usize> = HashMap::with_capacity(pairs.len());
    for (key, value) in pairs {
        let key_span = span_of(&key.defined);
        let value = resolve(value, text, problems);
        if let Some(first) = positions.get(&key.value).map(|first| &entries[*first]) {
            problems.push(
                Problem::new(
                    "duplicate-key",
                    format!("the key `{}` is given twice", key.value),
                    key_span,
                )
                .with_label("second")
                .with_other(first.key_span, "first")
                .with_help("remove or rename one of them"),
            );
        } else {
            positions.insert(key.value.clone(), entries.len());
            entries.push(Entry {
                key: key.value,
                key_span,
                value,
            });
        }
    }
    entries
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}
