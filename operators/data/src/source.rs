//! source: reads prompts, and examples to learn from, out of files in the layouts that people have.
//!
//! Images are decoded once to check them and kept in the store by digest. A row that cannot be used fails
//! with its file and row or line; nothing is dropped.

mod batch;
mod cell;
mod convert;
mod files;
mod images;
mod json;
mod layout;
#[cfg(test)]
mod layout_tests;
mod media;
mod pieces;
mod prompts;
mod records;
mod rows;
mod shape;
mod table;
#[cfg(test)]
mod tests;
mod turns;
mod unique;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, LargeStringArray};
use arrow::datatypes::{Field, Schema, SchemaRef};
use engine_core::operator::{BatchReader, Family, missing_externals};
use engine_core::{
    External, ExternalContent, Fault, MapOperator, MapTask, OperatorConfig, OperatorError,
    OperatorKind, OutputPort, Placement, PortType, PortTypes, Ports, StageContext, StageView,
};
use schemars::JsonSchema;
use schemas::TableName;
use schemas::tables::TEXT;
use serde::{Deserialize, Serialize};

pub use layout::Layout;
use prompts::Reader;
use rows::Files;

/// Where an image stands in the text of a problem.
const PLACEHOLDER: &str = "<image>";

/// A file or a folder of files with one prompt per row: Parquet, Arrow, JSON lines, JSON, CSV, or images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// The file, or the folder whose files are read in the order of their names. Files of text may end in `.gz` or `.zst`.
    pub path: PathBuf,
    /// How rows are laid out; recognised by the columns when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Which column is what, where it is not as the layout says. `a.b` is the field `b` of the column `a`.
    #[serde(default)]
    pub columns: Columns,
    /// Which split of a folder is read, for example `train`: a word of the names of its files or folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Folder of the image files that rows refer to by path. Its content counts for the stage. Not needed where the images are
    /// in the folder `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<PathBuf>,
    /// The question of every row, for images that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Adds the output `examples`, to fine-tune on: the last answer of each conversation, or the column `solution`, after
    /// what comes before it. Every row then needs one; turns after it are left out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub examples: bool,
    /// Whether every row needs a gold answer. Default: yes, and no with `examples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_answers: Option<bool>,
    /// Rows that are read; all when left out.
    #[serde(default)]
    pub limit: Option<u64>,
    /// A system message in front of every prompt, in the place of one that a conversation has.
    #[serde(default)]
    pub system: Option<String>,
    /// Value of the column `source`, and of `origin` of examples; `data` when left out, or what the rows say.
    #[serde(default)]
    pub name: Option<String>,
}

/// Names of the columns in the files, where they are not those of the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Columns {
    /// Unique name of the prompt; when left out it is the digest of its content.
    #[serde(default)]
    pub id: Option<String>,
    /// The question, with `<image>` where an image belongs. Default `problem`.
    #[serde(default)]
    pub problem: Option<String>,
    /// Images: one or a list, each as bytes, as a struct with `bytes` or `path`, or as a path. When left out, `images` is
    /// used if it is there.
    #[serde(default)]
    pub images: Option<String>,
    /// Gold answer. Default `answer`.
    #[serde(default)]
    pub answer: Option<String>,
    /// Worked solution.
    #[serde(default)]
    pub solution: Option<String>,
    /// Kind of question, for reports.
    #[serde(default)]
    pub category: Option<String>,
    /// The turns of a conversation: a list of objects with `role` and `content`, or `from` and `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// System message of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Data set that the row comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

impl OperatorKind for Source {
    const KIND: &'static str = "source";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "reads prompts and examples from files";
}

impl OperatorConfig for Source {
    fn ports(&self) -> Ports {
        let outputs: &[&str] = match (self.layout, self.examples) {
            (Some(Layout::Solutions), _) => &["solutions"],
            (_, true) => &["prompts", "examples"],
            (_, false) => &["prompts"],
        };
        Ports::new(Vec::new(), outputs)
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.value_faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let of_port = |port: &OutputPort| {
            let port_type = match port.name.as_str() {
                "solutions" => PortType::Table {
                    table: TableName::Rows,
                    schema: solutions_schema(),
                },
                "examples" => PortType::table(TableName::Examples),
                _ => PortType::table(TableName::Prompts),
            };
            (port.name.clone(), vec![port_type])
        };
        Ok(self.ports().outputs.iter().map(of_port).collect())
    }

