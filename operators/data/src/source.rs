//! source: reads prompts from Parquet files, in the layout of EasyR1 and Hugging Face `datasets` or any other by mapping
//! its columns.
//!
//! Images are decoded once to check them and kept in the store by digest. A row that cannot be used fails
//! with its file and row; nothing is dropped.

mod images;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, LargeListArray, LargeStringArray, LargeStringBuilder, RecordBatch,
    UInt32Array,
};
use arrow::compute::take_record_batch;
use engine_core::operator::{BatchReader, Family, missing_externals};
use engine_core::{
    External, FailedRow, Fault, MapOperator, MapOutput, MapPart, MapTask, OperatorConfig,
    OperatorError, OperatorKind, Placement, PortType, PortTypes, Ports, StageContext, StageView,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::messages::MessagesBuilder;
use rows::Files;
use table::SourceFile;

/// Images that are on their way into the store side by side.
const PUTS_AT_ONCE: usize = 8;

/// Where an image stands in the text of a problem.
const PLACEHOLDER: &str = "<image>";

/// A Parquet file, or a folder of them, with one prompt per row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// Parquet file, or folder whose `.parquet` files are read in the order of their names.
    pub path: PathBuf,
    /// Which column is what.
    #[serde(default)]
    pub columns: Columns,
    /// Rows that are read; all when left out.
    #[serde(default)]
    pub limit: Option<u64>,
    /// A system message in front of every prompt.
    #[serde(default)]
    pub system: Option<String>,
    /// Value of the column `source`; `data` when left out.
    #[serde(default)]
    pub name: Option<String>,
}

/// Names of the columns in the files. The defaults are those of EasyR1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Columns {
    /// Unique name of the prompt; when left out it is the digest of its content.
    #[serde(default)]
    pub id: Option<String>,
    /// The question, with `<image>` where an image belongs.
    #[serde(default = "problem")]
    pub problem: String,
    /// Images: one or a list, each as bytes or as a struct with `bytes`. When left out, `images` is used if it is there.
    #[serde(default)]
    pub images: Option<String>,
    /// Gold answer.
    #[serde(default = "answer")]
    pub answer: String,
    /// Worked solution.
    #[serde(default)]
    pub solution: Option<String>,
    /// Kind of question, for reports.
    #[serde(default)]
    pub category: Option<String>,
}

fn problem() -> String {
    "problem".to_owned()
}

fn answer() -> String {
    "answer".to_owned()
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            id: None,
            problem: problem(),
            images: None,
            answer: answer(),
            solution: None,
            category: None,
        }
    }
}

impl OperatorKind for Source {
    const KIND: &'static str = "source";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "reads prompts from Parquet files";
}

impl OperatorConfig for Source {
    fn ports(&self) -> Ports {
        Ports::new(Vec::new(), &["prompts"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        if self.limit == Some(0) {
            return Err(vec![
                Fault::at("wrong-value", "limit", "`limit` is 0")
                    .with_help("write 1 or more, or leave it out"),
            ]);
        }
        Ok(PortTypes::from([(
            "prompts".to_owned(),
            vec![PortType::table(TableName::Prompts)],
        )]))
    }

    fn externals(&self) -> Vec<External> {
        vec![External {
            pointer: "/path".to_owned(),
            path: self.path.clone(),
            content: engine_core::ExternalContent::Rows,
        }]
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        let missing = missing_externals(root, &self.externals());
        if !missing.is_empty() {
            return missing;
        }
        let files = match table::files(root, &self.path) {
            Ok(files) => files,
            Err(fault) => return vec![fault],
        };
        for file in &files {
            let faults = match SourceFile::open(file) {
                Ok(file) => file.faults(&self.columns),
                Err(fault) => vec![fault],
            };
            // The files of a folder tend to have the same fault; the first says enough.
            if !faults.is_empty() {
                return faults;
            }
        }
        Vec::new()
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Source {
    fn rows_port(&self) -> Option<&str> {
        None
    }

    fn outside_rows(&self, context: &StageContext<'_>) -> Result<BatchReader, OperatorError> {
        Ok(Files::open(self, context.root)?.read())
    }

    fn outside_total(&self, context: &StageContext<'_>) -> Option<u64> {
        let files = Files::open(self, context.root).ok()?;
        Some(files.total())
    }

    fn row_place(&self, context: &StageContext<'_>, row: u64) -> Option<String> {
        Files::open(self, context.root).ok()?.place(row)
    }

    /// The rows have names of ours already, and how many are read is no matter of a row.
    fn part_config(&self, canonical: &serde_json::Value) -> serde_json::Value {
        let mut config = canonical.clone();
        if let Some(config) = config.as_object_mut() {
            config.remove("path");
            config.remove("limit");
            config.insert("columns".to_owned(), self.columns.id.is_some().into());
        }
        config
    }

    fn start<'a>(
        &'a self,
        _context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        Ok(Box::new(Reader { config: self, view }))
    }
}

/// Turns rows of the files into prompts.
struct Reader<'a> {
    config: &'a Source,
    view: &'a dyn StageView,
}

impl MapTask for Reader<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let faults: Vec<Option<String>> = (0..part.rows.num_rows())
            .into_par_iter()
            .map(|row| fault(part.rows, row))
            .collect();
        let good: UInt32Array = (0_u32..)
            .zip(&faults)
            .filter(|(_, fault)| fault.is_none())
            .map(|(row, _)| Some(row))
            .collect();
        let prompts = if good.len() == faults.len() {
            self.prompts(part.rows)?
        } else {
            self.prompts(&take_record_batch(part.rows, &good)?)?
        };
        let failed = faults
            .into_iter()
            .enumerate()
            .filter_map(|(row, fault)| fault.map(|error| FailedRow { row, error }));
        Ok(MapOutput {
            slices: vec![[("prompts".to_owned(), prompts)].into()],
            failed: failed.collect(),
            tokens: 0,
        })
    }
}

