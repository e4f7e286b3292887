//! `--set stage.key=value`: one key of the pipeline, from the command line.

use super::compose::{give, is_null, merge_entry, names, unknown_stage};
use super::{ENVELOPE, GROUP, KEYS, Word};
use crate::problem::{hint, listed};
use crate::yaml::{Entry, Node, Value, read_value};
use crate::{Problem, Span};

/// Lays a setting over the pipeline. `base` is the place of its first byte.
pub(super) fn apply(root: &mut Node, setting: &str, base: usize, problems: &mut Vec<Problem>) {
    let Some((path, text)) = setting.split_once('=') else {
        problems.push(form(
            "a setting has the form `stage.key=value`",
            base,
            setting.len(),
        ));
        return;
    };
    let mut start = base;
    let path: Vec<Word> = path
        .split('.')
        .map(|step| {
            let span = Span {
                start,
                len: step.len(),
            };
            start += step.len() + 1;
            Word {
                text: step.to_owned(),
                span,
            }
        })
        .collect();
    if path.iter().any(|step| step.text.is_empty()) {
        problems.push(form("a step of the path is empty", base, start - base - 1));
        return;
    }
    if text.trim().is_empty() {
        problems.push(form("the value is missing", base, setting.len()));
        return;
    }
    let (value, found) = read_value(text, start);
    problems.extend(found);
    let Some(value) = value else { return };
    match (path[0].text.as_str(), path.len()) {
        ("params", 2..) => param(root, &path, value, problems),
        ("stages", 3..) => in_stages(root, &path[1..], value, problems),
        (key, 1) if KEYS.contains(&key) => descend(root, &path, value, problems),
        _ => in_stages(root, &path, value, problems),
    }
}

fn form(message: &str, start: usize, len: usize) -> Problem {
    Problem::new("wrong-setting", message, Span { start, len })
        .with_help("write `--set stage.key=value`, `--set params.name=value` or `--set seed=value`")
}

fn param(root: &mut Node, path: &[Word], value: Node, problems: &mut Vec<Problem>) {
    let params = root.entry_mut("params").map(|entry| &mut entry.value);
    let known: Vec<&str> = params.as_deref().map(names).unwrap_or_default();
    let [_, name, rest @ ..] = path else { return };
    if !known.contains(&name.text.as_str()) {
        let message = format!("there is no parameter `{}`", name.text);
        problems.push(
            Problem::new("unknown-parameter", message, name.span)
                .with_label("unknown parameter")
                .with_help(hint(&name.text, &known, "parameters")),
        );
        return;
    }
    let Some(params) = params else { return };
    match params.entry_mut(&name.text) {
        Some(param) if rest.is_empty() && !is_null(&value) => {
            give(param, name.span, value, problems);
        }
        _ => descend(params, &path[1..], value, problems),
    }
}

/// `holder` has a key `stages`: the file, or a group.
fn in_stages(holder: &mut Node, path: &[Word], value: Node, problems: &mut Vec<Problem>) {
    let is_file = holder.entry("version").is_some();
    let Some(stages) = holder.entry_mut("stages") else {
        return;
    };
    let [name, rest @ ..] = path else { return };
    let Some(stage) = stages.value.entry_mut(&name.text) else {
        let mut known = names(&stages.value);
        if is_file && rest.is_empty() {
            known.extend(KEYS);
        }
        problems.push(unknown_stage(&name.text, name.span, &known));
        return;
    };
    let Some(key) = rest.first() else {
        problems.push(form(
            &format!("`{}` is a stage: say which of its keys", name.text),
            name.span.start,
            name.span.len,
        ));
        return;
    };
    if stage.value.entry("stages").is_some() {
        if key.text == "stages" && rest.len() > 1 {
            in_stages(&mut stage.value, &rest[1..], value, problems);
        } else if GROUP.contains(&key.text.as_str()) {
            descend(&mut stage.value, rest, value, problems);
        } else {
            in_stages(&mut stage.value, rest, value, problems);
        }
        return;
    }
    let operators: Vec<String> = names(&stage.value)
        .into_iter()
        .filter(|key| !ENVELOPE.contains(key))
        .map(str::to_owned)
        .collect();
    if ENVELOPE.contains(&key.text.as_str()) || operators.contains(&key.text) {
        descend(&mut stage.value, rest, value, problems);
        return;
    }
    match operators.as_slice() {
        [operator] => {
            if let Some(operator) = stage.value.entry_mut(operator) {
                if is_null(&operator.value) {
                    operator.value.value = Value::Map(Vec::new());
                }
                descend(&mut operator.value, rest, value, problems);
            }
        }
        _ => problems.push(
            Problem::new(
                "unknown-key",
                format!("stage `{}` has no key `{}`", name.text, key.text),
                key.span,
            )
            .with_label("unknown key")
            .with_help(format!("its keys are {}", listed(&names(&stage.value)))),
        ),
    }
}

/// Follows the path through mappings and lists, making mappings where there is nothing, and lays the value over its end.
fn descend(node: &mut Node, path: &[Word], value: Node, problems: &mut Vec<Problem>) {
    let [step, rest @ ..] = path else { return };
    if let Value::List(items) = &mut node.value {
        let len = items.len();
        let item = step
            .text
            .parse()
            .ok()
            .and_then(|index: usize| items.get_mut(index));
        match item {
            Some(item) if rest.is_empty() => *item = value,
            Some(item) => descend(item, rest, value, problems),
            None => {
                let message = format!("the list has {len} items, and no item `{}`", step.text);
                problems.push(
                    Problem::new("unknown-key", message, step.span)
                        .with_label("no such item")
                        .with_help("items are counted from 0; give the whole list as `[a, b]`"),
                );
            }
        }
        return;
    }
    if matches!(node.value, Value::Scalar(_)) {
        *node = Node {
            span: step.span,
            value: Value::Map(Vec::new()),
        };
    }
    if rest.is_empty() {
        let over = Entry {
            key: step.text.clone(),
            key_span: step.span,
            value,
        };
        merge_entry(node, over, problems);
        return;
    }
    if node.entry(&step.text).is_none() {
        node.put(Entry {
            key: step.text.clone(),
            key_span: step.span,
            value: Node {
                span: step.span,
                value: Value::Map(Vec::new()),
            },
        });
    }
    if let Some(entry) = node.entry_mut(&step.text) {
        descend(&mut entry.value, rest, value, problems);
    }
}
