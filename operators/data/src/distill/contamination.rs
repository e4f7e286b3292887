//! Which examples have passages of evaluation sets in them.
//!
//! Evaluation questions and solutions are cut into n-grams of words. A question or an answer that has one of them is
//! contaminated. What more than some evaluation rows have is an instruction or a phrase and says nothing. Prompts with images
//! only match evaluation rows with one of the same images: elsewhere the same question is another question.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, LargeStringArray, RecordBatch, StructArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use engine_core::{OperatorError, StageIo};
use engine_query::{Order, QuerySession};
use schemas::tables::TEXT;

use crate::hash::{hash, mix};
use crate::ngram::Words;
use crate::prompt_index::texts;

/// An n-gram that more evaluation rows have than these is no trace of any.
const COMMON: u32 = 10;
/// Bits of the filter for each n-gram.
const FILTER_BITS: usize = 16;
/// What a user says and is asked; the rest of a conversation is of the pipeline's making.
const USER: &str = "user";

/// The n-grams of the evaluation sets.
#[derive(Debug)]
pub(super) struct Evaluation {
    n: usize,
    rows: Vec<EvaluationRow>,
    grams: HashMap<u64, Gram>,
    /// Says of most hashes, without a look into the map, that they are not there.
    filter: Vec<u64>,
}

#[derive(Debug)]
struct EvaluationRow {
    id: String,
    source: String,
    /// Words of the question and of the solution.
    words: [Words; 2],
}

/// Where an n-gram is, and in how many rows.
#[derive(Clone, Copy, Debug)]
struct Gram {
    row: u32,
    /// Question or solution.
    part: u8,
    start: u32,
    length: u32,
    rows: u32,
    last: u32,
}

/// A passage that is in an evaluation set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    row: u32,
    gram: String,
}

/// The text of a conversation's questions and the digests of its images.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) words: Words,
    /// What the n-grams of its texts are mixed with.
    pub(super) salts: Vec<u64>,
}

impl Evaluation {
    /// Reads the evaluation sets.
    pub(super) fn read(n: usize, io: &dyn StageIo) -> Result<Self, OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "evaluation")?;
        let mut found = Self {
            n,
            rows: Vec::new(),
            grams: HashMap::new(),
            filter: Vec::new(),
        };
        let query = "SELECT prompt_id, messages, solution, source FROM evaluation";
        for batch in session.stream(session.sql(query)?) {
            let batch = batch?;
            let ids = texts(&batch, "prompt_id", "evaluation")?;
            let sources = texts(&batch, "source", "evaluation")?;
            let solutions = batch.column(2).as_string::<i64>();
            for row in 0..batch.num_rows() {
                let question = Question::read(batch.column(1), row);
                let solution = solutions.is_valid(row).then(|| solutions.value(row));
                let words = [question.words, Words::of(solution.unwrap_or_default())];
                let number = found.rows.len() as u32;
                for (part, words) in (0..).zip(&words) {
                    add(&mut found.grams, n, number, part, words, &question.salts);
                }
                found.rows.push(EvaluationRow {
                    id: ids.value(row).to_owned(),
                    source: sources.value(row).to_owned(),
                    words,
                });
            }
        }
        found.grams.retain(|_, gram| gram.rows <= COMMON);
        found.fill();
        Ok(found)
    }

    fn fill(&mut self) {
        let words = (self.grams.len() * FILTER_BITS / 64 + 1).next_power_of_two();
        self.filter = vec![0; words];
        let mut hashes: Vec<u64> = self.grams.keys().copied().collect();
        hashes.sort_unstable();
        for hash in hashes {
            let (word, bit) = self.filter_place(hash);
            self.filter[word] |= bit;
        }
    }

    fn filter_place(&self, hash: u64) -> (usize, u64) {
        let word = (hash >> 6) as usize & (self.filter.len() - 1);
        (word, 1 << (hash % 64))
    }

    /// The first passage of a text that is in an evaluation set.
    pub(super) fn find(&self, words: &Words, salts: &[u64]) -> Option<Hit> {
        if words.len() < self.n {
            // Too short to be a part of something; it may still be the same as something.
            let hash = words.whole();
            return salts
                .iter()
                .find_map(|salt| self.hit(hash ^ salt, words, 0, words.len()));
        }
        let mut grams = words.ngrams(self.n).enumerate();
        grams.find_map(|(start, hash)| {
            salts
                .iter()
                .find_map(|salt| self.hit(hash ^ salt, words, start, self.n))
        })
    }

    fn hit(&self, hash: u64, words: &Words, start: usize, length: usize) -> Option<Hit> {
        let (word, bit) = self.filter_place(hash);
        if self.filter[word] & bit == 0 || length == 0 {
            return None;
        }
        let gram = self.grams.get(&hash)?;
        let row = &self.rows[gram.row as usize];
        let theirs = &row.words[usize::from(gram.part)];
        let span = words.span(start, length);
        let is_same = theirs.span(gram.start as usize, gram.length as usize) == span;
        is_same.then(|| Hit {
            row: gram.row,
            gram: span.to_owned(),
        })
    }

    /// How many evaluation rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows for the port of contaminated examples.
    pub(super) fn table(&self, found: &[Found]) -> Result<RecordBatch, OperatorError> {
        let of_row = |hit: &Hit| &self.rows[hit.row as usize];
        let columns: Vec<ArrayRef> = vec![
            text(found.iter().map(|found| found.prompt_id.as_str())),
            Arc::new(UInt32Array::from_iter(
                found.iter().map(|found| found.sample),
            )),
            text(found.iter().map(|found| match found.sample {
                None => "question",
                Some(_) => "answer",
            })),
            text(found.iter().map(|found| of_row(&found.hit).id.as_str())),
            text(found.iter().map(|found| of_row(&found.hit).source.as_str())),
            text(found.iter().map(|found| found.hit.gram.as_str())),
        ];
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}

