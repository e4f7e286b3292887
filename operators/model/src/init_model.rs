//! `init-model`: a model with random weights for a configuration.
//!
//! Use it to pretrain from nothing, and in benchmarks. Tokenizer and processor files are copied beside the weights.

use std::path::{Path, PathBuf};

use engine_core::operator::Family;
use engine_core::{
    External, Fault, OperatorConfig, OperatorError, OperatorKind, Placement, PortType, PortTypes,
    Ports, Registry, StageContext, StageIo,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::load_model::missing_file;

/// Makes a model with random weights, drawn from the stage's seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InitModel {
    /// Folder with config.json, tokenizer.json and processor files; a relative path starts at the project folder.
    pub config: PathBuf,
}

impl OperatorKind for InitModel {
    const KIND: &'static str = "init-model";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "makes a model with random weights for a configuration";
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<InitModel>();
}

impl OperatorConfig for InitModel {
    fn ports(&self) -> Ports {
        Ports::new(Vec::new(), &["model"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "model".to_owned(),
            vec![PortType::Model],
        )]))
    }

    fn externals(&self) -> Vec<External> {
        vec![External {
            pointer: "/config".to_owned(),
            path: self.config.clone(),
            content: engine_core::ExternalContent::Bytes,
        }]
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        let missing = engine_core::operator::missing_externals(root, &self.externals());
        if !missing.is_empty() {
            return missing;
        }
        let folder = root.join(&self.config);
        let absent = ["config.json", "tokenizer.json"]
            .into_iter()
            .filter(|name| !folder.join(name).is_file());
        absent
            .map(|name| missing_file("config", &self.config, name))
            .collect()
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let folder = io.scratch().join("model");
        let info = context.backend()?.initialise(
            &context.root.join(&self.config),
            context.seed,
            &folder,
        )?;
        tracing::info!(
            family = info.family,
            parameters = info.parameters,
            "initialised a model"
        );
        io.write_model("model", &folder)
    }
}
