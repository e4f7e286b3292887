//! Several texts as one document: a pipeline with the files that it includes, overlays, and settings of the command line.

use std::collections::{BTreeMap, BTreeSet};

use super::{ENVELOPE, GROUP, params, set};
use crate::problem::{hint, listed};
use crate::yaml::{Document, Entry, Node, Scalar, ScalarKind, Value, read};
use crate::{Problem, Span};

/// Keys of an included file.
const INCLUDED: [&str; 4] = ["version", "params", "stages", "include"];

/// A text with its names.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// Name for messages: the path as the user gave it.
    pub name: String,
    /// The same for every way to name the file.
    pub id: String,
    /// The text.
    pub text: String,
}

/// Reads an included file: gets the name of the including file and the path that is written there, gives the file or why
/// it cannot be read.
pub type Loader<'a> = &'a mut dyn FnMut(&str, &str) -> Result<SourceText, String>;

/// Puts a pipeline together. What is wrong is kept in the document's problems.
#[must_use]
pub fn compose(
    main: SourceText,
    overlays: Vec<SourceText>,
    settings: &[String],
    load: Loader<'_>,
) -> Document {
    let mut document = Document::new(main.name.clone(), main.text);
    let Some(mut root) = document.root_mut().cloned() else {
        return document;
    };
    if root.entry("include").is_some() {
        let mut gathering = Gathering {
            document: &mut document,
            load,
            open: vec![(main.id.clone(), main.name.clone())],
            done: vec![main.id],
            params: Section::default(),
            stages: Section::default(),
        };
        gathering.file(&mut root, &main.name);
        let Gathering { params, stages, .. } = gathering;
        params.put(&mut root, "params");
        stages.put(&mut root, "stages");
    }
    // What a file uses stays used when an overlay puts a value in the place of the reference.
    if !overlays.is_empty() || !settings.is_empty() {
        let mut used = BTreeSet::new();
        if let Some(stages) = root.entry("stages") {
            params::references(&stages.value, &mut used);
        }
        document.set_used(used);
    }
    for overlay in overlays {
        let base = document.append(overlay.name, overlay.text.clone());
        let (over, mut problems) = read(&overlay.text, base);
        if let Some(over) = over {
            overlay_root(&mut root, over, &mut problems);
        }
        document.problems_mut().extend(problems);
    }
    for setting in settings {
        let base = document.append(format!("--set {setting}"), setting.clone());
        let mut problems = Vec::new();
        set::apply(&mut root, setting, base, &mut problems);
        document.problems_mut().extend(problems);
    }
    document.set_root(root);
    document
}

/// Parameters or stages of all files, in the order in which the files come.
#[derive(Default)]
struct Section {
    entries: Vec<Entry>,
    /// Places of the names.
    places: BTreeMap<String, Span>,
}

impl Section {
    /// Takes the entries of a file's section; leaves a section that is no mapping where it is.
    fn take(&mut self, root: &mut Node, key: &str, problems: &mut Vec<Problem>) {
        let Some(section) = root.entry_mut(key) else {
            return;
        };
        let Value::Map(entries) = &mut section.value.value else {
            return;
        };
        for entry in std::mem::take(entries) {
            match self.places.get(&entry.key) {
                None => {
                    self.places.insert(entry.key.clone(), entry.key_span);
                    self.entries.push(entry);
                }
                Some(first) => {
                    let noun = if key == "params" {
                        "parameter"
                    } else {
                        "stage"
                    };
                    problems.push(
                        Problem::new(
                            "duplicate-key",
                            format!("the {noun} `{}` is given twice", entry.key),
                            entry.key_span,
                        )
                        .with_label("second")
                        .with_other(*first, "first")
                        .with_help("rename one of them; an overlay can change what a file says"),
                    );
                }
            }
        }
    }

    fn put(self, root: &mut Node, key: &str) {
        let span = self.entries.first().map(|entry| entry.key_span);
        match (root.entry_mut(key), span) {
            (Some(section), _) => {
                if let Value::Map(entries) = &mut section.value.value {
                    *entries = self.entries;
                }
            }
            (None, Some(span)) => {
                let value = Node {
                    span,
                    value: Value::Map(self.entries),
                };
                root.put(Entry {
                    key: key.to_owned(),
                    key_span: span,
                    value,
                });
            }
            (None, None) => {}
        }
    }
}

struct Gathering<'a> {
    document: &'a mut Document,
    load: Loader<'a>,
    /// Files that are being read, from the first to the innermost, as identity and name.
    open: Vec<(String, String)>,
    /// Files that need not be read again.
    done: Vec<String>,
    params: Section,
    stages: Section,
}

