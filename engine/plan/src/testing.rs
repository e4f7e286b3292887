//! Small operators that exist to be planned.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::Schema;
use engine_core::operator::Family;
use engine_core::{
    External, Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement,
    PortType, PortTypes, Ports, Registry, StageContext, StageIo,
};
use schemas::pipeline::{SourceText, compose};
use schemas::yaml::Document;
use schemas::{Problem, Span, TableName};
use serde::{Deserialize, Serialize};

use crate::{Plan, plan};

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register::<Read>();
    registry.register::<Load>();
    registry.register::<Sample>();
    registry.register::<Split>();
    registry.register::<Join>();
    registry.register::<Keep>();
    registry
}

/// Prompts from a file.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Read {
    path: PathBuf,
    #[serde(default)]
    limit: Option<u64>,
}

/// A model folder.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Load {
    path: PathBuf,
}

/// Rollouts.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Sample {
    /// Completions for each prompt.
    samples: u32,
    temperature: f64,
    #[serde(default)]
    mode: Mode,
}

#[derive(Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Mode {
    #[default]
    Plain,
    Best {
        of: u32,
    },
}

/// Prompts into two heaps.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Split {}

/// Tables one after the other.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Join {}

/// Some columns of any table.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Keep {
    columns: Vec<String>,
}

fn outputs<const N: usize>(types: [(&str, PortType); N]) -> PortTypes {
    types
        .into_iter()
        .map(|(name, port_type)| (name.to_owned(), vec![port_type]))
        .collect()
}

macro_rules! planned_only {
    () => {
        fn run(
            &self,
            _context: &StageContext<'_>,
            _io: &mut dyn StageIo,
        ) -> Result<(), OperatorError> {
            Ok(())
        }
    };
}

impl OperatorConfig for Read {
    fn ports(&self) -> Ports {
        Ports::new(vec![], &["prompts"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(outputs([("prompts", PortType::table(TableName::Prompts))]))
    }

    fn externals(&self) -> Vec<External> {
        vec![External {
            pointer: "/path".to_owned(),
            path: self.path.clone(),
            content: engine_core::ExternalContent::Bytes,
        }]
    }

    planned_only!();
}

impl OperatorConfig for Load {
    fn ports(&self) -> Ports {
        Ports::new(vec![], &["model"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(outputs([("model", PortType::Model)]))
    }

    planned_only!();
}

impl OperatorConfig for Sample {
    fn ports(&self) -> Ports {
        let prompts = InputPort::new(
            "prompts",
            InputType::columns(TableName::Prompts, &["prompt_id", "messages"]),
        );
        Ports::new(
            vec![prompts, InputPort::new("model", InputType::Model)],
            &["rollouts"],
        )
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        assert!(
            inputs.contains_key("prompts") && inputs.contains_key("model"),
            "required inputs are there"
        );
        let mut faults = Vec::new();
        if self.temperature < 0.0 {
            faults.push(Fault::at(
                "wrong-value",
                "temperature",
                "the temperature must be at least 0",
            ));
        }
        if matches!(self.mode, Mode::Best { of: 0 }) {
            faults.push(Fault {
                path: vec!["mode".to_owned(), "best".to_owned(), "of".to_owned()],
                ..Fault::new("wrong-value", "`of` must be at least 1")
            });
        }
        if faults.is_empty() {
            Ok(outputs([(
                "rollouts",
                PortType::table(TableName::Rollouts),
            )]))
        } else {
            Err(faults)
        }
    }

    planned_only!();
}

impl OperatorConfig for Split {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![InputPort::new(
                "prompts",
                InputType::table(TableName::Prompts),
            )],
            &["good", "bad"],
        )
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let given = inputs["prompts"][0].clone();
        Ok(outputs([("good", given.clone()), ("bad", given)]))
    }

    planned_only!();
}

impl OperatorConfig for Join {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![InputPort::new("prompts", InputType::table(TableName::Prompts)).many()],
            &["prompts"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(outputs([("prompts", PortType::table(TableName::Prompts))]))
    }

    planned_only!();
}

impl OperatorConfig for Keep {
    fn ports(&self) -> Ports {
        Ports {
            open_inputs: true,
            ..Ports::new(vec![], &["rows"])
        }
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let Some(PortType::Table { schema, .. }) = inputs.values().flatten().next() else {
            return Err(vec![Fault::new("missing-input", "`keep` needs an input")]);
        };
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .filter(|field| self.columns.contains(field.name()))
            .cloned()
            .collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(outputs([(
            "rows",
            PortType::Table {
                table: TableName::Rows,
                schema,
            },
        )]))
    }

    planned_only!();
}

macro_rules! kinds {
    ($($type:ty, $kind:literal, $seed:literal, $about:literal;)*) => {$(
        impl OperatorKind for $type {
            const KIND: &'static str = $kind;
            const VERSION: u32 = 1;
            const FAMILY: Family = Family::Map;
            const PLACEMENT: Placement = Placement::Engine;
            const USES_SEED: bool = $seed;
            const ABOUT: &'static str = $about;
        }
    )*};
}

kinds! {
    Read, "read", false, "reads prompts";
    Load, "load", false, "loads a model";
    Sample, "sample", true, "samples completions";
    Split, "split", false, "splits prompts";
    Join, "join", false, "joins prompts";
    Keep, "keep", false, "keeps columns";
}

/// A pipeline of several files. The first is the main one; the others can be included.
pub(crate) struct Files<'a> {
    pub(crate) files: &'a [(&'a str, &'a str)],
    pub(crate) overlays: &'a [&'a str],
    pub(crate) sets: &'a [&'a str],
}

