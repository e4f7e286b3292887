//! The layouts that people have, and which of them a file is in.

use engine_core::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shape::Shape;
use super::{Source, nearest};

/// How rows are laid out. Left out, it is recognised by the columns.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A question and an answer in columns of their own: `problem`, `answer`, `images` (EasyR1), or as `columns` says.
    Problem,
    /// verl: `prompt` is a conversation, the answer is `reward_model.ground_truth`.
    Verl,
    /// LLaMA-Factory: `conversations` of `from` and `value`, `images`, `system`. The last answer is the solution.
    Sharegpt,
    /// OpenAI: `messages` of `role` and `content`, which is text or parts. The last answer is the solution.
    Openai,
    /// `instruction`, `input`, `output`, and `system` and `history` if they are there.
    Alpaca,
    /// Images in folders that are named like the answer, or beside a `metadata` file with `file_name`.
    ImageFolder,
    /// Worked solutions for prompts of another stage: `prompt_id` and `text`, on the output `solutions`.
    Solutions,
}

impl Layout {
    /// The name in YAML.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Verl => "verl",
            Self::Sharegpt => "sharegpt",
            Self::Openai => "openai",
            Self::Alpaca => "alpaca",
            Self::ImageFolder => "image-folder",
            Self::Solutions => "solutions",
        }
    }

    /// The columns by which it is known.
    fn marks(self) -> &'static str {
        match self {
            Self::Problem => "`problem`, `answer`",
            Self::Verl => "`prompt`, `reward_model`",
            Self::Sharegpt => "`conversations`",
            Self::Openai => "`messages`",
            Self::Alpaca => "`instruction`, `output`",
            Self::ImageFolder => "`file_name`",
            Self::Solutions => "`prompt_id`, `text`",
        }
    }

    /// Whether a row is a conversation of several turns.
    pub(super) fn has_turns(self) -> bool {
        matches!(
            self,
            Self::Verl | Self::Sharegpt | Self::Openai | Self::Alpaca
        )
    }
}

/// What is read from each row: the layout and the path of each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) layout: Layout,
    pub(super) id: Option<String>,
    pub(super) problem: Option<String>,
    pub(super) input: Option<String>,
    pub(super) history: Option<String>,
    pub(super) conversation: Option<String>,
    pub(super) system: Option<String>,
    pub(super) answer: Option<String>,
    pub(super) solution: Option<String>,
    pub(super) images: Option<String>,
    pub(super) category: Option<String>,
    pub(super) source: Option<String>,
    /// Columns that every file must have, with their keys in `columns`.
    required: Vec<(&'static str, String)>,
}

impl Reading {
    /// The columns at the top that are used.
    pub(super) fn roots(&self, shape: &Shape) -> Vec<String> {
        let paths = [
            &self.id,
            &self.problem,
            &self.input,
            &self.history,
            &self.conversation,
            &self.system,
            &self.answer,
            &self.solution,
            &self.images,
            &self.category,
            &self.source,
        ];
        let root = |path: &String| {
            if shape.has(path) {
                return path.clone();
            }
            let first = path.split('.').next().unwrap_or(path);
            first.to_owned()
        };
        let mut roots: Vec<String> = paths.into_iter().flatten().map(root).collect();
        roots.extend(REFUSED.map(str::to_owned));
        roots
    }

    /// Every column that a file lacks or that holds what it cannot.
    pub(super) fn faults(&self, shape: &Shape, file: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, path) in &self.required {
            match shape.at(path) {
                None => faults.push(missing(shape, key, path, file)),
                Some(Shape::Struct(_)) if *key != "images" && *key != "conversation" => {
                    faults.push(mistyped(
                        key,
                        format!("column `{path}` in `{file}` holds an object, and text or numbers belong here"),
                        format!("name what of it is meant, as in `columns: {{ {key}: {path}.NAME }}`"),
                    ));
                }
                Some(found) if *key == "conversation" && !could_be_turns(found) => {
                    faults.push(mistyped(
                        key,
                        format!("column `{path}` in `{file}` does not hold turns"),
                        "a conversation is a list of objects with `role` and `content`, or `from` and `value`".to_owned(),
                    ));
                }
                Some(_) => {}
            }
        }
        faults
    }
}

fn could_be_turns(shape: &Shape) -> bool {
    match shape {
        Shape::List(turn) => matches!(**turn, Shape::Struct(_) | Shape::Unknown),
        Shape::Unknown | Shape::Scalar => true,
        _ => false,
    }
}

