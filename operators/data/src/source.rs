//! source: reads prompts from Parquet files, in the layout of EasyR1 and Hugging Face `datasets` or any other by mapping
//! its columns.
//!
//! Images are decoded once to check them and kept in the store by digest. A row that cannot be used stops the stage with
//! its file and row; nothing is dropped.

mod images;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, LargeStringArray, LargeStringBuilder, RecordBatch};
use engine_core::operator::{Family, missing_externals};
use engine_core::{
    External, Fault, OperatorConfig, OperatorError, OperatorKind, Placement, PortType, PortTypes,
    Ports, Progress, StageContext, StageEvent, StageIo,
};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::messages::MessagesBuilder;
use images::Picture;
use table::SourceFile;

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

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let data_error = |fault: Fault| OperatorError::Data(fault.message);
        let mut reader = Reader {
            config: self,
            seen: HashMap::new(),
            files: Vec::new(),
            rows: 0,
        };
        let files = table::files(context.root, &self.path).map_err(data_error)?;
        let mut opened = Vec::new();
        for path in &files {
            let file = SourceFile::open(path).map_err(data_error)?;
            if let Some(fault) = file.faults(&self.columns).into_iter().next() {
                return Err(data_error(fault));
            }
            opened.push(file);
        }
        let in_files: u64 = opened.iter().map(SourceFile::rows).sum();
        let total = self.limit.map_or(in_files, |limit| limit.min(in_files));
        for file in opened {
            reader.files.push(file.name().to_owned());
            let mut row = 0;
            for batch in file.batches(&self.columns)? {
                let mut batch = batch?;
                let room = usize::try_from(total - reader.rows).unwrap_or(usize::MAX);
                batch = batch.slice(0, batch.num_rows().min(room));
                if batch.num_rows() == 0 {
                    break;
                }
                if io.is_cancelled() {
                    return Err(OperatorError::Interrupted);
                }
                let prompts = reader.prompts(&batch, row, io)?;
                row += batch.num_rows();
                reader.rows += batch.num_rows() as u64;
                io.write("prompts", prompts)?;
                let progress = Progress {
                    done: reader.rows,
                    total: Some(total),
                    unit: "rows".to_owned(),
                    ..Progress::default()
                };
                io.event(StageEvent::Progress(progress));
            }
        }
        if reader.rows == 0 {
            io.write(
                "prompts",
                RecordBatch::new_empty(TableName::Prompts.schema()),
            )?;
        }
        Ok(())
    }
}

/// Turns rows of the files into prompts.
struct Reader<'a> {
    config: &'a Source,
    /// For each prompt id, the file (by index) and row that it came from.
    seen: HashMap<String, (usize, usize)>,
    files: Vec<String>,
    rows: u64,
}

