//! The envelope of stages: operator key, inputs, seed.

use super::{ENVELOPE, InputEntry, SourceEntry, StageEntry, Word, wrong_type};
use crate::Problem;
use crate::yaml::{Entry, Node, ScalarKind, Value};

/// Every stage, as far as it can be read. Nothing is left out: other stages may name it.
pub(super) fn read(stages: &Entry, problems: &mut Vec<Problem>) -> Vec<StageEntry> {
    match stages.value.entries() {
        Some([]) | None => {
            problems.push(wrong_type(stages, "a mapping of stage names to stages"));
            Vec::new()
        }
        Some(entries) => entries.iter().map(|entry| stage(entry, problems)).collect(),
    }
}

fn stage(entry: &Entry, problems: &mut Vec<Problem>) -> StageEntry {
    check_name(entry, problems);
    let mut stage = StageEntry {
        name: entry.key.clone(),
        span: entry.key_span,
        operators: Vec::new(),
        inputs: Vec::new(),
        inputs_are_known: true,
        seed: None,
    };
    let Some(keys) = entry.value.entries() else {
        problems.push(
            wrong_type(entry, "a mapping with an operator").with_help(format!(
                "write `{}: {{ inputs: {{ ... }}, <operator>: {{ ... }} }}`",
                entry.key
            )),
        );
        stage.inputs_are_known = false;
        return stage;
    };
    for key in keys {
        match key.key.as_str() {
            "inputs" => match key.value.entries() {
                Some(ports) => {
                    stage.inputs = ports
                        .iter()
                        .filter_map(|port| input(port, &mut stage.inputs_are_known, problems))
                        .collect();
                }
                None => {
                    problems.push(wrong_type(key, "a mapping of ports to stages"));
                    stage.inputs_are_known = false;
                }
            },
            "seed" => stage.seed = super::seed(key, problems),
            other => {
                debug_assert!(!ENVELOPE.contains(&other));
                stage.operators.push(Word {
                    text: key.key.clone(),
                    span: key.key_span,
                });
            }
        }
    }
    stage
}

fn check_name(entry: &Entry, problems: &mut Vec<Problem>) {
    let is_word =
        |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    if entry.key.is_empty() || !entry.key.chars().all(is_word) {
        problems.push(
            Problem::new(
                "wrong-value",
                format!("`{}` is no name for a stage", entry.key),
                entry.key_span,
            )
            .with_label("not a name")
            .with_help("use letters, digits, `-` and `_`"),
        );
    }
}

fn input(entry: &Entry, is_known: &mut bool, problems: &mut Vec<Problem>) -> Option<InputEntry> {
    let port = Word {
        text: entry.key.clone(),
        span: entry.key_span,
    };
    let (is_list, nodes): (bool, Vec<&Node>) = match &entry.value.value {
        Value::List(items) => (true, items.iter().collect()),
        Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => (false, vec![&entry.value]),
        _ => {
            problems.push(wrong_type(
                entry,
                "`stage`, `stage.port` or a list of these",
            ));
            *is_known = false;
            return None;
        }
    };
    let mut sources: Vec<SourceEntry> = Vec::with_capacity(nodes.len());
    for node in nodes {
        if matches!(&node.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Unresolved) {
            *is_known = false;
            continue;
        }
        match source(node) {
            Some(source) => {
                let same = sources
                    .iter()
                    .find(|other| other.stage == source.stage && other.port == source.port);
                if let Some(first) = same {
                    problems.push(
                        Problem::new(
                            "duplicate-input",
                            format!(
                                "the port `{}` gets `{}` twice",
                                entry.key,
                                node.describe().trim_matches('`')
                            ),
                            source.span,
                        )
                        .with_label("second")
                        .with_other(first.span, "first")
                        .with_help("remove one of them"),
                    );
                }
                sources.push(source);
            }
            None => {
                let message = format!(
                    "`{}` must name `stage` or `stage.port`, not {}",
                    entry.key,
                    node.describe()
                );
                problems.push(
                    Problem::new("wrong-type", message, node.span).with_label("expected a stage"),
                );
                *is_known = false;
            }
        }
    }
    Some(InputEntry {
        port,
        is_list,
        sources,
    })
}

fn source(node: &Node) -> Option<SourceEntry> {
    let Value::Scalar(scalar) = &node.value else {
        return None;
    };
    if scalar.kind == ScalarKind::Null || scalar.text.is_empty() {
        return None;
    }
    let (stage, port) = match scalar.text.split_once('.') {
        Some((stage, port)) => (stage, Some(port.to_owned())),
        None => (scalar.text.as_str(), None),
    };
    Some(SourceEntry {
        stage: stage.to_owned(),
        port,
        span: node.span,
    })
}