impl Gathering<'_> {
    /// Takes what a file includes, then what it says itself.
    fn file(&mut self, root: &mut Node, name: &str) {
        if let Some(include) = root.remove("include") {
            match &include.value.value {
                Value::List(items) => items.iter().for_each(|item| self.item(item, name)),
                Value::Scalar(scalar) => {
                    let help = format!("write `include: [{}]`", scalar.text);
                    let problem = super::wrong_type(&include, "a list of files").with_help(help);
                    self.document.problems_mut().push(problem);
                }
                Value::Map(_) => {
                    let problem = super::wrong_type(&include, "a list of files");
                    self.document.problems_mut().push(problem);
                }
            }
        }
        let problems = self.document.problems_mut();
        self.params.take(root, "params", problems);
        self.stages.take(root, "stages", problems);
    }

    fn item(&mut self, item: &Node, including: &str) {
        let path = match &item.value {
            Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => scalar.text.as_str(),
            _ => {
                let message = format!("`include` lists files, not {}", item.describe());
                let problem = Problem::new("wrong-type", message, item.span);
                self.document
                    .problems_mut()
                    .push(problem.with_label("expected the path of a file"));
                return;
            }
        };
        let included = match (self.load)(including, path) {
            Ok(included) => included,
            Err(message) => {
                let problem = Problem::new("missing-file", message, item.span)
                    .with_label("included here")
                    .with_help(format!(
                        "paths of included files start at the folder of {including}"
                    ));
                self.document.problems_mut().push(problem);
                return;
            }
        };
        if let Some(first) = self.open.iter().position(|(id, _)| *id == included.id) {
            let mut names: Vec<&str> = self.open[first..]
                .iter()
                .map(|(_, name)| name.as_str())
                .collect();
            names.push(&included.name);
            let message = format!(
                "files include each other in a circle: {}",
                names.join(" -> ")
            );
            let problem = Problem::new("include-cycle", message, item.span)
                .with_label("closes the circle")
                .with_help("move what they share into a file of its own");
            self.document.problems_mut().push(problem);
            return;
        }
        // A file that two others include is there once.
        if self.done.contains(&included.id) {
            return;
        }
        self.done.push(included.id.clone());
        let base = self
            .document
            .append(included.name.clone(), included.text.clone());
        let (root, problems) = read(&included.text, base);
        self.document.problems_mut().extend(problems);
        let Some(mut root) = root else { return };
        self.check(&root, base);
        self.open.push((included.id, included.name.clone()));
        self.file(&mut root, &included.name);
        self.open.pop();
    }

    fn check(&mut self, root: &Node, base: usize) {
        let problems = self.document.problems_mut();
        let Some(entries) = root.entries() else {
            let start = Span {
                start: base,
                len: 0,
            };
            problems.push(
                Problem::new("wrong-type", "an included file must be a mapping", start)
                    .with_help(format!("its keys are {}", listed(&INCLUDED))),
            );
            return;
        };
        for entry in entries {
            match entry.key.as_str() {
                "version" => super::check_version(entry, problems),
                "params" | "stages" if entry.value.entries().is_none() => {
                    problems.push(super::wrong_type(entry, "a mapping"));
                }
                key if !INCLUDED.contains(&key) => problems.push(
                    Problem::new(
                        "unknown-key",
                        format!("an included file has no key `{key}`"),
                        entry.key_span,
                    )
                    .with_label("unknown key")
                    .with_help(hint(key, &INCLUDED, "keys")),
                ),
                _ => {}
            }
        }
    }
}

fn overlay_root(root: &mut Node, over: Node, problems: &mut Vec<Problem>) {
    let Value::Map(entries) = over.value else {
        let message = "an overlay must be a mapping like the pipeline file";
        problems.push(Problem::new("wrong-type", message, over.span));
        return;
    };
    for entry in entries {
        match (entry.key.as_str(), &entry.value.value) {
            ("include", _) => problems.push(
                Problem::new(
                    "unknown-key",
                    "an overlay includes no files",
                    entry.key_span,
                )
                .with_label("not in an overlay")
                .with_help("give several overlays, or include the file in the pipeline"),
            ),
            ("params", Value::Map(_)) => merge_section(root, entry, merge_param, problems),
            ("stages", Value::Map(_)) => merge_section(root, entry, merge_stage, problems),
            _ => merge_entry(root, entry, problems),
        }
    }
}

type Merge = fn(&mut Node, Entry, &mut Vec<Problem>);

