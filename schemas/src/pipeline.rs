//! The pipeline file, up to the operators: their configurations are read by whoever knows the kinds.
//!
//! ```yaml
//! version: 1
//! name: example
//! seed: 17
//! params: { base: examples/models/base }
//! stages:
//!   base: { load-model: { path: "${params.base}" } }
//!   probe: { inputs: { prompts: prompts, model: base }, seed: 3, rollout: { ... } }
//! ```
//!
//! What makes one file of several, and many stages of few, is worked in here: included files, overlays, settings of the
//! command line ([`compose`]), then parameters, loops and conditions ([`read`]). What is left is a plain graph of stages.

mod compose;
mod expand;
mod params;
mod references;
mod resolved;
mod set;
mod stages;

pub use compose::{Loader, SourceText, compose};
pub use resolved::{PlainStage, resolved};

use self::expand::Expanded;
use crate::problem::{hint, nearest};
use crate::yaml::{Document, Entry, Node, ScalarKind, Value};
use crate::{Problem, Span};

/// The only version of the format.
const VERSION: i128 = 1;

/// Keys of the file.
const KEYS: [&str; 6] = ["version", "name", "seed", "include", "params", "stages"];

/// Keys that need not be there.
const OPTIONAL: [&str; 2] = ["include", "params"];

/// The keys of a stage that name no operator.
pub const ENVELOPE: [&str; 5] = ["inputs", "seed", "quarantine", "when", "foreach"];

/// The keys of a group of stages.
const GROUP: [&str; 5] = ["stages", "foreach", "repeat", "carry", "when"];

/// How many rows of a map stage may fail; they go to a side table with their errors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QuarantineBudget {
    /// At most this many rows.
    Rows(u64),
    /// At most this share of the rows, from 0 to 1.
    Share(f64),
}

/// What the file says. Parts that could not be read are left out; the problems say so.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    /// Name of the pipeline.
    pub name: String,
    /// Seed of the stages that set none.
    pub seed: u64,
    /// Stages in the order of the file.
    pub stages: Vec<StageEntry>,
}

/// One stage as written.
#[derive(Clone, Debug)]
pub struct StageEntry {
    /// Its name.
    pub name: String,
    /// Place of the name.
    pub span: Span,
    /// Keys that are not of the envelope: one of them should be an operator kind.
    pub operators: Vec<Word>,
    /// Input ports in the order of the file.
    pub inputs: Vec<InputEntry>,
    /// Whether the inputs could be read; otherwise missing ones are no news.
    pub inputs_are_known: bool,
    /// Seed of this stage alone.
    pub seed: Option<u64>,
    /// How many rows may fail.
    pub quarantine: Option<QuarantineBudget>,
    /// Place of the budget, whether it could be read or not.
    pub quarantine_span: Option<Span>,
    /// Whether an earlier stage was made from the same text, by a loop.
    pub is_copy: bool,
    /// Numbers of the rounds that it is in, from the outermost loop, from 1.
    pub rounds: Vec<u32>,
}

/// A word and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// One input port as written.
#[derive(Clone, Debug)]
pub struct InputEntry {
    /// The port.
    pub port: Word,
    /// Whether a list is written.
    pub is_list: bool,
    /// What it reads.
    pub sources: Vec<SourceEntry>,
}

/// `stage` or `stage.port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// The stage.
    pub stage: String,
    /// The output port; the stage's first when absent.
    pub port: Option<String>,
    /// Where it stands.
    pub span: Span,
    /// Place of the condition that removed the stage.
    pub removed: Option<Span>,
}

/// A pipeline file that was read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What it says.
    pub pipeline: Pipeline,
    /// The document with parameters substituted: configurations are read from it, and keep their places.
    pub document: Document,
    /// What is wrong, in no particular order.
    pub problems: Vec<Problem>,
}

/// Reads the file as far as it goes without knowing operators.
#[must_use]
pub fn read(document: &Document) -> Reading {
    let mut document = document.clone();
    let mut problems = document.problems().to_vec();
    let mut pipeline = Pipeline::default();
    let used = document.used().clone();
    if let Some(root) = document.root_mut() {
        let params = params::declared(root, &mut problems);
        let mut expanded = Expanded::default();
        if let Some(stages) = root.entry_mut("stages") {
            // An empty mapping is wrong in itself, one that conditions emptied is another matter.
            let is_empty = stages.value.entries().is_some_and(<[Entry]>::is_empty);
            let before = problems.len();
            expanded = expand::expand(&mut stages.value, &params, &mut problems);
            params::report_unused(&params, &used, &mut problems);
            let is_left = !expanded.origins.is_empty() || is_empty || problems.len() > before;
            if stages.value.entries().is_some() && !is_left {
                let message = "the conditions leave no stage";
                problems.push(Problem::new("wrong-value", message, stages.key_span));
            }
        }
        pipeline = read_root(root, &expanded, &mut problems);
    }
    document.index_stages();
    Reading {
        pipeline,
        document,
        problems,
    }
}