    fn externals(&self) -> Vec<External> {
        let mut externals = vec![External {
            pointer: "/path".to_owned(),
            path: self.path.clone(),
            content: ExternalContent::Rows,
        }];
        externals.extend(self.media.iter().map(|media| External {
            pointer: "/media".to_owned(),
            path: media.clone(),
            content: ExternalContent::Bytes,
        }));
        externals
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        let missing = missing_externals(root, &self.externals());
        if !missing.is_empty() {
            return missing;
        }
        Files::open(self, root).err().unwrap_or_default()
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
        Ok(open(self, context.root)?.read())
    }

    fn outside_total(&self, context: &StageContext<'_>) -> Option<u64> {
        Files::open(self, context.root).ok()?.total()
    }

    fn row_place(&self, context: &StageContext<'_>, row: u64) -> Option<String> {
        Files::open(self, context.root).ok()?.place(row)
    }

    /// The rows have names of ours already, and how they were found is no matter of a row.
    fn part_config(&self, canonical: &serde_json::Value) -> serde_json::Value {
        let mut config = canonical.clone();
        if let Some(config) = config.as_object_mut() {
            for key in ["path", "limit", "media", "split", "question", "layout"] {
                config.remove(key);
            }
            config.insert("columns".to_owned(), self.columns.id.is_some().into());
            if self.layout == Some(Layout::Solutions) {
                config.insert("layout".to_owned(), Layout::Solutions.name().into());
            }
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

/// Opens the files of a stage that runs.
fn open(config: &Source, root: &Path) -> Result<Files, OperatorError> {
    Files::open(config, root).map_err(|faults| {
        let message = faults.into_iter().next().map(|fault| fault.message);
        OperatorError::Data(message.unwrap_or_default())
    })
}

impl Source {
    /// Whether every row needs a gold answer.
    fn requires_answers(&self) -> bool {
        self.require_answers.unwrap_or(!self.examples)
    }

    fn value_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.limit == Some(0) {
            faults.push(
                Fault::at("wrong-value", "limit", "`limit` is 0")
                    .with_help("write 1 or more, or leave it out"),
            );
        }
        let has_question = self.question.is_some();
        if has_question && self.columns.problem.is_some() {
            faults.push(
                Fault::at(
                    "wrong-value",
                    "question",
                    "`question` and `columns: { problem: ... }` are both given",
                )
                .with_help("leave one of them out"),
            );
        }
        if has_question
            && self
                .layout
                .is_some_and(|layout| layout.has_turns() || layout == Layout::Solutions)
        {
            faults.push(
                Fault::at(
                    "wrong-value",
                    "question",
                    "the layout has questions of its own",
                )
                .with_help("leave `question` out"),
            );
        }
        if self.examples && self.layout == Some(Layout::Solutions) {
            faults.push(
                Fault::at(
                    "wrong-value",
                    "examples",
                    "worked solutions without prompts are no examples",
                )
                .with_help("leave `examples` out, and give the output `solutions` to `augment`"),
            );
        }
        faults
    }
}

/// Worked solutions: for which prompt, and the text.
fn solutions_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, TEXT, false);
    Arc::new(Schema::new(vec![text("prompt_id"), text("text")]))
}

/// The text of a row, unless it is absent or blank.
fn filled(array: &LargeStringArray, row: usize) -> Option<&str> {
    array
        .is_valid(row)
        .then(|| array.value(row))
        .filter(|text| !text.trim().is_empty())
}

/// A question about the name that is spelled nearly like this one, if there is one.
fn nearest(names: &[&str], name: &str) -> String {
    let likeness = |other: &str| strsim::jaro_winkler(other, name);
    let nearest = (names.iter().copied()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest
        .filter(|other| likeness(other) > 0.75)
        .map(|other| format!("did you mean `{other}`? "))
        .unwrap_or_default()
}
