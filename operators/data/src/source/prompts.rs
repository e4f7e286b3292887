//! Rows of the files as prompts, examples and worked solutions.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, LargeListArray, LargeListBuilder, LargeStringArray,
    LargeStringBuilder, PrimitiveBuilder, RecordBatch, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, UInt32Type};
use engine_core::{FailedRow, MapOutput, MapPart, MapTask, OperatorError, StageView};
use rayon::prelude::*;
use schemas::TableName;

use super::layout::Layout;
use super::{PLACEHOLDER, Source, filled, images, rows, solutions_schema};
use crate::messages::MessagesBuilder;

/// Images that are on their way into the store side by side.
const PUTS_AT_ONCE: usize = 8;

/// Turns rows of the files into prompts.
pub(super) struct Reader<'a> {
    pub(super) config: &'a Source,
    pub(super) view: &'a dyn StageView,
}

impl MapTask for Reader<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let faults: Vec<Option<String>> = (0..part.rows.num_rows())
            .into_par_iter()
            .map(|row| fault(part.rows, row, self.config))
            .collect();
        let good: UInt32Array = (0_u32..)
            .zip(&faults)
            .filter(|(_, fault)| fault.is_none())
            .map(|(row, _)| Some(row))
            .collect();
        let ports = if good.len() == faults.len() {
            self.ports(part.rows)?
        } else {
            self.ports(&take_record_batch(part.rows, &good)?)?
        };
        let failed = faults
            .into_iter()
            .enumerate()
            .filter_map(|(row, fault)| fault.map(|error| FailedRow { row, error }));
        Ok(MapOutput {
            slices: vec![ports.into_iter().collect()],
            failed: failed.collect(),
            tokens: 0,
        })
    }
}

/// Builds the two columns of a prompt that are made of several.
#[derive(Default)]
struct Asked {
    ids: LargeStringBuilder,
    messages: MessagesBuilder,
}

