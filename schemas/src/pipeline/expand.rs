//! Loops and conditions: `foreach`, `repeat` and `when` become plain stages.
//!
//! First every entry is unrolled into stages with names of their own, each in the scope of its loop. Then, when all names
//! are known, references are replaced and inputs get the full names of what they read.

mod loops;
mod names;

use std::collections::{BTreeMap, HashMap};

use super::params::{self, Param};
use super::references::{self, fill, substitute};
use super::{GROUP, wrong_type};
use crate::problem::{drop_known, hint};
use crate::yaml::{Entry, Node, Scalar, ScalarKind, Value};
use crate::{Problem, Span};

/// More stages than anybody means.
const MOST_STAGES: usize = 20_000;

/// What the pipeline says when all loops are unrolled.
#[derive(Debug, Default)]
pub(super) struct Expanded {
    /// For each stage that is left, in order.
    pub(super) origins: Vec<Origin>,
    /// Stages that a condition removed, with the place of the condition.
    pub(super) removed: HashMap<String, Span>,
}

/// Where a stage comes from.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// Whether an earlier stage was made from the same text.
    pub(super) is_copy: bool,
    /// Numbers of the rounds that it is in, from the outermost loop.
    pub(super) rounds: Vec<u32>,
}

/// Unrolls `stages` in place.
pub(super) fn expand(stages: &mut Node, params: &[Param], problems: &mut Vec<Problem>) -> Expanded {
    let Value::Map(entries) = &mut stages.value else {
        return Expanded::default();
    };
    let mut expander = Expander {
        params,
        scopes: vec![Scope::default()],
        flats: Vec::with_capacity(entries.len()),
        groups: BTreeMap::new(),
        problems,
        is_full: false,
    };
    expander.stages(std::mem::take(entries), &State::default());
    expander.finish(entries)
}

/// Names that hold for some stages.
#[derive(Debug, Default)]
struct Scope {
    parent: Option<usize>,
    /// What the full names of its stages start with.
    prefix: String,
    variables: Vec<(String, Scalar)>,
    carried: Vec<(String, Carried)>,
}

/// A stage or output by a name that is meant in some scope.
#[derive(Clone, Debug)]
struct Carried {
    text: String,
    span: Span,
    scope: usize,
}

#[derive(Clone, Debug, Default)]
struct State {
    scope: usize,
    origin: Origin,
    removed: Option<Span>,
}

/// An unrolled stage.
struct Flat {
    entry: Entry,
    state: State,
}

/// A loop whose last values can be read.
struct Group {
    carried: Vec<(String, Carried)>,
    /// The first part of its stages' names.
    prefix: String,
}

struct Expander<'a> {
    params: &'a [Param],
    scopes: Vec<Scope>,
    flats: Vec<Flat>,
    groups: BTreeMap<String, Group>,
    problems: &'a mut Vec<Problem>,
    is_full: bool,
}