impl Reader<'_> {
    /// The prompts of a batch whose first row is row `first` of the current file.
    fn prompts(
        &mut self,
        batch: &RecordBatch,
        first: usize,
        io: &mut dyn StageIo,
    ) -> Result<RecordBatch, OperatorError> {
        let columns = &self.config.columns;
        let problems = table::text(batch, &columns.problem)?;
        let answers = table::text(batch, &columns.answer)?;
        let ids = columns
            .id
            .as_ref()
            .map(|name| table::text(batch, name))
            .transpose()?;
        let pictures = self.pictures(batch, columns.images_in(batch.schema_ref()), first, io)?;
        let mut messages = MessagesBuilder::default();
        let mut prompt_ids = LargeStringBuilder::new();
        for (row, pictures) in pictures.iter().enumerate() {
            let place = |message: String| self.fault(first + row, &message);
            let problem = filled(&problems, row)
                .ok_or_else(|| place(format!("column `{}` has no text", columns.problem)))?;
            let answer = filled(&answers, row).ok_or_else(|| {
                place(format!(
                    "column `{}` has no answer; every prompt needs one that can be checked",
                    columns.answer
                ))
            })?;
            let id = match &ids {
                Some(ids) => {
                    let name = columns.id.as_deref().unwrap_or_default();
                    filled(ids, row)
                        .ok_or_else(|| place(format!("column `{name}` has no id")))?
                        .to_owned()
                }
                None => content_id(problem, answer, pictures),
            };
            if let Some(system) = &self.config.system {
                messages.message("system");
                messages.text(system);
            }
            messages.message("user");
            add_problem(&mut messages, problem, pictures).map_err(place)?;
            messages.end_row();
            self.remember(&id, first + row)?;
            prompt_ids.append_value(id);
        }
        let source = self.config.name.as_deref().unwrap_or("data");
        let optional = |name: &Option<String>| -> Result<ArrayRef, OperatorError> {
            Ok(match name {
                Some(name) => Arc::new(table::text(batch, name)?),
                None => Arc::new(LargeStringArray::new_null(batch.num_rows())),
            })
        };
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(prompt_ids.finish()),
            messages.finish(),
            Arc::new(answers.clone()),
            optional(&columns.solution)?,
            optional(&columns.category)?,
            Arc::new(LargeStringArray::from_iter_values(std::iter::repeat_n(
                source,
                batch.num_rows(),
            ))),
        ];
        Ok(RecordBatch::try_new(TableName::Prompts.schema(), arrays)?)
    }

    /// Digests of the images of every row, which are checked and stored.
    fn pictures(
        &self,
        batch: &RecordBatch,
        column: Option<&str>,
        first: usize,
        io: &mut dyn StageIo,
    ) -> Result<Vec<Vec<String>>, OperatorError> {
        let Some(array) = column.and_then(|name| batch.column_by_name(name)) else {
            return Ok(vec![Vec::new(); batch.num_rows()]);
        };
        let pictures = images::pictures(array);
        images::check(&pictures).map_err(|(row, message)| self.fault(first + row, &message))?;
        let mut digests = Vec::with_capacity(pictures.len());
        for row in &pictures {
            let row: Result<Vec<String>, OperatorError> = row
                .iter()
                .map(|picture: &Picture| io.put_media(&picture.bytes))
                .collect();
            digests.push(row?);
        }
        Ok(digests)
    }

    fn remember(&mut self, id: &str, row: usize) -> Result<(), OperatorError> {
        let file = self.files.len() - 1;
        match self.seen.insert(id.to_owned(), (file, row)) {
            None => Ok(()),
            Some((other, other_row)) if self.config.columns.id.is_some() => Err(self.fault(
                row,
                &format!("the id `{id}` is also in {}, row {other_row}; ids must be unique", self.files[other]),
            )),
            Some((other, other_row)) => Err(self.fault(
                row,
                &format!("the same prompt is also in {}, row {other_row}; remove one, or name an id column with `columns: {{ id: ... }}`", self.files[other]),
            )),
        }
    }

    fn fault(&self, row: usize, message: &str) -> OperatorError {
        let file = self.files.last().map_or("", String::as_str);
        OperatorError::Data(format!("{file}, row {row} (counted from 0): {message}"))
    }
}

impl Columns {
    /// The column with images, if there is one in this schema.
    fn images_in(&self, schema: &arrow::datatypes::Schema) -> Option<&str> {
        let name = self.images.as_deref().unwrap_or("images");
        schema.field_with_name(name).is_ok().then_some(name)
    }
}

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
fn add_problem(
    messages: &mut MessagesBuilder,
    problem: &str,
    images: &[String],
) -> Result<(), String> {
    let placeholders = problem.matches(PLACEHOLDER).count();
    if placeholders == 0 {
        for image in images {
            messages.image(image);
        }
        messages.text(problem);
        return Ok(());
    }
    if placeholders != images.len() {
        return Err(format!(
            "the text has {placeholders} `{PLACEHOLDER}` and the row has {} images",
            images.len()
        ));
    }
    for (index, text) in problem.split(PLACEHOLDER).enumerate() {
        if index > 0 {
            messages.image(&images[index - 1]);
        }
        if !text.is_empty() {
            messages.text(text);
        }
    }
    Ok(())
}