/// Columns of media that no prompt can have here; a row that fills one is refused rather than cut short.
pub(super) const REFUSED: [&str; 5] = ["videos", "audios", "video", "audio", "tools"];

fn missing(shape: &Shape, key: &str, column: &str, file: &str) -> Fault {
    let names = shape.names();
    Fault {
        path: vec!["columns".to_owned(), key.to_owned()],
        message: format!("no column `{column}` in `{file}`"),
        help: Some(format!(
            "{}set `columns: {{ {key}: ... }}` to one of {}",
            nearest(&names, column),
            names.join(", ")
        )),
        code: "missing-column",
    }
}

fn mistyped(key: &str, message: String, help: String) -> Fault {
    Fault {
        path: vec!["columns".to_owned(), key.to_owned()],
        message,
        help: Some(help),
        code: "type-mismatch",
    }
}

/// Finds out how the rows of a file are to be read.
pub(super) fn resolve(
    config: &Source,
    shape: &Shape,
    file: &str,
    is_metadata: bool,
) -> Result<Reading, Fault> {
    let layout = match config.layout {
        Some(layout) => {
            check_named(layout, config, shape, file)?;
            layout
        }
        None => recognise(config, shape, file, is_metadata)?,
    };
    let reading = columns(layout, config, shape);
    if config.requires_answers()
        && reading.answer.is_none()
        && layout != Layout::Solutions
        && layout != Layout::Problem
    {
        return Err(Fault::new(
            "missing-column",
            format!("`{file}` is in the layout `{}` and has no column of gold answers", layout.name()),
        )
        .with_help(
            "write `examples: true` to fine-tune on the conversations as they are, `columns: { answer: ... }` if a column has the \
             answers, or `require-answers: false`",
        ));
    }
    Ok(reading)
}

/// The layouts that the columns fit.
fn fitting(shape: &Shape, is_metadata: bool) -> Vec<Layout> {
    let fits = |layout: &Layout| match layout {
        Layout::Problem => shape.has("problem") && (shape.has("answer") || shape.has("solution")),
        Layout::Verl => {
            shape.has_turns("prompt") && shape.at("reward_model.ground_truth").is_some()
        }
        Layout::Sharegpt => shape.has_turns("conversations"),
        Layout::Openai => shape.has_turns("messages"),
        Layout::Alpaca => shape.has("instruction") && shape.has("output"),
        Layout::ImageFolder => is_metadata && shape.has("file_name"),
        Layout::Solutions => false,
    };
    let layouts = [
        Layout::Problem,
        Layout::Verl,
        Layout::Sharegpt,
        Layout::Openai,
        Layout::Alpaca,
        Layout::ImageFolder,
    ];
    layouts.into_iter().filter(fits).collect()
}

fn recognise(
    config: &Source,
    shape: &Shape,
    file: &str,
    is_metadata: bool,
) -> Result<Layout, Fault> {
    if is_metadata && shape.has("file_name") {
        return Ok(Layout::ImageFolder);
    }
    if config.columns.problem.is_some() || config.question.is_some() {
        return Ok(Layout::Problem);
    }
    if config.columns.conversation.is_some() {
        return Ok(Layout::Openai);
    }
    let all = fitting(shape, is_metadata);
    // Where several fit, those count that have what the stage is asked for.
    let has_all = |layout: &Layout| {
        let reading = columns(*layout, config, shape);
        let has =
            |path: &Option<String>| path.as_ref().is_some_and(|path| shape.at(path).is_some());
        let has_solution =
            has(&reading.solution) || matches!(layout, Layout::Sharegpt | Layout::Openai);
        (!config.requires_answers() || has(&reading.answer)) && (!config.examples || has_solution)
    };
    let mut useful: Vec<Layout> = all.iter().copied().filter(has_all).collect();
    if !config.examples && useful.contains(&Layout::Problem) {
        // A question with its gold answer is what prompts are made of; conversations beside it are for fine-tuning.
        useful.retain(|layout| matches!(layout, Layout::Problem | Layout::Verl));
    }
    let left = if useful.is_empty() { &all } else { &useful };
    match left[..] {
        [] => Ok(Layout::Problem),
        [one] => Ok(one),
        _ => {
            let found: Vec<String> = left
                .iter()
                .map(|layout| format!("`{}` ({})", layout.name(), layout.marks()))
                .collect();
            Err(Fault::new(
                "ambiguous-layout",
                format!(
                    "`{file}` has the columns of several layouts: {}",
                    found.join(" and ")
                ),
            )
            .with_help(format!(
                "write which one is meant, as in `layout: {}`",
                left[0].name()
            )))
        }
    }
}