impl Files<'_> {
    fn document(&self) -> Document {
        let text = |name: &str, text: &str| SourceText {
            name: name.to_owned(),
            id: name.to_owned(),
            text: text.to_owned(),
        };
        let overlays = (1..)
            .zip(self.overlays)
            .map(|(number, over)| text(&format!("overlay-{number}.yaml"), over));
        let sets: Vec<String> = self.sets.iter().map(|set| (*set).to_owned()).collect();
        let mut load = |_: &str, path: &str| {
            let found = self.files.iter().find(|(name, _)| *name == path);
            let (name, found) = found.ok_or_else(|| format!("there is no file {path}"))?;
            Ok(text(name, found))
        };
        let (name, main) = self.files[0];
        compose(text(name, main), overlays.collect(), &sets, &mut load)
    }

    /// The plan of a pipeline without mistakes.
    pub(crate) fn plan(&self) -> Plan {
        plan(&self.document(), &registry())
            .unwrap_or_else(|problems| panic!("{:#?}", shown(&self.document(), &problems)))
    }

    /// The stages of the plain pipeline.
    pub(crate) fn stages(&self) -> String {
        let resolved = self.plan().resolved;
        let (_, stages) = resolved.split_once("stages:\n").expect("there are stages");
        stages.to_owned()
    }

    /// The problems, as `file:line:column code: message (help)`.
    pub(crate) fn broken(&self) -> Vec<String> {
        let document = self.document();
        shown(
            &document,
            &plan(&document, &registry()).expect_err("it is wrong"),
        )
    }
}

/// A pipeline of one file with these parameters and stages.
pub(crate) fn one(text: &str) -> String {
    format!("version: 1\nname: test\nseed: 7\n{text}")
}

/// The stages of the plain pipeline of a text that starts after `seed`.
pub(crate) fn stages_of(text: &str) -> String {
    let text = one(text);
    let files: [(&str, &str); 1] = [("p.yaml", &text)];
    let files = Files {
        files: &files,
        overlays: &[],
        sets: &[],
    };
    files.stages()
}

/// The problems of a text that starts after `seed`.
pub(crate) fn problems_of(text: &str) -> Vec<String> {
    let text = one(text);
    let files: [(&str, &str); 1] = [("p.yaml", &text)];
    let files = Files {
        files: &files,
        overlays: &[],
        sets: &[],
    };
    files.broken()
}

fn shown(document: &Document, problems: &[Problem]) -> Vec<String> {
    let place = |span: Span| {
        let at = document.locate(span);
        format!("{}:{}:{}", at.name, at.line, at.column)
    };
    let one = |problem: &Problem| {
        let mut others = String::new();
        for other in &problem.others {
            others += &format!(" [{} {}]", place(other.span), other.message);
        }
        let help = problem.help.as_deref();
        let help = help.map(|help| format!(" ({help})")).unwrap_or_default();
        let (code, message) = (problem.code, &problem.message);
        format!("{} {code}: {message}{others}{help}", place(problem.span))
    };
    problems.iter().map(one).collect()
}
