//! The envelope of stages: operator key, inputs, seed.

use super::expand::{Expanded, Origin};
use super::{ENVELOPE, InputEntry, QuarantineBudget, SourceEntry, StageEntry, Word, wrong_type};
use crate::Problem;
use crate::problem::{drop_known, hint};
use crate::yaml::{Entry, Node, ScalarKind, Value};

/// Every stage, as far as it can be read. Nothing is left out: other stages may name it.
pub(super) fn read(
    stages: &Entry,
    expanded: &Expanded,
    problems: &mut Vec<Problem>,
) -> Vec<StageEntry> {
    let Some(entries) = stages.value.entries() else {
        problems.push(wrong_type(stages, "a mapping of stage names to stages"));
        return Vec::new();
    };
    if entries.is_empty() && expanded.removed.is_empty() && problems.is_empty() {
        problems.push(
            Problem::new(
                "missing-stage",
                "the pipeline has no stages",
                stages.key_span,
            )
            .with_help("write `<name>: { <operator>: { ... } }` below `stages`"),
        );
    }
    let mut origins = expanded.origins.iter().cloned();
    let read_one = |entry: &Entry| {
        let before = problems.len();
        let mut read = stage(entry, problems);
        let Origin { is_copy, rounds } = origins.next().unwrap_or_default();
        if is_copy {
            drop_known(problems, before);
        }
        (read.is_copy, read.rounds) = (is_copy, rounds);
        for source in read.inputs.iter_mut().flat_map(|input| &mut input.sources) {
            source.removed = expanded.removed.get(&source.stage).copied();
        }
        read
    };
    entries.iter().map(read_one).collect()
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
        quarantine: None,
        quarantine_span: None,
        is_copy: false,
        rounds: Vec::new(),
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
            "quarantine" => {
                stage.quarantine = quarantine(key, problems);
                stage.quarantine_span = Some(key.key_span);
            }
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

/// `{ rows: 5 }` or `{ share: 0.01 }`.
fn quarantine(entry: &Entry, problems: &mut Vec<Problem>) -> Option<QuarantineBudget> {
    let wrong = |key: &Entry, wanted: &str| wrong_type(key, wanted);
    let Some([budget]) = entry.value.entries() else {
        let wanted = "`{ rows: ... }` or `{ share: ... }`";
        problems.push(wrong(entry, wanted));
        return None;
    };
    let kind = match &budget.value.value {
        Value::Scalar(scalar) => Some(scalar.kind),
        _ => None,
    };
    match (budget.key.as_str(), kind) {
        (_, Some(ScalarKind::Unresolved)) => None,
        ("rows", Some(ScalarKind::Integer(rows))) if u64::try_from(rows).is_ok() => {
            u64::try_from(rows).ok().map(QuarantineBudget::Rows)
        }
        ("share", Some(ScalarKind::Float(share))) if (0.0..=1.0).contains(&share) => {
            Some(QuarantineBudget::Share(share))
        }
        ("share", Some(ScalarKind::Integer(share @ 0..=1))) => {
            Some(QuarantineBudget::Share(f64::from(u8::from(share == 1))))
        }
        ("rows", _) => {
            problems.push(wrong(budget, "a whole number of at least 0"));
            None
        }
        ("share", _) => {
            problems.push(wrong(budget, "a number from 0 to 1"));
            None
        }
        (other, _) => {
            let message = format!("`quarantine` has no key `{other}`");
            problems.push(
                Problem::new("unknown-key", message, budget.key_span)
                    .with_label("unknown key")
                    .with_help(hint(other, &["rows", "share"], "keys")),
            );
            None
        }
    }
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
        removed: None,
    })
}
