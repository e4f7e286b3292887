//! What planning makes: stages in an order in which they can run, with everything resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::operator::Family;
use engine_core::{External, OperatorConfig, Placement, PortType};
use schemas::Span;
use schemas::pipeline::QuarantineBudget;
use schemas::yaml::Document;

/// A checked pipeline.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name in the pipeline file.
    pub name: String,
    /// Seed of all stages that set none.
    pub seed: u64,
    /// The stages, each after the stages whose outputs it reads; otherwise in the order of the file.
    pub stages: Vec<Stage>,
    /// Text of the pipeline file.
    pub text: String,
    /// The plain DAG as a pipeline file: included files, overlays, parameters, loops and conditions worked in. It plans to
    /// stages with the same keys.
    pub resolved: String,
    /// What `resolved` says, with places in the files that the user wrote.
    pub document: Arc<Document>,
}

impl Plan {
    /// Position of a stage in `stages`.
    #[must_use]
    pub fn index_of(&self, stage: &str) -> Option<usize> {
        self.stages
            .iter()
            .position(|candidate| candidate.name == stage)
    }
}

/// One node of the DAG.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Name in the pipeline file.
    pub name: String,
    /// Operator kind.
    pub kind: &'static str,
    /// Version of the operator's output.
    pub version: u32,
    /// How the operator works on its rows.
    pub family: Family,
    /// Where it runs.
    pub placement: Placement,
    /// Whether the seed can change the output.
    pub uses_seed: bool,
    /// Seed of this stage: its own or the pipeline's.
    pub seed: u64,
    /// Typed configuration.
    pub config: Arc<dyn OperatorConfig>,
    /// The configuration as canonical JSON: defaults filled in, parameters substituted, keys sorted.
    pub canonical: serde_json::Value,
    /// The configuration as it enters the stage key, before digests take the place of paths.
    pub key_config: serde_json::Value,
    /// Files and folders outside the store that the configuration names.
    pub externals: Vec<External>,
    /// Where each connected input port reads from, in order. Optional ports that are not connected are absent.
    pub inputs: BTreeMap<String, Vec<Source>>,
    /// How many rows may fail. With a budget there is an output `quarantine`, the last one.
    pub quarantine: Option<QuarantineBudget>,
    /// Output ports with their types; the first is the default.
    pub outputs: Vec<(String, PortType)>,
    /// Place of the stage's name in the pipeline file.
    pub span: Span,
}

/// An output port of a stage, read by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Position in [`Plan::stages`].
    pub stage: usize,
    /// Output port.
    pub port: String,
}
