//! Typed values from a place in the tree, with every mistake at its place.

mod access;
mod reader;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{DeserializeOwned, Unexpected};

use self::reader::Reader;
use super::node::{Node, Place};
use crate::problem::listed;
use crate::{Problem, Span};

/// Reads a value of some type.
///
/// serde stops at the first mistake. So a mistake is noted, its node is replaced by a stand-in that fits any type, and
/// reading starts again, until it ends well or a stand-in itself does not fit.
pub(super) fn read<T: DeserializeOwned>(place: Place<'_>) -> Result<T, Vec<Problem>> {
    let mut session = Session::default();
    let result = loop {
        let reader = Reader {
            place,
            session: &session,
        };
        let trouble = match T::deserialize(reader) {
            Ok(value) => break Some(value),
            Err(trouble) => trouble,
        };
        if trouble.is_artificial || !session.note(trouble) {
            break None;
        }
    };
    let problems = session.into_problems();
    match result {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(problems),
    }
}

/// Identity of a node while its document is borrowed.
type NodeId = *const Node;

#[derive(Default)]
struct Session {
    problems: RefCell<Vec<Problem>>,
    /// Nodes that do not have the type that is wanted.
    wrong: BTreeSet<NodeId>,
    /// Keys that mappings lack.
    missing: BTreeMap<NodeId, Missing>,
    /// Keys that were meant by unknown ones, so that they are no news when they are missing.
    meant: RefCell<BTreeSet<(NodeId, &'static str)>>,
}

struct Missing {
    name: String,
    span: Span,
    fields: Vec<&'static str>,
}

impl Session {
    fn report(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// Keeps a mistake. False when there is nothing new in it, so that trying again would not help.
    fn note(&mut self, trouble: Trouble) -> bool {
        let Some(At { node, span }) = trouble.at else {
            self.report(trouble.into_problem(Span::default()));
            return false;
        };
        let Some(field) = trouble.missing else {
            self.report(trouble.into_problem(span));
            return self.wrong.insert(node);
        };
        let name = trouble.owner;
        let missing = self.missing.entry(node).or_insert(Missing {
            name,
            span,
            fields: Vec::new(),
        });
        let is_new = !missing.fields.contains(&field);
        if is_new {
            missing.fields.push(field);
        }
        is_new
    }

    fn lacks(&self, node: NodeId) -> Vec<&'static str> {
        self.missing
            .get(&node)
            .map(|missing| missing.fields.clone())
            .unwrap_or_default()
    }

    fn into_problems(self) -> Vec<Problem> {
        let meant = self.meant.into_inner();
        let mut problems = self.problems.into_inner();
        for (
            node,
            Missing {
                name,
                span,
                mut fields,
            },
        ) in self.missing
        {
            fields.retain(|field| !meant.contains(&(node, field)));
            let (noun, verb) = match fields.len() {
                0 => continue,
                1 => ("key", "is"),
                _ => ("keys", "are"),
            };
            let fields = listed(&fields);
            problems.push(
                Problem::new(
                    "missing-key",
                    format!("`{name}` lacks the {noun} {fields}"),
                    span,
                )
                .with_label(format!("{fields} {verb} missing here")),
            );
        }
        problems
    }
}

#[derive(Clone, Copy, Debug)]
struct At {
    node: NodeId,
    span: Span,
}

/// A mistake on its way up to [`read`].
#[derive(Debug)]
pub(super) struct Trouble {
    code: &'static str,
    message: String,
    label: String,
    help: Option<String>,
    missing: Option<&'static str>,
    /// Name of the mapping that lacks it.
    owner: String,
    at: Option<At>,
    /// It comes from a stand-in, so nobody wrote it.
    is_artificial: bool,
}

impl Trouble {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            label: String::new(),
            help: None,
            missing: None,
            owner: String::new(),
            at: None,
            is_artificial: false,
        }
    }

    fn labelled(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    fn helped(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn artificial(mut self) -> Self {
        self.is_artificial = true;
        self
    }

    fn into_problem(self, span: Span) -> Problem {
        let mut problem = Problem::new(self.code, self.message, span).with_label(self.label);
        problem.help = self.help;
        problem
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Trouble {}

impl serde::de::Error for Trouble {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::new("wrong-value", message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(
            "wrong-type",
            format!("expected {expected}, found {unexpected}"),
        )
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(
            "wrong-value",
            format!("expected {expected}, found {unexpected}"),
        )
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new("missing-key", format!("the key `{field}` is missing"))
        }
    }
}
