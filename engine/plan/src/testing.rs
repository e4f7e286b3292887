//! Small operators that exist to be planned.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::Schema;
use engine_core::operator::Family;
use engine_core::{
    External, Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement,
    PortType, PortTypes, Ports, Registry, StageContext, StageIo,
};
use schemas::TableName;
use serde::{Deserialize, Serialize};

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
