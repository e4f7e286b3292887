//! YAML with exact places.
//!
//! A file is read once into a tree that knows where every key and value stands. Typed values are then read from places
//! in that tree, as often and as late as their types become known. Reading goes on after a mistake, with a stand-in for
//! what is wrong or missing, so that one call reports everything that it can find.

mod node;
mod plain;
mod stand_in;
mod typed;

use std::collections::{BTreeSet, HashMap};

use serde::de::DeserializeOwned;

use node::Place;
pub(crate) use node::{Entry, Node, Scalar, ScalarKind, Value, read, read_value};
pub(crate) use plain::Writer;

use crate::{Problem, Span};

/// One YAML file, or several that were put together.
#[derive(Clone, Debug)]
pub struct Document {
    /// Name for messages: the path as the user gave it.
    pub name: String,
    /// The text.
    pub text: String,
    root: Option<Node>,
    problems: Vec<Problem>,
    /// Texts that came to it, each at a place behind all before.
    more: Vec<Appended>,
    /// Positions of the stages by name, once they do not change any more: pipelines of thousands of stages look up each.
    stages: HashMap<String, usize>,
    /// Parameters that stages referred to before overlays changed them.
    used: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Appended {
    name: String,
    text: String,
    base: usize,
}

/// The file that a place is in.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    /// Name of the file.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Where its first byte stands in the document.
    pub base: usize,
    /// The place inside the file.
    pub span: Span,
    /// Line of its first character, from 1.
    pub line: usize,
    /// Column of its first character, from 1.
    pub column: usize,
}

impl Document {
    /// Reads a text. Mistakes of syntax and duplicate keys are kept in [`Document::problems`].
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let (root, problems) = read(&text, 0);
        Self {
            name: name.into(),
            text,
            root,
            problems,
            more: Vec::new(),
            stages: HashMap::new(),
            used: BTreeSet::new(),
        }
    }

    /// Takes a further text, and returns where its first byte stands.
    pub(crate) fn append(&mut self, name: String, text: String) -> usize {
        let base = match self.more.last() {
            Some(last) => last.base + last.text.len() + 1,
            None => self.text.len() + 1,
        };
        self.more.push(Appended { name, text, base });
        base
    }

    /// What is wrong with the text as YAML, whatever it is meant to say.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The value at a path of keys, typed.
    ///
    /// # Errors
    /// Every problem found in it.
    pub fn parse_at<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Vec<Problem>> {
        let Some(root) = &self.root else {
            return Err(self.problems.clone());
        };
        match self.find(root, path) {
            Some(place) => typed::read(place),
            None => {
                let span = self.nearest_span(path);
                let name = path.last().copied().unwrap_or("the file");
                Err(vec![Problem::new(
                    "missing-key",
                    format!("`{name}` is missing"),
                    span,
                )])
            }
        }
    }

    /// Place of the value at a path of keys: the value itself when it is one word or number, otherwise its key.
    /// Items of lists are named by their position, from 0.
    #[must_use]
    pub fn span_of(&self, path: &[&str]) -> Option<Span> {
        Some(self.find(self.root.as_ref()?, path)?.span())
    }

    fn find<'a>(&'a self, root: &'a Node, path: &[&'a str]) -> Option<Place<'a>> {
        if let ["stages", name, rest @ ..] = path
            && let Some(position) = self.stages.get(*name)
        {
            let stages = root.entry("stages")?.value.entries()?;
            return stages.get(*position)?.place().find(rest);
        }
        root.find(path)
    }

    /// Remembers where each stage is. The stages stay as they are from now on.
    pub(crate) fn index_stages(&mut self) {
        let stages = self.root.as_ref().and_then(|root| root.entry("stages"));
        let entries = stages.and_then(|stages| stages.value.entries());
        let entries = entries.unwrap_or_default().iter().enumerate().rev();
        self.stages = entries
            .map(|(position, entry)| (entry.key.clone(), position))
            .collect();
    }

    /// As [`Document::span_of`]; where the path leaves what is written (a key that has its default), the last place on
    /// the way.
    #[must_use]
    pub fn nearest_span(&self, path: &[&str]) -> Span {
        (0..=path.len())
            .rev()
            .find_map(|len| self.span_of(&path[..len]))
            .unwrap_or_default()
    }

    /// The file, line and column of a place.
    #[must_use]
    pub fn locate(&self, span: Span) -> Located<'_> {
        let after = self.more.partition_point(|more| more.base <= span.start);
        let (name, text, base) = match after.checked_sub(1) {
            Some(index) => {
                let Appended { name, text, base } = &self.more[index];
                (name, text, *base)
            }
            None => (&self.name, &self.text, 0),
        };
        let start = span.start - base;
        let mut end = start.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Located {
            name,
            text,
            base,
            span: Span { start, ..span },
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.as_ref()
    }

    pub(crate) fn root_mut(&mut self) -> Option<&mut Node> {
        self.root.as_mut()
    }

    pub(crate) fn set_root(&mut self, root: Node) {
        self.root = Some(root);
    }

    pub(crate) fn used(&self) -> &BTreeSet<String> {
        &self.used
    }

    pub(crate) fn set_used(&mut self, used: BTreeSet<String>) {
        self.used = used;
    }

    pub(crate) fn problems_mut(&mut self) -> &mut Vec<Problem> {
        &mut self.problems
    }
}

#[cfg(test)]
mod tests;
