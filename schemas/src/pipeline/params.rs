//! `params`: values with types, which the command line and overlays may give.

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::problem::hint;
use crate::yaml::{Entry, Node, Scalar, ScalarKind, Value};
use crate::{Problem, Span};

/// Keys of a parameter that is more than a value.
const KEYS: [&str; 6] = ["type", "default", "min", "max", "choices", "about"];

/// Names of the types.
const TYPES: [&str; 5] = ["integer", "number", "text", "boolean", "list"];

/// A declared parameter.
pub(super) struct Param {
    name: String,
    span: Span,
    /// Unresolved when it is wrong or missing, which was reported.
    value: Value,
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
        .map(|entry| Param {
            name: entry.key.clone(),
            span: entry.key_span,
            value: value(entry, problems).unwrap_or_else(unresolved),
            is_used: Cell::new(false),
        })
        .collect()
}

fn unresolved() -> Value {
    Value::Scalar(Scalar {
        kind: ScalarKind::Unresolved,
        text: String::new(),
    })
}

/// The value of a parameter; nothing when there is no right one, which is then reported.
fn value(entry: &Entry, problems: &mut Vec<Problem>) -> Option<Value> {
    let value = match &entry.value.value {
        Value::Map(keys) => declaration(entry, keys, problems)?,
        Value::Scalar(scalar) if scalar.kind == ScalarKind::Null => {
            let wanted = "a text, a number, `true`, `false` or a list";
            problems.push(super::wrong_type(entry, wanted).with_help(
                "write `{ type: text }` for a parameter that has no value until one is given",
            ));
            return None;
        }
        Value::Scalar(_) => entry.value.clone(),
        Value::List(items) => {
            let is_flat = items.iter().all(|item| kind_of(item).is_some());
            if !is_flat {
                problems.push(super::wrong_type(entry, "a list of texts and numbers"));
                return None;
            }
            entry.value.clone()
        }
    };
    if let Some(text) = reference_in(&value) {
        problems.push(
            Problem::new(
                "wrong-value",
                format!(
                    "the parameter `{}` refers to `{text}`, and parameters are values",
                    entry.key
                ),
                value.span,
            )
            .with_label("a reference")
            .with_help("write the value, or put the reference where the parameter is used"),
        );
        return None;
    }
    Some(value.value)
}

fn reference_in(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) => scalar.text.contains("${params.").then_some(&scalar.text),
        Value::List(items) => items.iter().find_map(reference_in),
        Value::Map(_) => None,
    }
}

/// The kind of a scalar that says something.
fn kind_of(node: &Node) -> Option<ScalarKind> {
    match &node.value {
        Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => Some(scalar.kind),
        _ => None,
    }
}

/// `{ type: ..., default: ..., ... }`.
fn declaration(entry: &Entry, keys: &[Entry], problems: &mut Vec<Problem>) -> Option<Node> {
    let before = problems.len();
    for key in keys.iter().filter(|key| !KEYS.contains(&key.key.as_str())) {
        problems.push(
            Problem::new(
                "unknown-key",
                format!("a parameter has no key `{}`", key.key),
                key.key_span,
            )
            .with_label("unknown key")
            .with_help(hint(&key.key, &KEYS, "keys")),
        );
    }
    let kind = match entry.value.entry("type") {
        Some(kind) => type_of(kind, problems),
        None => {
            problems.push(
                Problem::new(
                    "missing-key",
                    format!("the parameter `{}` lacks the key `type`", entry.key),
                    entry.key_span,
                )
                .with_label("`type` is missing here")
                .with_help(hint("", &TYPES, "types")),
            );
            None
        }
    };
    let kind = kind?;
    let rules = Rules::read(entry, kind, problems);
    let given = entry.value.entry("default");
    let Some(given) = given.filter(|given| !is_null(&given.value)) else {
        problems.push(
            Problem::new(
                "missing-parameter",
                format!("the parameter `{}` has no value", entry.key),
                entry.key_span,
            )
            .with_label("no value")
            .with_help(format!(
                "give one with `--set params.{}=...`, in an overlay, or as `default`",
                entry.key
            )),
        );
        return None;
    };
    let mut value = given.value.clone();
    rules.check(&mut value, problems);
    (problems.len() == before).then_some(value)
}

fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Null)
}

fn type_of(entry: &Entry, problems: &mut Vec<Problem>) -> Option<&'static str> {
    let name = match &entry.value.value {
        Value::Scalar(scalar) => scalar.text.as_str(),
        _ => "",
    };
    let found = TYPES.iter().find(|known| **known == name).copied();
    if found.is_none() {
        problems.push(
            Problem::new(
                "unknown-choice",
                format!("there is no type {}", entry.value.describe()),
                entry.place().span(),
            )
            .with_label("unknown type")
            .with_help(hint(name, &TYPES, "types")),
        );
    }
    found
}

/// What a parameter's value must be. For a list the limits hold for each item.
struct Rules<'a> {
    name: &'a str,
    kind: &'static str,
    min: Option<(f64, &'a Entry)>,
    max: Option<(f64, &'a Entry)>,
    choices: Option<(&'a [Node], &'a Entry)>,
}

impl<'a> Rules<'a> {
    fn read(entry: &'a Entry, kind: &'static str, problems: &mut Vec<Problem>) -> Self {
        let mut limit = |key: &str| {
            let limit = entry.value.entry(key)?;
            let number = number(&limit.value);
            match number {
                Some(number) if matches!(kind, "integer" | "number" | "list") => {
                    Some((number, limit))
                }
                Some(_) => {
                    let message = format!("a parameter of type `{kind}` has no `{key}`");
                    problems.push(
                        Problem::new("wrong-key", message, limit.key_span)
                            .with_label("for numbers only"),
                    );
                    None
                }
                None => {
                    problems.push(super::wrong_type(limit, "a number"));
                    None
                }
            }
        };
        let (min, max) = (limit("min"), limit("max"));
        let choices = entry
            .value
            .entry("choices")
            .and_then(|choices| match &choices.value.value {
                Value::List(items) if !items.is_empty() => Some((items.as_slice(), choices)),
                _ => {
                    problems.push(super::wrong_type(choices, "a list of values"));
                    None
                }
            });
        Self {
            name: &entry.key,
            kind,
            min,
            max,
            choices,
        }
    }

    /// Checks a value. A word that looks like a number becomes a text where a text is declared.
    fn check(&self, value: &mut Node, problems: &mut Vec<Problem>) {
        if self.kind != "list" {
            self.check_one(self.kind, value, problems);
            return;
        }
        match &mut value.value {
            Value::List(items) => items
                .iter_mut()
                .for_each(|item| self.check_one("item", item, problems)),
            _ => problems.push(self.wrong("wrong-type", "a list", value)),
        }
    }

    fn check_one(&self, kind: &str, value: &mut Node, problems: &mut Vec<Problem>) {
        let found = kind_of(value);
        let is_right = match (kind, found) {
            (_, None) => false,
            ("integer", Some(kind)) => matches!(kind, ScalarKind::Integer(_)),
            ("number", Some(kind)) => match kind {
                ScalarKind::Integer(_) => true,
                ScalarKind::Float(number) => number.is_finite(),
                _ => false,
            },
            ("boolean", Some(kind)) => matches!(kind, ScalarKind::Bool(_)),
            _ => true,
        };
        if !is_right {
            let wanted = match kind {
                "integer" => "a whole number",
                "number" => "a number",
                "boolean" => "`true` or `false`",
                "item" => "a list of texts and numbers",
                _ => "a text",
            };
            problems.push(self.wrong("wrong-type", wanted, value));
            return;
        }
        if let ("text", Value::Scalar(scalar)) = (kind, &mut value.value) {
            scalar.kind = ScalarKind::Text;
        }
        let number = number(value);
        for (limit, is_min) in [(self.min, true), (self.max, false)] {
            let Some((limit, entry)) = limit else {
                continue;
            };
            let is_inside = match number {
                Some(number) if is_min => number >= limit,
                Some(number) => number <= limit,
                None => false,
            };
            if !is_inside {
                let side = if is_min { "at least" } else { "at most" };
                let wanted = format!("{side} {}", entry.value.describe().trim_matches('`'));
                problems.push(
                    self.wrong("wrong-value", &wanted, value)
                        .with_other(entry.key_span, "the limit"),
                );
            }
        }
        if let Some((choices, entry)) = self.choices
            && !choices.iter().any(|choice| same(choice, value))
        {
            let words: Vec<&str> = choices.iter().filter_map(text_of).collect();
            let message = format!(
                "the parameter `{}` has no choice {}",
                self.name,
                value.describe()
            );
            problems.push(
                Problem::new("unknown-choice", message, value.span)
                    .with_label("unknown choice")
                    .with_other(entry.key_span, "the choices")
                    .with_help(hint(text_of(value).unwrap_or_default(), &words, "choices")),
            );
        }
    }

    fn wrong(&self, code: &'static str, wanted: &str, value: &Node) -> Problem {
        let found = value.describe();
        let message = format!(
            "the parameter `{}` must be {wanted}, not {found}",
            self.name
        );
        Problem::new(code, message, value.span).with_label(format!("expected {wanted}"))
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) => Some(&scalar.text),
        _ => None,
    }
}

