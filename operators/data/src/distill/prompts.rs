//! The prompts whose rollouts are asked for, by number.

use std::collections::HashMap;

use arrow::array::AsArray;
use engine_core::{OperatorError, StageIo};
use engine_query::{Order, QuerySession};

use super::contamination::{Evaluation, Found, Question};
use super::{Caps, Distill};
use crate::prompt_index::{PromptIndex, texts};

/// The salt of n-grams of prompts without images.
const NO_IMAGES: [u64; 1] = [0];

/// What is known of the prompts.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    pub(super) index: PromptIndex,
    /// The source of each, where sources have caps.
    sources: Option<(PromptIndex, Vec<u32>)>,
    /// Salts of those that have images, where passages are looked for.
    images: HashMap<u32, Vec<u64>>,
    /// Whether the question is contaminated, where passages are looked for.
    is_contaminated: Vec<bool>,
    pub(super) contaminated: Vec<Found>,
}

impl Prompts {
    pub(super) fn read(
        config: &Distill,
        evaluation: Option<&Evaluation>,
        io: &dyn StageIo,
    ) -> Result<Self, OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "prompts")?;
        let mut found = Self::default();
        let mut columns = vec!["prompt_id"];
        if config.max.as_ref().is_some_and(Caps::needs_sources) {
            columns.push("source");
            found.sources = Some((PromptIndex::default(), Vec::new()));
        }
        if evaluation.is_some() {
            columns.push("messages");
        }
        let query = format!("SELECT {} FROM prompts", columns.join(", "));
        for batch in session.stream(session.sql(&query)?) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let ids = texts(&batch, "prompt_id", "prompts")?;
            for row in 0..batch.num_rows() {
                let (number, is_new) = found.index.insert(ids.value(row));
                if !is_new {
                    return Err(OperatorError::Data(format!(
                        "`prompts` has prompt `{}` more than once; leave copies out with a `sql` stage",
                        ids.value(row)
                    )));
                }
                if let Some((names, sources)) = &mut found.sources {
                    let source = batch.column(1).as_string::<i64>().value(row);
                    sources.push(names.insert(source).0);
                }
                if let Some(evaluation) = evaluation {
                    let messages = batch.column(columns.len() - 1);
                    found.compare(number, Question::read(messages, row), evaluation);
                }
            }
        }
        Ok(found)
    }

    fn compare(&mut self, number: u32, question: Question, evaluation: &Evaluation) {
        let hit = evaluation.find(&question.words, &question.salts);
        self.is_contaminated.push(hit.is_some());
        if let Some(hit) = hit {
            self.contaminated.push(Found {
                prompt_id: self.index.id(number).to_owned(),
                sample: None,
                hit,
            });
        }
        if question.salts != NO_IMAGES {
            self.images.insert(number, question.salts);
        }
    }

    /// Whether examples of this prompt are wanted.
    pub(super) fn is_wanted(&self, prompt: u32) -> bool {
        !self
            .is_contaminated
            .get(prompt as usize)
            .is_some_and(|found| *found)
    }

    pub(super) fn salts(&self, prompt: u32) -> &[u64] {
        self.images.get(&prompt).map_or(&NO_IMAGES, Vec::as_slice)
    }

    pub(super) fn source(&self, prompt: u32) -> &str {
        self.sources
            .as_ref()
            .map_or("", |(names, sources)| names.id(sources[prompt as usize]))
    }
}