impl Reader<'_> {
    /// The prompts of rows without fault.
    fn prompts(&self, rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let problems = text(rows, rows::PROBLEM)?;
        let answers = text(rows, rows::ANSWER)?;
        let ids = rows.column_by_name(rows::ID).map(AsArray::as_string::<i64>);
        let pictures = self.store_images(rows)?;
        let mut messages = MessagesBuilder::default();
        let mut prompt_ids = LargeStringBuilder::new();
        for row in 0..rows.num_rows() {
            let images = pictures.get(row).map_or(&[][..], Vec::as_slice);
            let problem = problems.value(row);
            match ids {
                Some(ids) => prompt_ids.append_value(ids.value(row)),
                None => prompt_ids.append_value(content_id(problem, answers.value(row), images)),
            }
            if let Some(system) = &self.config.system {
                messages.message("system");
                messages.text(system);
            }
            messages.message("user");
            add_problem(&mut messages, problem, images);
            messages.end_row();
        }
        let source = self.config.name.as_deref().unwrap_or("data");
        let optional = |name: &str| -> ArrayRef {
            rows.column_by_name(name).map_or_else(
                || Arc::new(LargeStringArray::new_null(rows.num_rows())) as ArrayRef,
                Arc::clone,
            )
        };
        let sources = std::iter::repeat_n(source, rows.num_rows());
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(prompt_ids.finish()),
            messages.finish(),
            Arc::new(answers.clone()),
            optional(rows::SOLUTION),
            optional(rows::CATEGORY),
            Arc::new(LargeStringArray::from_iter_values(sources)),
        ];
        Ok(RecordBatch::try_new(TableName::Prompts.schema(), arrays)?)
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
fn fault(rows: &RecordBatch, row: usize) -> Option<String> {
    let is_filled = |name: &str| {
        rows.column_by_name(name)
            .is_none_or(|column| filled(column.as_string(), row).is_some())
    };
    if !is_filled(rows::PROBLEM) {
        return Some("the question has no text".to_owned());
    }
    if !is_filled(rows::ANSWER) {
        return Some("there is no answer; every prompt needs one that can be checked".to_owned());
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
    let problem = rows.column_by_name(rows::PROBLEM)?.as_string::<i64>();
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

impl Columns {
    /// The column with images, if there is one in this schema.
    fn images_in(&self, schema: &arrow::datatypes::Schema) -> Option<&str> {
        let name = self.images.as_deref().unwrap_or("images");
        schema.field_with_name(name).is_ok().then_some(name)
    }
}

/// The text of a row, unless it is absent or blank.
fn filled(array: &LargeStringArray, row: usize) -> Option<&str> {
    array
        .is_valid(row)
        .then(|| array.value(row))
        .filter(|text| !text.trim().is_empty())
}

/// The name of a prompt that has none: half a blake3 digest of everything that makes it what it is.
fn content_id(problem: &str, answer: &str, images: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [problem, answer]
        .into_iter()
        .chain(images.iter().map(String::as_str))
    {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The parts of the user's message. Images replace their placeholders in order; without placeholders they come first.
fn add_problem(messages: &mut MessagesBuilder, problem: &str, images: &[String]) {
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