impl Reader<'_> {
    /// What rows without fault give to each output.
    fn ports(&self, rows: &RecordBatch) -> Result<Vec<(String, RecordBatch)>, OperatorError> {
        if self.config.layout == Some(Layout::Solutions) {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(text(rows, rows::ID)?.clone()),
                Arc::new(text(rows, rows::SOLUTION)?.clone()),
            ];
            let solutions = RecordBatch::try_new(solutions_schema(), columns)?;
            return Ok(vec![("solutions".to_owned(), solutions)]);
        }
        let prompts = self.prompts(rows)?;
        if !self.config.examples {
            return Ok(vec![("prompts".to_owned(), prompts)]);
        }
        let examples = examples(&prompts)?;
        Ok(vec![
            ("prompts".to_owned(), prompts),
            ("examples".to_owned(), examples),
        ])
    }

    fn prompts(&self, rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let ids = rows.column_by_name(rows::ID).map(AsArray::as_string::<i64>);
        let pictures = self.store_images(rows)?;
        let conversations: Option<&LargeListArray> = rows
            .column_by_name(rows::MESSAGES)
            .map(AsArray::as_list::<i64>);
        let mut asked = Asked::default();
        for row in 0..rows.num_rows() {
            let images = pictures.get(row).map_or(&[][..], Vec::as_slice);
            let made_id = match conversations {
                Some(conversations) => {
                    self.add_conversation(&mut asked, conversations, row, images)
                }
                None => self.add_problem(&mut asked, text(rows, rows::PROBLEM)?.value(row), images),
            };
            match ids {
                Some(ids) => asked.ids.append_value(ids.value(row)),
                None => asked
                    .ids
                    .append_value(self.content_id(rows, row, &made_id, images)),
            }
        }
        let optional = |name: &str| -> ArrayRef {
            rows.column_by_name(name).map_or_else(
                || Arc::new(LargeStringArray::new_null(rows.num_rows())) as ArrayRef,
                Arc::clone,
            )
        };
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(asked.ids.finish()),
            asked.messages.finish(),
            optional(rows::ANSWER),
            optional(rows::SOLUTION),
            optional(rows::CATEGORY),
            Arc::new(self.sources(rows)),
        ];
        Ok(RecordBatch::try_new(TableName::Prompts.schema(), arrays)?)
    }

    /// The data sets that the rows come from.
    fn sources(&self, rows: &RecordBatch) -> LargeStringArray {
        let known = rows
            .column_by_name(rows::SOURCE)
            .map(AsArray::as_string::<i64>);
        let source = |row: usize| match &self.config.name {
            Some(name) => name.as_str(),
            None => known.and_then(|known| filled(known, row)).unwrap_or("data"),
        };
        LargeStringArray::from_iter_values((0..rows.num_rows()).map(source))
    }

    /// Adds a prompt of one question; what its id is made of.
    fn add_problem(&self, asked: &mut Asked, problem: &str, images: &[String]) -> Vec<String> {
        let messages = &mut asked.messages;
        if let Some(system) = &self.config.system {
            messages.message("system");
            messages.text(system);
        }
        messages.message("user");
        add_parts(messages, problem, images);
        messages.end_row();
        vec![problem.to_owned()]
    }

    /// Adds a prompt of several turns; what its id is made of.
    fn add_conversation(
        &self,
        asked: &mut Asked,
        conversations: &LargeListArray,
        row: usize,
        images: &[String],
    ) -> Vec<String> {
        let messages = &mut asked.messages;
        if let Some(system) = &self.config.system {
            messages.message("system");
            messages.text(system);
        }
        each_turn(conversations, row, |turn| {
            if turn.role == "system" && self.config.system.is_some() {
                return;
            }
            messages.message(turn.role);
            for part in &turn.parts {
                match part {
                    Part::Text(text) => messages.text(text),
                    Part::Image(number) => {
                        let digest = number
                            .parse()
                            .ok()
                            .and_then(|number: usize| images.get(number));
                        messages.image(digest.expect("the reader numbered the images of the row"));
                    }
                }
            }
        });
        messages.end_row();
        words(conversations, row)
    }

    /// The name of a prompt that has none: half a blake3 digest of everything that makes it what it is.
    fn content_id(
        &self,
        rows: &RecordBatch,
        row: usize,
        question: &[String],
        images: &[String],
    ) -> String {
        let value = |name: &str| {
            let column = rows.column_by_name(name)?.as_string_opt::<i64>()?;
            column.is_valid(row).then(|| column.value(row))
        };
        let solution = value(rows::SOLUTION).filter(|_| self.config.examples);
        let mut hasher = blake3::Hasher::new();
        let question = question.iter().map(String::as_str);
        let images = images.iter().map(String::as_str);
        let answer = [value(rows::ANSWER).unwrap_or_default()];
        for part in question.chain(answer).chain(solution).chain(images) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Puts the images of all rows into the store and returns their digests; nothing for rows without a column of images.
    fn store_images(&self, rows: &RecordBatch) -> Result<Vec<Vec<String>>, OperatorError> {
        let Some(images) = images_of(rows) else {
            return Ok(Vec::new());
        };
        let store_row = |row: usize| -> Result<Vec<String>, OperatorError> {
            if images.is_null(row) {
                return Ok(Vec::new());
            }
            let items = images.value(row);
            let items = items.as_binary::<i64>();
            let stored = items.iter().flatten();
            stored.map(|bytes| self.view.put_media(bytes)).collect()
        };
        // Threads of their own: they wait for the store, and the cores have better things to do.
        let lane_rows = images.len().div_ceil(PUTS_AT_ONCE).max(1);
        let rows: Vec<usize> = (0..images.len()).collect();
        std::thread::scope(|scope| {
            let lanes: Vec<_> = rows
                .chunks(lane_rows)
                .map(|lane| {
                    let lane = move || lane.iter().map(|row| store_row(*row)).collect::<Vec<_>>();
                    scope.spawn(lane)
                })
                .collect();
            lanes
                .into_iter()
                .flat_map(|lane| lane.join().expect("storing an image does not panic"))
                .collect()
        })
    }
}