/// A layout that the pipeline names must be the one that the columns are in.
fn check_named(layout: Layout, config: &Source, shape: &Shape, file: &str) -> Result<(), Fault> {
    let reading = columns(layout, config, shape);
    let lacks = |(_, path): &&(&str, String)| shape.at(path).is_none();
    let Some((_, lacking)) = reading.required.iter().find(lacks) else {
        return Ok(());
    };
    let others = fitting(shape, false);
    let Some(other) = others.first().filter(|other| **other != layout) else {
        // The columns are told one by one.
        return Ok(());
    };
    Err(Fault::at(
        "wrong-layout",
        "layout",
        format!(
            "`{file}` has no column `{lacking}`, which the layout `{}` has; its columns are {}",
            layout.name(),
            shape.names().join(", ")
        ),
    )
    .with_help(format!(
        "it looks like the layout `{}` ({}); write that, or leave `layout` out",
        other.name(),
        other.marks()
    )))
}

/// The columns of a layout in a file of this shape. What `columns` names is required.
fn columns(layout: Layout, config: &Source, shape: &Shape) -> Reading {
    let mut required: Vec<(&'static str, String)> = Vec::new();
    let mut named = |key: &'static str, path: &Option<String>| {
        if let Some(path) = path {
            required.push((key, path.clone()));
        }
        path.clone()
    };
    let map = &config.columns;
    let mut reading = Reading {
        layout,
        id: named("id", &map.id),
        problem: named("problem", &map.problem),
        input: None,
        history: None,
        conversation: named("conversation", &map.conversation),
        system: named("system", &map.system),
        answer: named("answer", &map.answer),
        solution: named("solution", &map.solution),
        images: named("images", &map.images),
        category: named("category", &map.category),
        source: named("source", &map.source),
        required: Vec::new(),
    };
    let mut must = |key: &'static str, slot: &mut Option<String>, path: &str| {
        if slot.is_none() {
            *slot = Some(path.to_owned());
            required.push((key, path.to_owned()));
        }
    };
    match layout {
        Layout::Problem => {
            if config.question.is_none() {
                must("problem", &mut reading.problem, "problem");
            }
            if config.requires_answers() {
                must("answer", &mut reading.answer, "answer");
            }
            if config.examples {
                must("solution", &mut reading.solution, "solution");
            }
        }
        Layout::Verl => {
            must("conversation", &mut reading.conversation, "prompt");
            must("answer", &mut reading.answer, "reward_model.ground_truth");
        }
        Layout::Sharegpt => must("conversation", &mut reading.conversation, "conversations"),
        Layout::Openai => must("conversation", &mut reading.conversation, "messages"),
        Layout::Alpaca => {
            must("problem", &mut reading.problem, "instruction");
            must("solution", &mut reading.solution, "output");
        }
        Layout::ImageFolder => {
            must("images", &mut reading.images, "file_name");
            if config.question.is_none() {
                must("problem", &mut reading.problem, "problem");
            }
            if config.requires_answers() {
                must("answer", &mut reading.answer, "answer");
            }
            if config.examples {
                must("solution", &mut reading.solution, "solution");
            }
        }
        Layout::Solutions => {
            must("id", &mut reading.id, "prompt_id");
            must("solution", &mut reading.solution, "text");
        }
    }
    reading.required = required;
    let may = |slot: &mut Option<String>, names: &[&str]| {
        if slot.is_none() {
            *slot = names
                .iter()
                .find(|name| shape.has(name))
                .map(|name| (*name).to_owned());
        }
    };
    if layout != Layout::Solutions {
        may(&mut reading.answer, &["answer"]);
        may(&mut reading.images, &["images"]);
    }
    match layout {
        Layout::Verl => {
            may(&mut reading.category, &["ability"]);
            may(&mut reading.source, &["data_source"]);
        }
        Layout::Sharegpt | Layout::Openai => {
            may(&mut reading.images, &["image"]);
            may(&mut reading.system, &["system"]);
        }
        Layout::Alpaca => {
            may(&mut reading.input, &["input"]);
            may(&mut reading.history, &["history"]);
            may(&mut reading.system, &["system"]);
        }
        _ => {}
    }
    reading
}