impl Expander<'_> {
    fn stages(&mut self, entries: Vec<Entry>, state: &State) {
        for entry in entries {
            if self.flats.len() >= MOST_STAGES {
                if !self.is_full {
                    let message = format!("the loops make more than {MOST_STAGES} stages");
                    self.problems
                        .push(Problem::new("wrong-value", message, entry.key_span));
                }
                self.is_full = true;
                return;
            }
            self.stage(entry, state);
        }
    }

    fn stage(&mut self, mut entry: Entry, state: &State) {
        let foreach = entry.value.remove("foreach");
        let iterations = match &foreach {
            Some(foreach) => self.iterations(foreach, state.scope),
            None => vec![Vec::new()],
        };
        for (index, variables) in iterations.into_iter().enumerate() {
            let mut state = state.clone();
            if foreach.is_some() {
                if !self.has_names(&entry, &variables, index == 0) && index > 0 {
                    return;
                }
                state.origin.is_copy |= index > 0;
                state.scope = self.open(state.scope, None, variables);
            }
            let before = self.problems.len();
            let is_copy = state.origin.is_copy;
            self.iteration(entry.clone(), state);
            if is_copy {
                drop_known(self.problems, before);
            }
        }
    }

    /// A scope inside another one.
    fn open(
        &mut self,
        parent: usize,
        prefix: Option<String>,
        variables: Vec<(String, Scalar)>,
    ) -> usize {
        let prefix = prefix.unwrap_or_else(|| self.scopes[parent].prefix.clone());
        self.scopes.push(Scope {
            parent: Some(parent),
            prefix,
            variables,
            carried: Vec::new(),
        });
        self.scopes.len() - 1
    }

    fn iteration(&mut self, mut entry: Entry, mut state: State) {
        if entry.key.contains("${") {
            let change = |text: &str| safe(text);
            let (key, span) = (entry.key.clone(), entry.key_span);
            let name = self.looked(state.scope, |lookup, problems| {
                fill(&key, span, lookup, &change, problems)
            });
            match name {
                Some(name) => entry.key = name,
                None => return,
            }
        }
        entry.key.insert_str(0, &self.scopes[state.scope].prefix);
        if let Some(when) = entry.value.remove("when")
            && !self.condition(&when, state.scope)
        {
            state.removed = state.removed.or(Some(when.key_span));
        }
        let is_group = entry.value.entry("stages").is_some();
        let looped = ["repeat", "carry"]
            .iter()
            .find_map(|key| entry.value.entry(key));
        match looped {
            Some(key) if !is_group => {
                self.problems.push(
                    Problem::new(
                        "missing-key",
                        format!("`{}` is for a group of stages", key.key),
                        key.key_span,
                    )
                    .with_label("without `stages`")
                    .with_help("write `stages:` beside it and the stages of one round under it"),
                );
            }
            _ if is_group => self.group(entry, &state),
            _ => self.flats.push(Flat { entry, state }),
        }
    }

    fn group(&mut self, mut entry: Entry, state: &State) {
        for key in entry.value.entries().unwrap_or_default() {
            if !GROUP.contains(&key.key.as_str()) {
                self.problems.push(
                    Problem::new(
                        "unknown-key",
                        format!("a group of stages has no key `{}`", key.key),
                        key.key_span,
                    )
                    .with_label("unknown key")
                    .with_help(hint(&key.key, &GROUP, "keys")),
                );
            }
        }
        let (repeat, carry) = (entry.value.remove("repeat"), entry.value.remove("carry"));
        let Some(inner) = entry.value.remove("stages") else {
            return;
        };
        let Value::Map(stages) = inner.value.value else {
            self.problems
                .push(wrong_type(&inner, "a mapping of stage names to stages"));
            return;
        };
        let name = entry.key;
        let Some(repeat) = repeat else {
            if let Some(carry) = carry {
                self.problems.push(
                    Problem::new("missing-key", "`carry` is for a loop", carry.key_span)
                        .with_label("without `repeat`")
                        .with_help("write `repeat:` and the number of rounds beside it"),
                );
            }
            let prefix = format!("{name}-");
            let scope = self.open(state.scope, Some(prefix.clone()), Vec::new());
            let inner = State {
                scope,
                ..state.clone()
            };
            self.stages(stages, &inner);
            let carried = Vec::new();
            self.groups.insert(name, Group { carried, prefix });
            return;
        };
        let Some(rounds) = self.rounds(repeat, state.scope) else {
            return;
        };
        self.repeat(name, rounds, carry.as_ref(), &stages, state);
    }

    fn repeat(
        &mut self,
        name: String,
        rounds: u32,
        carry: Option<&Entry>,
        stages: &[Entry],
        state: &State,
    ) {
        let carry = carry.map(|carry| self.carry(carry)).unwrap_or_default();
        let mut carried: Vec<(String, Carried)> = carry
            .iter()
            .filter_map(|(name, first, _)| Some((name.clone(), self.carried(first, state.scope)?)))
            .collect();
        for round in 1..=rounds {
            let number = Scalar {
                kind: ScalarKind::Integer(round.into()),
                text: round.to_string(),
            };
            let prefix = format!("{name}-{round}-");
            let variables = vec![("round".to_owned(), number)];
            let scope = self.open(state.scope, Some(prefix), variables);
            self.scopes[scope].carried = carried;
            let mut inner = State {
                scope,
                ..state.clone()
            };
            inner.origin.is_copy |= round > 1;
            inner.origin.rounds.push(round);
            self.stages(stages.to_vec(), &inner);
            carried = carry
                .iter()
                .filter_map(|(name, _, next)| Some((name.clone(), self.carried(next, scope)?)))
                .collect();
        }
        let prefix = format!("{name}-{rounds}-");
        self.groups.insert(name, Group { carried, prefix });
    }

    /// A scope and those around it.
    fn chain(&self, scope: usize) -> impl Iterator<Item = &Scope> {
        std::iter::successors(Some(&self.scopes[scope]), |scope| {
            scope.parent.map(|parent| &self.scopes[parent])
        })
    }

    fn substitute(&mut self, node: &mut Node, scope: usize) {
        self.looked(scope, |lookup, problems| substitute(node, lookup, problems));
    }

    /// Does something with the values that references have in a scope.
    fn looked<T>(
        &mut self,
        scope: usize,
        work: impl FnOnce(references::Lookup<'_>, &mut Vec<Problem>) -> T,
    ) -> T {
        let mut problems = std::mem::take(self.problems);
        let this = &*self;
        let lookup = |reference: &str, span: Span, problems: &mut Vec<Problem>| {
            this.lookup(reference, span, scope, problems)
        };
        let result = work(&lookup, &mut problems);
        *self.problems = problems;
        result
    }

    fn lookup(
        &self,
        reference: &str,
        span: Span,
        scope: usize,
        problems: &mut Vec<Problem>,
    ) -> Option<Value> {
        if let Some(name) = reference.strip_prefix("params.") {
            return params::lookup(name, span, self.params, problems);
        }
        let variables: Vec<&(String, Scalar)> = self
            .chain(scope)
            .flat_map(|scope| scope.variables.iter().rev())
            .collect();
        if let Some((_, value)) = variables.iter().find(|(name, _)| name == reference) {
            return Some(Value::Scalar(value.clone()));
        }
        let mut problem = Problem::new(
            "unknown-parameter",
            format!("`${{{reference}}}` is no reference to a parameter"),
            span,
        )
        .with_label("unknown reference")
        .with_help("write `${params.name}`, or `$${` for the characters themselves");
        if reference.starts_with("carry.") {
            problem.message =
                format!("`${{{reference}}}` is a stage, which only an input can read");
            problem =
                problem.with_help("let it be the whole value of an input of a stage in a `repeat`");
        } else if !variables.is_empty() {
            let names: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
            problem.message = format!("`${{{reference}}}` is neither a parameter nor a variable");
            problem = problem.with_help(hint(reference, &names, "variables"));
        }
        problems.push(problem);
        None
    }
}

/// A value as a part of a stage's name.
fn safe(text: &str) -> String {
    text.chars()
        .map(|letter| {
            let fits = letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
            if fits { letter } else { '-' }
        })
        .collect()
}
fn text_node(text: &str, span: Span) -> Node {
    Node {
        span,
        value: Value::Scalar(Scalar {
            kind: ScalarKind::Text,
            text: text.to_owned(),
        }),
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) => Some(&scalar.text),
        _ => None,
    }
}

fn scalar_of(node: &Node) -> Option<Scalar> {
    match &node.value {
        Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => Some(scalar.clone()),
        _ => None,
    }
}

fn is_text(node: &Node) -> bool {
    scalar_of(node).is_some()
}

fn is_unresolved(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Unresolved)
}

fn make_unresolved(node: &mut Node) {
    if let Value::Scalar(scalar) = &mut node.value {
        scalar.kind = ScalarKind::Unresolved;
    }
}
