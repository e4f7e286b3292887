//! `rollout`: samples answers of a model to every prompt.
//!
//! Use it to probe a model (many samples) or to evaluate it (one greedy sample). What a row gets does not depend on the
//! other rows, so the order of prompts and the size of batches do not matter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use engine_core::operator::Family;
use engine_core::policy::Precision;
use engine_core::{
    Fault, InputPort, InputType, MapOperator, MapOutput, MapPart, MapTask, OperatorConfig,
    OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports, Registry,
    StageContext, StageView,
};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::faults::ValueFaults;
use crate::part_sampler::{PartSampler, SAMPLED_PART};
use crate::prompt_rows::{check_prompt_ids, prompt_rows};
use crate::rollout_rows::{RolloutRow, RolloutRows};
use crate::sampling::{self, Sampled, SamplingPlan};

/// Samples answers to every prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rollout {
    /// Answers for each prompt.
    pub samples: u32,
    /// Divides the logits before sampling; 1 samples from the model as it is, 0 decodes greedily.
    pub temperature: f64,
    /// Most tokens of an answer, the end token included.
    pub max_new_tokens: u32,
    /// Number format of the weights. Default `float32`.
    #[serde(default)]
    pub precision: Precision,
    /// Answers decoded at the same time; bounds the memory of the key-value cache. Default 256.
    #[serde(default = "sampling::max_concurrent")]
    pub max_concurrent: u32,
}

impl OperatorKind for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "samples answers of a model to every prompt";
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<Rollout>();
}

impl OperatorConfig for Rollout {
    fn ports(&self) -> Ports {
        let prompts = InputType::columns(TableName::Prompts, &["prompt_id", "messages"]);
        Ports::new(
            vec![
                InputPort::new("prompts", prompts),
                InputPort::new("model", InputType::Model),
            ],
            &["rollouts"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = ValueFaults::default();
        faults.sampling("samples", self.samples, self.temperature);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
        faults.or(
            &[],
            PortTypes::from([(
                "rollouts".to_owned(),
                vec![PortType::table(TableName::Rollouts)],
            )]),
        )
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Rollout {
    fn rows_port(&self) -> Option<&str> {
        Some("prompts")
    }

    fn part_size(&self) -> PartSize {
        SAMPLED_PART
    }

    fn part_config(&self, canonical: &Value) -> Value {
        // The slices say which samples a part has, and no row depends on how many are decoded at the same time.
        without(canonical, &["samples", "max-concurrent"])
    }

    /// Ranges that double, so that a stage with more samples has those of one with fewer, and few pieces.
    fn slices(&self) -> Vec<Range<u32>> {
        let mut slices: Vec<Range<u32>> = Vec::new();
        let mut start = 0;
        while start < self.samples {
            let end = (start * 2).max(1).min(self.samples);
            slices.push(start..end);
            start = end;
        }
        slices
    }

    fn start<'a>(
        &'a self,
        context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        check_prompt_ids(view, "prompts")?;
        let plan = SamplingPlan {
            temperature: self.temperature,
            max_new_tokens: self.max_new_tokens,
            max_concurrent: self.max_concurrent,
            seed: context.seed,
            exact_ranges: true,
        };
        let sampler = PartSampler::load("model", self.precision, plan, context, view)?;
        Ok(Box::new(RolloutTask {
            sampler: Mutex::new(sampler),
            model: model_digest(view, "model")?,
            seed: context.seed,
        }))
    }
}

struct RolloutTask<'a> {
    sampler: Mutex<PartSampler<'a>>,
    model: String,
    seed: u64,
}

impl MapTask for RolloutTask<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let rows = prompt_rows(part.rows)?;
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = sampler.sample(&rows, part.slices)?;
        let table = |range: &Vec<Sampled>| {
            let mut table = RolloutRows::new();
            for rollout in range {
                table.push(RolloutRow {
                    prompt_id: &rows[rollout.prompt].prompt_id,
                    sample: rollout.sample,
                    text: &rollout.text,
                    completion: &rollout.completion,
                    prompt_tokens: samples.prompt_tokens[rollout.prompt],
                    model: &self.model,
                    seed: self.seed,
                })?;
            }
            Ok(BTreeMap::from([("rollouts".to_owned(), table.finish()?)]))
        };
        let slices: Result<Vec<_>, OperatorError> = samples.ranges.iter().map(table).collect();
        Ok(MapOutput {
            slices: slices?,
            tokens: samples.tokens(),
            failed: samples.failed,
        })
    }
}

/// A configuration without some of its keys.
pub(crate) fn without(config: &Value, keys: &[&str]) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
    config
}

/// Digest of the model on an input port.
pub(crate) fn model_digest(view: &dyn StageView, port: &str) -> Result<String, OperatorError> {
    let model = view.inputs(port).first();
    let model =
        model.ok_or_else(|| OperatorError::Internal(format!("input `{port}` has no model")))?;
    Ok(model.digest().to_string())
}

#[cfg(test)]
mod tests;