/// What was left out because of a passage: a prompt, or one sample of it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) prompt_id: String,
    pub(super) sample: Option<u32>,
    pub(super) hit: Hit,
}

/// Columns of the port of contaminated examples.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("prompt_id", TEXT, false),
        // Null when the question is contaminated, and with it every example of the prompt.
        Field::new("sample", DataType::UInt32, true),
        // `question` or `answer`.
        Field::new("found_in", TEXT, false),
        Field::new("evaluation_id", TEXT, false),
        Field::new("evaluation_source", TEXT, false),
        // The words that both have.
        Field::new("ngram", TEXT, false),
    ]))
}

fn text<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(LargeStringArray::from_iter_values(values))
}

/// Adds the n-grams of a text; a shorter text is one of its own.
fn add(grams: &mut HashMap<u64, Gram>, n: usize, row: u32, part: u8, words: &Words, salts: &[u64]) {
    let whole = (words.len() > 0 && words.len() < n).then(|| (0, words.whole()));
    let length = words.len().min(n) as u32;
    for (start, hash) in words.ngrams(n).enumerate().chain(whole) {
        for salt in salts {
            let gram = grams.entry(hash ^ salt).or_insert(Gram {
                row,
                part,
                start: start as u32,
                length,
                rows: 0,
                last: u32::MAX,
            });
            if gram.last != row {
                gram.rows += 1;
                gram.last = row;
            }
        }
    }
}

impl Question {
    /// The user's part of a row of a `messages` column.
    pub(super) fn read(messages: &ArrayRef, row: usize) -> Self {
        let mut found = String::new();
        let mut salts = Vec::new();
        let conversations = messages.as_list::<i64>();
        let all: &StructArray = conversations.values().as_struct();
        let roles = all.column(0).as_string::<i64>();
        let contents = all.column(1).as_list::<i64>();
        let parts = contents.values().as_struct();
        let [lines, images] = [1, 2].map(|column| parts.column(column).as_string::<i64>());
        let span = |offsets: &[i64], row: usize| offsets[row] as usize..offsets[row + 1] as usize;
        for message in span(conversations.value_offsets(), row) {
            if roles.value(message) != USER {
                continue;
            }
            for part in span(contents.value_offsets(), message) {
                if lines.is_valid(part) {
                    found.push_str(lines.value(part));
                    found.push('\n');
                }
                if images.is_valid(part) {
                    salts.push(mix(hash(images.value(part).as_bytes())));
                }
            }
        }
        if salts.is_empty() {
            salts.push(0);
        }
        Self {
            words: Words::of(&found),
            salts,
        }
    }
}

#[cfg(test)]
mod tests;