/// Merges the entries of a section one by one.
fn merge_section(parent: &mut Node, section: Entry, merge: Merge, problems: &mut Vec<Problem>) {
    let Value::Map(entries) = section.value.value else {
        return;
    };
    if parent.entry(&section.key).is_none() {
        parent.put(Entry {
            key: section.key.clone(),
            key_span: section.key_span,
            value: Node {
                span: section.value.span,
                value: Value::Map(Vec::new()),
            },
        });
    }
    let Some(target) = parent.entry_mut(&section.key) else {
        return;
    };
    for entry in entries {
        merge(&mut target.value, entry, problems);
    }
}

fn merge_param(params: &mut Node, over: Entry, problems: &mut Vec<Problem>) {
    match params.entry_mut(&over.key) {
        Some(param) if !is_null(&over.value) => give(param, over.key_span, over.value, problems),
        _ => merge_entry(params, over, problems),
    }
}

/// Gives a parameter another value.
pub(super) fn give(param: &mut Entry, key_span: Span, value: Node, problems: &mut Vec<Problem>) {
    match (&param.value.value, &value.value) {
        (Value::Map(_), Value::Map(_)) => merge(param, key_span, value, problems),
        (Value::Map(_), _) => param.value.put(Entry {
            key: "default".to_owned(),
            key_span,
            value,
        }),
        (_, Value::Map(_)) => param.value = value,
        _ if params::is_alike(&param.value, &value) || is_null(&param.value) => param.value = value,
        _ => problems.push(
            Problem::new(
                "wrong-type",
                format!(
                    "the parameter `{}` is {}, and {} is of another type",
                    param.key,
                    param.value.describe(),
                    value.describe()
                ),
                value.span,
            )
            .with_label("another type")
            .with_other(param.key_span, "declared here")
            .with_help("a text that looks like a number needs quotes"),
        ),
    }
}

fn merge_stage(stages: &mut Node, over: Entry, problems: &mut Vec<Problem>) {
    let Some(stage) = stages.entry_mut(&over.key) else {
        let keys = over.value.entries().unwrap_or_default();
        let is_known = |key: &str| ENVELOPE.contains(&key) || GROUP.contains(&key);
        let is_whole = keys
            .iter()
            .any(|key| key.key == "stages" || !is_known(&key.key));
        if !is_whole && !is_null(&over.value) {
            let names = names(stages);
            problems.push(unknown_stage(&over.key, over.key_span, &names));
        } else {
            merge_entry(stages, over, problems);
        }
        return;
    };
    match (&stage.value.value, over.value.value) {
        // The stages of a group are stages too.
        (Value::Map(_), Value::Map(entries)) => {
            for entry in entries {
                if entry.key == "stages" && stage.value.entry("stages").is_some() {
                    merge_section(&mut stage.value, entry, merge_stage, problems);
                } else {
                    merge_entry(&mut stage.value, entry, problems);
                }
            }
        }
        (_, value) => {
            let value = Node {
                value,
                ..over.value
            };
            merge_entry(stages, Entry { value, ..over }, problems);
        }
    }
}

/// The names of the entries of a mapping.
pub(super) fn names(node: &Node) -> Vec<&str> {
    let entries = node.entries().unwrap_or_default();
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

pub(super) fn unknown_stage(name: &str, span: Span, names: &[&str]) -> Problem {
    Problem::new("unknown-stage", format!("there is no stage `{name}`"), span)
        .with_label("unknown stage")
        .with_help(hint(name, names, "stages"))
}

/// Lays an entry over a mapping: mappings merge, all else replaces, nothing (`null`) removes.
pub(super) fn merge_entry(parent: &mut Node, over: Entry, problems: &mut Vec<Problem>) {
    if is_null(&over.value) {
        if parent.remove(&over.key).is_none() {
            problems.push(
                Problem::new(
                    "nothing-to-remove",
                    format!("there is no key `{}` to remove", over.key),
                    over.key_span,
                )
                .with_label("`null` removes a key")
                .with_help(hint(&over.key, &names(parent), "keys")),
            );
        }
        return;
    }
    match parent.entry_mut(&over.key) {
        Some(entry) => merge(entry, over.key_span, over.value, problems),
        None => parent.put(over),
    }
}

fn merge(entry: &mut Entry, key_span: Span, over: Node, problems: &mut Vec<Problem>) {
    match over.value {
        Value::Map(entries) if matches!(entry.value.value, Value::Map(_)) => {
            for inner in entries {
                merge_entry(&mut entry.value, inner, problems);
            }
        }
        value => {
            entry.key_span = key_span;
            entry.value = Node {
                value,
                span: over.span,
            };
        }
    }
}

pub(super) fn is_null(node: &Node) -> bool {
    matches!(
        &node.value,
        Value::Scalar(Scalar {
            kind: ScalarKind::Null,
            ..
        })
    )
}
