//! YAML with exact places.
//!
//! A file is read once into a tree that knows where every key and value stands. Typed values are then read from places
//! in that tree, as often and as late as their types become known. Reading goes on after a mistake, with a stand-in for
//! what is wrong or missing, so that one call reports everything that it can find.

mod node;
mod stand_in;
mod typed;

use serde::de::DeserializeOwned;

pub(crate) use node::{Entry, Node, Scalar, ScalarKind, Value};

use crate::{Problem, Span};

/// One YAML file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Name for messages: the path as the user gave it.
    pub name: String,
    /// The text.
    pub text: String,
    root: Option<Node>,
    problems: Vec<Problem>,
}

impl Document {
    /// Reads a text. Mistakes of syntax and duplicate keys are kept in [`Document::problems`].
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let (root, problems) = node::read(&text);
        Self {
            name: name.into(),
            text,
            root,
            problems,
        }
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
        match root.find(path) {
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
        Some(self.root.as_ref()?.find(path)?.span())
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

    /// Line and column of the first character of a place, both from 1.
    #[must_use]
    pub fn position(&self, span: Span) -> (usize, usize) {
        let before = &self.text[..span.start.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.as_ref()
    }

    pub(crate) fn root_mut(&mut self) -> Option<&mut Node> {
        self.root.as_mut()
    }
}

#[cfg(test)]
mod tests;
