//! What names mean, when all stages are there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Carried, Expanded, Expander, Flat, is_text, make_unresolved, text_node, text_of};
use crate::pipeline::references::whole;
use crate::problem::{drop_known, hint};
use crate::yaml::{Entry, Node, Value};
use crate::{Problem, Span};

/// Carried values that stand for carried values.
const MOST_STEPS: usize = 64;

/// What a name stands for.
enum Target {
    /// Full names of stages, with the port.
    Stages(Vec<String>),
    Unknown,
}

impl Expander<'_> {
    /// Resolves everything, now that all names are known.
    pub(super) fn finish(mut self, entries: &mut Vec<Entry>) -> Expanded {
        let mut expanded = Expanded::default();
        let mut names: BTreeMap<String, Span> = BTreeMap::new();
        let mut order: Vec<String> = Vec::with_capacity(self.flats.len());
        let mut looped = Vec::new();
        for Flat { entry, state } in &self.flats {
            if let Some(first) = names.insert(entry.key.clone(), entry.key_span) {
                let message = format!("two stages are called `{}`", entry.key);
                let mut problem = Problem::new("duplicate-key", message, entry.key_span).with_help(
                    "names are made from those of the loops, rounds and values: rename one",
                );
                if first != entry.key_span {
                    problem = problem.with_other(first, "first");
                }
                self.problems.push(problem.with_label("second"));
                continue;
            }
            order.push(entry.key.clone());
            if state.scope != 0 {
                looped.push(entry.key.clone());
            }
            if let Some(when) = state.removed {
                expanded.removed.insert(entry.key.clone(), when);
            }
        }
        let index = Index {
            names,
            order,
            looped,
        };
        for Flat { mut entry, state } in std::mem::take(&mut self.flats) {
            let before = self.problems.len();
            if let Value::Map(keys) = &mut entry.value.value {
                for key in keys {
                    match (key.key.as_str(), &mut key.value.value) {
                        ("inputs", Value::Map(ports)) => {
                            for port in ports {
                                self.input(&mut port.value, &index, state.scope);
                            }
                        }
                        _ => self.substitute(&mut key.value, state.scope),
                    }
                }
            }
            if state.origin.is_copy {
                drop_known(self.problems, before);
            }
            if state.removed.is_none() {
                expanded.origins.push(state.origin);
                entries.push(entry);
            }
        }
        self.check_groups(&index);
        expanded
    }

    /// What a loop gives to the next round must be there, whether it is read or not.
    fn check_groups(&mut self, index: &Index) {
        let groups = self.groups.values();
        let carried: Vec<Carried> = groups
            .flat_map(|group| group.carried.iter().map(|(_, carried)| carried.clone()))
            .collect();
        for carried in carried {
            let before = self.problems.len();
            if self.resolve(&carried, index, 0).is_none() {
                let problem = self.unknown(&carried, index);
                self.problems.push(problem);
            }
            drop_known(self.problems, before);
        }
    }

    /// Gives the sources of an input their full names.
    fn input(&mut self, node: &mut Node, index: &Index, scope: usize) {
        if let Value::List(items) = &mut node.value {
            let mut named = Vec::with_capacity(items.len());
            for mut item in std::mem::take(items) {
                if !is_text(&item) {
                    named.push(item);
                    continue;
                }
                self.input(&mut item, index, scope);
                match item.value {
                    // A pattern stands for several.
                    Value::List(several) => named.extend(several),
                    value => named.push(Node { value, ..item }),
                }
            }
            *items = named;
            return;
        }
        if !is_text(node) {
            return;
        }
        let Some(text) = text_of(node) else { return };
        if !text.contains("${") && scope == 0 && self.groups.is_empty() && !text.contains('*') {
            return;
        }
        if whole(text).is_some_and(|name| !name.starts_with("carry.")) {
            // A parameter may be a list.
            self.substitute(node, scope);
            if matches!(node.value, Value::List(_)) {
                return self.input(node, index, scope);
            }
        }
        let Some(carried) = self.carried(node, scope) else {
            make_unresolved(node);
            return;
        };
        match self.resolve(&carried, index, 0) {
            Some(Target::Stages(names)) if carried.text.contains('*') => {
                let items = names
                    .iter()
                    .map(|name| text_node(name, node.span))
                    .collect();
                node.value = Value::List(items);
            }
            Some(Target::Stages(names)) => {
                for name in names {
                    node.value = text_node(&name, node.span).value;
                }
            }
            // A plain name in the file is reported with all other unknown stages.
            None if carried.scope == 0
                && !carried.text.contains('*')
                && carried.span == node.span =>
            {
                node.value = text_node(&carried.text, node.span).value;
            }
            None => {
                let problem = self.unknown(&carried, index);
                self.problems.push(problem);
                make_unresolved(node);
            }
            Some(Target::Unknown) => make_unresolved(node),
        }
    }

    /// The stages that a name means: those of its own loop first. Nothing when there are none.
    fn resolve(&mut self, carried: &Carried, index: &Index, depth: usize) -> Option<Target> {
        let (stage, port) = match carried.text.split_once('.') {
            Some((stage, port)) => (stage, Some(port)),
            None => (carried.text.as_str(), None),
        };
        let prefixes: Vec<String> = self
            .chain(carried.scope)
            .map(|scope| scope.prefix.clone())
            .collect();
        for prefix in &prefixes {
            let name = format!("{prefix}{stage}");
            if let Some(group) = self.groups.get(&name) {
                let inner = port.and_then(|port| {
                    let mut carried = group.carried.iter();
                    carried.find(|(name, _)| name == port)
                });
                if let Some((_, inner)) = inner
                    && depth < MOST_STEPS
                {
                    let inner = inner.clone();
                    return self.resolve(&inner, index, depth + 1);
                }
                let problem = self.group_read_wrongly(&name, port, carried.span, index);
                self.problems.push(problem);
                return Some(Target::Unknown);
            }
            let stages = index.find(&name);
            if !stages.is_empty() {
                let with_port = |stage: String| match port {
                    Some(port) => format!("{stage}.{port}"),
                    None => stage,
                };
                return Some(Target::Stages(stages.into_iter().map(with_port).collect()));
            }
        }
        None
    }

    fn group_read_wrongly(
        &self,
        name: &str,
        port: Option<&str>,
        span: Span,
        index: &Index,
    ) -> Problem {
        let group = &self.groups[name];
        let mut names: Vec<String> = group
            .carried
            .iter()
            .map(|(carried, _)| format!("{name}.{carried}"))
            .collect();
        names.extend(index.starting(&group.prefix).cloned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let written = port.map_or_else(|| name.to_owned(), |port| format!("{name}.{port}"));
        let message = match port {
            Some(port) => format!("the group `{name}` carries nothing as `{port}`"),
            None => format!("`{name}` is a group of stages"),
        };
        Problem::new("unknown-stage", message, span)
            .with_label("not one stage")
            .with_help(hint(&written, &names, "names"))
    }

    fn unknown(&self, carried: &Carried, index: &Index) -> Problem {
        let stage = carried.text.split('.').next().unwrap_or_default();
        let mut names: Vec<&str> = Vec::new();
        for scope in self.chain(carried.scope) {
            let inside = index.starting(&scope.prefix);
            names.extend(inside.map(|name| &name[scope.prefix.len()..]));
        }
        let mut seen = BTreeSet::new();
        names.extend(self.groups.keys().map(String::as_str));
        if stage.contains('*') {
            names = index.looped.iter().map(String::as_str).collect();
        }
        names.retain(|name| seen.insert(*name));
        let message = if stage.contains('*') {
            format!("no stage of a loop has a name like `{stage}`")
        } else {
            format!("there is no stage `{stage}`")
        };
        Problem::new("unknown-stage", message, carried.span)
            .with_label("unknown stage")
            .with_help(hint(stage, &names, "stages"))
    }
}

/// All names of stages.
struct Index {
    names: BTreeMap<String, Span>,
    /// In the order of the file.
    order: Vec<String>,
    /// Those that loops made.
    looped: Vec<String>,
}

impl Index {
    /// The stage with a name, or the stages of loops that a pattern with `*` fits.
    fn find(&self, name: &str) -> Vec<String> {
        match name.split_once('*') {
            None if self.names.contains_key(name) => vec![name.to_owned()],
            None => Vec::new(),
            Some(_) => {
                let fitting = self.looped.iter().filter(|stage| fits(name, stage));
                fitting.cloned().collect()
            }
        }
    }

    fn starting<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> {
        self.order
            .iter()
            .filter(move |name| name.starts_with(prefix))
    }
}

/// Whether a pattern fits a name; `*` stands for at least one character.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let ends = name
                .char_indices()
                .map(|(at, letter)| at + letter.len_utf8());
            ends.into_iter().any(|end| fits(rest, &name[end..]))
        }),
    }
}