fn number(node: &Node) -> Option<f64> {
    match kind_of(node)? {
        #[expect(clippy::cast_precision_loss, reason = "limits are compared as numbers")]
        ScalarKind::Integer(number) => Some(number as f64),
        ScalarKind::Float(number) => Some(number),
        _ => None,
    }
}

/// Equal as numbers or as texts.
pub(super) fn same(left: &Node, right: &Node) -> bool {
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left.total_cmp(&right).is_eq(),
        _ => text_of(left).is_some() && text_of(left) == text_of(right),
    }
}

/// Whether one short value can take the place of another: words, numbers, truth values and lists do not mix.
pub(super) fn is_alike(old: &Node, new: &Node) -> bool {
    let class = |node: &Node| match &node.value {
        Value::List(_) => 0,
        Value::Map(_) => 1,
        Value::Scalar(scalar) => match scalar.kind {
            ScalarKind::Bool(_) => 2,
            ScalarKind::Integer(_) | ScalarKind::Float(_) => 3,
            ScalarKind::Null | ScalarKind::Text | ScalarKind::Unresolved => 4,
        },
    };
    class(old) == class(new)
}

/// Names of the parameters that a tree refers to.
pub(super) fn references(node: &Node, found: &mut BTreeSet<String>) {
    let mut look = |text: &str| {
        for reference in text.split("${").skip(1) {
            let name = reference.split('}').next().unwrap_or_default().trim();
            found.extend(name.strip_prefix("params.").map(str::to_owned));
        }
    };
    match &node.value {
        Value::Scalar(scalar) => look(&scalar.text),
        Value::List(items) => {
            for item in items {
                references(item, found);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                look(&entry.key);
            }
            for entry in entries {
                references(&entry.value, found);
            }
        }
    }
}

/// Reports parameters that nothing uses, nor has used before overlays.
pub(super) fn report_unused(
    params: &[Param],
    before: &BTreeSet<String>,
    problems: &mut Vec<Problem>,
) {
    let is_unused = |param: &&Param| !param.is_used.get() && !before.contains(&param.name);
    for param in params.iter().filter(is_unused) {
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

/// The value of a parameter.
pub(super) fn lookup(
    name: &str,
    span: Span,
    params: &[Param],
    problems: &mut Vec<Problem>,
) -> Option<Value> {
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
    Some(param.value.clone())
}