/// What is wrong with a row.
fn fault(rows: &RecordBatch, row: usize, config: &Source) -> Option<String> {
    let column = |name: &str| rows.column_by_name(name).map(AsArray::as_string::<i64>);
    if let Some(fault) = column(rows::FAULT).and_then(|faults| filled(faults, row)) {
        return Some(fault.to_owned());
    }
    let is_filled = |name: &str| column(name).is_none_or(|column| filled(column, row).is_some());
    if !is_filled(rows::PROBLEM) {
        return Some("the question has no text".to_owned());
    }
    if config.requires_answers() && !is_filled(rows::ANSWER) {
        return Some("there is no answer; every prompt needs one that can be checked".to_owned());
    }
    if config.examples && !is_filled(rows::SOLUTION) {
        return Some("there is no solution, so that there is nothing to learn".to_owned());
    }
    if !is_filled(rows::ID) {
        return Some("there is no id; every row needs one".to_owned());
    }
    let images = images_of(rows);
    let count = images
        .filter(|images| images.is_valid(row))
        .map_or(0, |images| images.value(row).len());
    if let Some(Err(fault)) = images.map(|images| images::check(images, row)) {
        return Some(fault);
    }
    let problem = column(rows::PROBLEM)?;
    let placeholders = problem.value(row).matches(PLACEHOLDER).count();
    (placeholders != 0 && placeholders != count).then(|| {
        format!("the text has {placeholders} `{PLACEHOLDER}` and the row has {count} images")
    })
}

fn images_of(rows: &RecordBatch) -> Option<&LargeListArray> {
    rows.column_by_name(rows::IMAGES)?.as_list_opt()
}

fn text<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a LargeStringArray, OperatorError> {
    rows.column_by_name(name)
        .and_then(|column| column.as_string_opt())
        .ok_or_else(|| OperatorError::Internal(format!("column `{name}` was not read")))
}

/// The parts of the user's message. Images replace their placeholders in order; without placeholders they come first.
fn add_parts(messages: &mut MessagesBuilder, problem: &str, images: &[String]) {
    if !problem.contains(PLACEHOLDER) {
        for image in images {
            messages.image(image);
        }
        messages.text(problem);
        return;
    }
    for (index, text) in problem.split(PLACEHOLDER).enumerate() {
        if index > 0 {
            messages.image(&images[index - 1]);
        }
        if !text.is_empty() {
            messages.text(text);
        }
    }
}

/// A turn of a conversation that was read.
struct Turn<'a> {
    role: &'a str,
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Text(&'a str),
    /// The number of an image of the row.
    Image(&'a str),
}

/// Calls `each` with every turn of a row.
fn each_turn(conversations: &LargeListArray, row: usize, mut each: impl FnMut(&Turn<'_>)) {
    let turns = conversations.value(row);
    let turns = turns.as_struct();
    let (roles, contents) = (
        turns.column(0).as_string::<i64>(),
        turns.column(1).as_list::<i64>(),
    );
    for turn in 0..turns.len() {
        let parts = contents.value(turn);
        let parts = parts.as_struct();
        let (texts, images) = (
            parts.column(1).as_string::<i64>(),
            parts.column(2).as_string::<i64>(),
        );
        let part = |part: usize| {
            if images.is_valid(part) {
                Part::Image(images.value(part))
            } else {
                Part::Text(texts.value(part))
            }
        };
        each(&Turn {
            role: roles.value(turn),
            parts: (0..parts.len()).map(part).collect(),
        });
    }
}

/// All that makes a conversation what it is, but for its images.
pub(super) fn words(conversations: &LargeListArray, row: usize) -> Vec<String> {
    let mut words = Vec::new();
    each_turn(conversations, row, |turn| {
        words.push(turn.role.to_owned());
        words.push(turn.parts.len().to_string());
        words.extend(turn.parts.iter().map(|part| match part {
            Part::Text(text) => format!("text {text}"),
            Part::Image(number) => format!("image {number}"),
        }));
    });
    words
}

/// The prompts as examples: their solutions are what to learn.
fn examples(prompts: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let column = |name: &str| {
        prompts
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| OperatorError::Internal(format!("prompts lack the column `{name}`")))
    };
    let rows = prompts.num_rows();
    let item = Arc::new(Field::new("item", DataType::UInt32, false));
    let mut token_ids =
        LargeListBuilder::new(PrimitiveBuilder::<UInt32Type>::new()).with_field(item);
    for _ in 0..rows {
        token_ids.append_null();
    }
    let columns: Vec<ArrayRef> = vec![
        column("prompt_id")?,
        column("messages")?,
        column("solution")?,
        Arc::new(token_ids.finish()),
        column("source")?,
        Arc::new(LargeStringArray::new_null(rows)),
    ];
    Ok(RecordBatch::try_new(TableName::Examples.schema(), columns)?)
}
