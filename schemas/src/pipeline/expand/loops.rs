//! What loops and conditions say: how often, over what, whether at all.

use super::{Carried, Expander, is_text, is_unresolved, scalar_of, text_node, text_of};
use crate::pipeline::references::whole;
use crate::pipeline::{params, wrong_type};
use crate::problem::{hint, listed};
use crate::yaml::{Entry, Node, Scalar, ScalarKind, Value};
use crate::{Problem, Span};

/// Names that loops use themselves.
const RESERVED: [&str; 3] = ["params", "carry", "round"];

impl Expander<'_> {
    /// `{ name: { first: ..., next: ... } }`.
    pub(super) fn carry(&mut self, carry: &Entry) -> Vec<(String, Node, Node)> {
        const KEYS: [&str; 2] = ["first", "next"];
        let Some(entries) = carry.value.entries() else {
            let wanted = "a mapping of names to `{ first: ..., next: ... }`";
            self.problems.push(wrong_type(carry, wanted));
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries {
            for key in entry.value.entries().unwrap_or_default() {
                if !KEYS.contains(&key.key.as_str()) {
                    let message = format!("`{}` has no key `{}`", entry.key, key.key);
                    self.problems.push(
                        Problem::new("unknown-key", message, key.key_span)
                            .with_label("unknown key")
                            .with_help(hint(&key.key, &KEYS, "keys")),
                    );
                }
            }
            let text = |key: &str| {
                let entry = entry.value.entry(key)?;
                is_text(&entry.value).then(|| entry.value.clone())
            };
            match (text("first"), text("next")) {
                (Some(first), Some(next)) => found.push((entry.key.clone(), first, next)),
                _ => self.problems.push(
                    wrong_type(entry, "`{ first: ..., next: ... }`").with_help(
                        "`first` names what the first round gets, `next` what each round gives to the one after it",
                    ),
                ),
            }
        }
        found
    }

    /// What a text in some scope names, to be resolved when all names are known.
    pub(super) fn carried(&mut self, node: &Node, scope: usize) -> Option<Carried> {
        let text = text_of(node)?;
        if let Some(name) = whole(text).and_then(|reference| reference.strip_prefix("carry.")) {
            let found = self.find_carried(name, scope);
            if found.is_none() {
                self.report_carried(name, node.span, scope);
            }
            return found;
        }
        let mut node = node.clone();
        self.substitute(&mut node, scope);
        let text = text_of(&node)?.to_owned();
        let span = node.span;
        (!is_unresolved(&node)).then_some(Carried { text, span, scope })
    }

    fn find_carried(&self, name: &str, scope: usize) -> Option<Carried> {
        self.chain(scope)
            .flat_map(|scope| &scope.carried)
            .find(|(carried, _)| carried == name)
            .map(|(_, carried)| carried.clone())
    }

    fn report_carried(&mut self, name: &str, span: Span, scope: usize) {
        let known: Vec<&str> = self
            .chain(scope)
            .flat_map(|scope| &scope.carried)
            .map(|(name, _)| name.as_str())
            .collect();
        let problem = Problem::new(
            "unknown-parameter",
            format!("nothing is carried as `{name}` here"),
            span,
        )
        .with_label("unknown reference")
        .with_help(hint(name, &known, "carried names"));
        self.problems.push(problem);
    }

    /// Every combination of the values of a `foreach`, the last variable changing fastest.
    pub(super) fn iterations(
        &mut self,
        foreach: &Entry,
        scope: usize,
    ) -> Vec<Vec<(String, Scalar)>> {
        let Some(variables) = foreach
            .value
            .entries()
            .filter(|entries| !entries.is_empty())
        else {
            let wanted = "a mapping of variables to lists, as in `{ size: [8, 16] }`";
            self.problems.push(wrong_type(foreach, wanted));
            return Vec::new();
        };
        let mut combinations = vec![Vec::new()];
        for variable in variables {
            if RESERVED.contains(&variable.key.as_str()) || variable.key.contains(['.', '}']) {
                let message = format!("`{}` is no name for a variable", variable.key);
                self.problems.push(
                    Problem::new("wrong-value", message, variable.key_span)
                        .with_label("not a name"),
                );
                return Vec::new();
            }
            let mut values = variable.value.clone();
            self.substitute(&mut values, scope);
            let scalars: Option<Vec<Scalar>> = match &values.value {
                Value::List(items) => items.iter().map(scalar_of).collect(),
                _ => None,
            };
            match scalars {
                Some(scalars) if !scalars.is_empty() => {
                    let with = |combination: &Vec<(String, Scalar)>| -> Vec<_> {
                        let one = |value: &Scalar| {
                            let mut longer = combination.clone();
                            longer.push((variable.key.clone(), value.clone()));
                            longer
                        };
                        scalars.iter().map(one).collect()
                    };
                    combinations = combinations.iter().flat_map(with).collect();
                }
                Some(_) => {
                    let message =
                        format!("`{}` is an empty list, which makes no stage", variable.key);
                    self.problems.push(
                        Problem::new("wrong-value", message, variable.key_span)
                            .with_label("empty")
                            .with_help("remove the stage, or give it a `when`"),
                    );
                    return Vec::new();
                }
                None => {
                    if !is_unresolved(&values) {
                        let entry = Entry {
                            value: values,
                            ..variable.clone()
                        };
                        self.problems
                            .push(wrong_type(&entry, "a list of texts and numbers"));
                    }
                    return Vec::new();
                }
            }
        }
        combinations
    }

    /// Each variable must be in the name: otherwise the stages would have one name.
    pub(super) fn has_names(
        &mut self,
        entry: &Entry,
        variables: &[(String, Scalar)],
        is_first: bool,
    ) -> bool {
        let missing: Vec<String> = variables
            .iter()
            .map(|(name, _)| format!("${{{name}}}"))
            .filter(|reference| !entry.key.contains(reference.as_str()))
            .collect();
        if missing.is_empty() || !is_first {
            return missing.is_empty();
        }
        self.problems.push(
            Problem::new(
                "wrong-value",
                format!("the name `{}` must contain {}", entry.key, listed(&missing)),
                entry.key_span,
            )
            .with_label("the same for every value")
            .with_help(format!("write `{}-{}`", entry.key, missing.join("-"))),
        );
        false
    }

    pub(super) fn rounds(&mut self, mut repeat: Entry, scope: usize) -> Option<u32> {
        self.substitute(&mut repeat.value, scope);
        if is_unresolved(&repeat.value) {
            return None;
        }
        let rounds = match &repeat.value.value {
            Value::Scalar(scalar) => match scalar.kind {
                ScalarKind::Integer(rounds @ 1..=10_000) => u32::try_from(rounds).ok(),
                _ => None,
            },
            _ => None,
        };
        if rounds.is_none() {
            self.problems
                .push(wrong_type(&repeat, "a number of rounds, at least 1"));
        }
        rounds
    }

    /// Whether a condition holds. A wrong one is reported, and holds.
    pub(super) fn condition(&mut self, when: &Entry, scope: usize) -> bool {
        let mut node = when.value.clone();
        let text = text_of(&node).unwrap_or_default().to_owned();
        for (operator, wanted) in [("==", true), ("!=", false)] {
            if let Some((left, right)) = text.split_once(operator) {
                let sides = [left, right].map(|side| self.side(side, node.span, scope));
                return match sides {
                    [Some(left), Some(right)] => params::same(&left, &right) == wanted,
                    _ => true,
                };
            }
        }
        self.substitute(&mut node, scope);
        match &node.value {
            Value::Scalar(Scalar {
                kind: ScalarKind::Bool(holds),
                ..
            }) => *holds,
            _ if is_unresolved(&node) => true,
            _ => {
                let entry = Entry {
                    value: node,
                    ..when.clone()
                };
                self.problems.push(
                    wrong_type(&entry, "`true` or `false`")
                        .with_help("write `${params.name}`, `${params.name} == value` or `${params.name} != value`"),
                );
                true
            }
        }
    }

    /// One side of a comparison.
    fn side(&mut self, text: &str, span: Span, scope: usize) -> Option<Node> {
        let text = text.trim();
        let quoted = ['"', '\'']
            .iter()
            .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        let (mut node, _) = match quoted {
            Some(text) => (Some(text_node(text, span)), Vec::new()),
            None if text.contains("${") => (Some(text_node(text, span)), Vec::new()),
            None => crate::yaml::read_value(text, 0),
        };
        if let Some(node) = &mut node {
            node.span = span;
            self.substitute(node, scope);
        }
        node.filter(|node| !is_unresolved(node))
    }
}