fn read_root(root: &Node, expanded: &Expanded, problems: &mut Vec<Problem>) -> Pipeline {
    let mut pipeline = Pipeline::default();
    let Some(entries) = root.entries() else {
        problems.push(
            Problem::new("wrong-type", "a pipeline file must be a mapping", root.span)
                .with_help(hint("", &KEYS, "keys")),
        );
        return pipeline;
    };
    let mut meant = Vec::new();
    for entry in entries
        .iter()
        .filter(|entry| !KEYS.contains(&entry.key.as_str()))
    {
        meant.extend(nearest(&entry.key, &KEYS));
        problems.push(
            Problem::new(
                "unknown-key",
                format!("a pipeline file has no key `{}`", entry.key),
                entry.key_span,
            )
            .with_label("unknown key")
            .with_help(hint(&entry.key, &KEYS, "keys")),
        );
    }
    for key in KEYS
        .iter()
        .filter(|key| !OPTIONAL.contains(key) && !meant.contains(key) && root.entry(key).is_none())
    {
        let message = format!("the pipeline file lacks the key `{key}`");
        problems
            .push(Problem::new("missing-key", message, Span::default()).with_help(help_for(key)));
    }
    if let Some(entry) = root.entry("include") {
        let message = "only a pipeline in a file can include files";
        problems.push(Problem::new("wrong-key", message, entry.key_span));
    }
    if let Some(entry) = root.entry("version") {
        check_version(entry, problems);
    }
    if let Some(entry) = root.entry("name") {
        pipeline.name = text(entry, problems).unwrap_or_default();
    }
    if let Some(entry) = root.entry("seed") {
        pipeline.seed = seed(entry, problems).unwrap_or_default();
    }
    if let Some(entry) = root.entry("stages") {
        pipeline.stages = stages::read(entry, expanded, problems);
    }
    pipeline
}

fn help_for(key: &str) -> &'static str {
    match key {
        "version" => "write `version: 1` at the top",
        "name" => "write `name:` and a name for the runs of this pipeline",
        "seed" => "write `seed:` and a whole number; the same seed gives the same results",
        _ => "write `stages:` and, indented under it, a name for each stage with its operator",
    }
}

fn check_version(entry: &Entry, problems: &mut Vec<Problem>) {
    let is_current = matches!(&entry.value.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Integer(VERSION));
    if !is_current {
        let message = format!(
            "`version` must be {VERSION}, not {}",
            entry.value.describe()
        );
        problems.push(
            Problem::new("wrong-value", message, entry.place().span())
                .with_label(format!("expected {VERSION}")),
        );
    }
}

/// A text that is not empty.
fn text(entry: &Entry, problems: &mut Vec<Problem>) -> Option<String> {
    match &entry.value.value {
        Value::Scalar(scalar) if !scalar.text.trim().is_empty() => Some(scalar.text.clone()),
        _ => {
            problems.push(wrong_type(entry, "text"));
            None
        }
    }
}

fn seed(entry: &Entry, problems: &mut Vec<Problem>) -> Option<u64> {
    let seed = match &entry.value.value {
        Value::Scalar(scalar) => match scalar.kind {
            ScalarKind::Integer(value) => u64::try_from(value).ok(),
            ScalarKind::Unresolved => return None,
            _ => None,
        },
        _ => None,
    };
    if seed.is_none() {
        let wanted = format!("a whole number from 0 to {}", u64::MAX);
        problems.push(wrong_type(entry, &wanted));
    }
    seed
}

fn wrong_type(entry: &Entry, wanted: &str) -> Problem {
    let message = format!(
        "`{}` must be {wanted}, not {}",
        entry.key,
        entry.value.describe()
    );
    Problem::new("wrong-type", message, entry.place().span())
        .with_label(format!("expected {wanted}"))
}

#[cfg(test)]
mod tests;
