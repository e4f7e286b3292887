//! `${...}` in texts.
//!
//! A value that is one reference and nothing else becomes what it stands for, with its type. Inside a longer text the text
//! of it is inserted. `$${` stands for `${`.

use crate::yaml::{Node, Scalar, ScalarKind, Value};
use crate::{Problem, Span};

/// What a reference stands for; nothing when it is wrong, which is then reported.
pub(super) type Lookup<'a> = &'a dyn Fn(&str, Span, &mut Vec<Problem>) -> Option<Value>;

/// The reference that a text consists of.
pub(super) fn whole(text: &str) -> Option<&str> {
    let reference = text.strip_prefix("${")?.strip_suffix('}')?;
    (!reference.contains('}')).then(|| reference.trim())
}

/// Puts values in the place of all references below a node.
pub(super) fn substitute(node: &mut Node, lookup: Lookup<'_>, problems: &mut Vec<Problem>) {
    let span = node.span;
    match &mut node.value {
        Value::List(items) => items
            .iter_mut()
            .for_each(|item| substitute(item, lookup, problems)),
        Value::Map(entries) => entries
            .iter_mut()
            .for_each(|entry| substitute(&mut entry.value, lookup, problems)),
        Value::Scalar(scalar) if scalar.kind == ScalarKind::Text && scalar.text.contains("${") => {
            match resolve(&scalar.text, span, lookup, problems) {
                Some(value) => node.value = value,
                None => scalar.kind = ScalarKind::Unresolved,
            }
        }
        Value::Scalar(_) => {}
    }
}

/// The value of a text; nothing when a reference is wrong, which is then reported.
pub(super) fn resolve(
    text: &str,
    span: Span,
    lookup: Lookup<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    if let Some(reference) = whole(text) {
        return lookup(reference, span, problems);
    }
    let text = fill(text, span, lookup, &str::to_owned, problems)?;
    Some(Value::Scalar(Scalar {
        kind: ScalarKind::Text,
        text,
    }))
}

/// A text with the texts of values in the place of references, each changed by `change`.
pub(super) fn fill(
    text: &str,
    span: Span,
    lookup: Lookup<'_>,
    change: &dyn Fn(&str) -> String,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_right = true;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        let after = &rest[start + 2..];
        if let Some(literal) = before.strip_suffix('$') {
            filled.push_str(literal);
            filled.push_str("${");
            rest = after;
            continue;
        }
        filled.push_str(before);
        let Some(end) = after.find('}') else {
            problems.push(
                Problem::new("unknown-parameter", "`${` has no `}`", span)
                    .with_help("write `$${` for the characters themselves"),
            );
            return None;
        };
        let reference = after[..end].trim();
        match lookup(reference, span, problems) {
            Some(Value::Scalar(value)) if value.kind == ScalarKind::Unresolved => is_right = false,
            Some(Value::Scalar(value)) => filled.push_str(&change(&value.text)),
            Some(_) => {
                let message =
                    format!("`${{{reference}}}` is a list, which cannot stand inside a text");
                problems.push(
                    Problem::new("wrong-type", message, span)
                        .with_label("a list")
                        .with_help("let the reference be the whole value"),
                );
                is_right = false;
            }
            None => is_right = false,
        }
        rest = &after[end + 1..];
    }
    filled.push_str(rest);
    is_right.then_some(filled)
}
