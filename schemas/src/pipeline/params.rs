//! `params`, and `${params.name}` in the values of stages.
//!
//! A value that is one reference and nothing else becomes the parameter, with its type. Inside a longer text the
//! parameter's text is inserted. `$${` stands for `${`.

use std::cell::Cell;

use crate::problem::hint;
use crate::yaml::{Entry, Node, Scalar, ScalarKind, Value};
use crate::{Problem, Span};

/// A declared parameter.
pub(super) struct Param {
    name: String,
    span: Span,
    value: Scalar,
    is_used: Cell<bool>,
}

/// The parameters of a file.
pub(super) fn declared(root: &Node, problems: &mut Vec<Problem>) -> Vec<Param> {
    let Some(entry) = root.entry("params") else {
        return Vec::new();
    };
    let Some(entries) = entry.value.entries() else {
        problems.push(super::wrong_type(entry, "a mapping of names to values"));
        return Vec::new();
    };
    entries
        .iter()
        .filter_map(|entry| param(entry, problems))
        .collect()
}

fn param(entry: &Entry, problems: &mut Vec<Problem>) -> Option<Param> {
    match &entry.value.value {
        Value::Scalar(value) if value.kind != ScalarKind::Null => Some(Param {
            name: entry.key.clone(),
            span: entry.key_span,
            value: value.clone(),
            is_used: Cell::new(false),
        }),
        _ => {
            problems.push(super::wrong_type(
                entry,
                "a text, a number, `true` or `false`",
            ));
            None
        }
    }
}

/// Puts values in the place of references and reports unknown and unused parameters.
pub(super) fn substitute(stages: &mut Node, params: &[Param], problems: &mut Vec<Problem>) {
    walk(stages, params, problems);
    for param in params.iter().filter(|param| !param.is_used.get()) {
        problems.push(
            Problem::new(
                "unused-parameter",
                format!("no stage uses the parameter `{}`", param.name),
                param.span,
            )
            .with_label("unused")
            .with_help(format!(
                "write `${{params.{}}}` where it is meant, or remove it",
                param.name
            )),
        );
    }
}

fn walk(node: &mut Node, params: &[Param], problems: &mut Vec<Problem>) {
    let span = node.span;
    match &mut node.value {
        Value::List(items) => items
            .iter_mut()
            .for_each(|item| walk(item, params, problems)),
        Value::Map(entries) => entries
            .iter_mut()
            .for_each(|entry| walk(&mut entry.value, params, problems)),
        Value::Scalar(scalar) if scalar.kind == ScalarKind::Text && scalar.text.contains("${") => {
            match resolve(&scalar.text, span, params, problems) {
                Some(value) => *scalar = value,
                None => scalar.kind = ScalarKind::Unresolved,
            }
        }
        Value::Scalar(_) => {}
    }
}

/// The scalar after substitution; nothing when a reference is wrong, which is then reported.
fn resolve(
    text: &str,
    span: Span,
    params: &[Param],
    problems: &mut Vec<Problem>,
) -> Option<Scalar> {
    if let Some(reference) = text
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'))
        && !reference.contains('}')
    {
        return lookup(reference, span, params, problems).cloned();
    }
    let mut resolved = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_right = true;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        let after = &rest[start + 2..];
        if let Some(literal) = before.strip_suffix('$') {
            resolved.push_str(literal);
            resolved.push_str("${");
            rest = after;
            continue;
        }
        resolved.push_str(before);
        let Some(end) = after.find('}') else {
            problems.push(
                Problem::new("unknown-parameter", "`${` has no `}`", span)
                    .with_help("write `$${` for the characters themselves"),
            );
            return None;
        };
        match lookup(&after[..end], span, params, problems) {
            Some(value) => resolved.push_str(&value.text),
            None => is_right = false,
        }
        rest = &after[end + 1..];
    }
    resolved.push_str(rest);
    is_right.then_some(Scalar {
        kind: ScalarKind::Text,
        text: resolved,
    })
}

fn lookup<'a>(
    reference: &str,
    span: Span,
    params: &'a [Param],
    problems: &mut Vec<Problem>,
) -> Option<&'a Scalar> {
    let reference = reference.trim();
    let Some(name) = reference.strip_prefix("params.") else {
        problems.push(
            Problem::new(
                "unknown-parameter",
                format!("`${{{reference}}}` is no reference to a parameter"),
                span,
            )
            .with_label("unknown reference")
            .with_help("write `${params.name}`, or `$${` for the characters themselves"),
        );
        return None;
    };
    let Some(param) = params.iter().find(|param| param.name == name) else {
        let names: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
        let help = match names.len() {
            0 => format!("declare it: `params: {{ {name}: ... }}` before `stages`"),
            _ => hint(name, &names, "parameters"),
        };
        problems.push(
            Problem::new(
                "unknown-parameter",
                format!("there is no parameter `{name}`"),
                span,
            )
            .with_label("unknown parameter")
            .with_help(help),
        );
        return None;
    };
    param.is_used.set(true);
    Some(&param.value)
}
