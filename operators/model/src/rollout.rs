//! `rollout`: samples answers of a model to every prompt.
//!
//! Use it to probe a model (many samples) or to evaluate it (one greedy sample). What a row gets does not depend on the
//! other rows, so the order of prompts and the size of batches do not matter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use engine_core::operator::Family;
use engine_core::policy::Precision;
use engine_core::{
    Fault, InputPort, InputType, MapOperator, MapOutput, MapPart, MapTask, OperatorConfig,
    OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports, Registry,
    StageContext, StageView,
};
use operators_endpoint::Endpoint;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoint::{self, ASKED_PART, Answerer, EndpointSampler};
use crate::faults::ValueFaults;
use crate::part_sampler::{PartSampler, SAMPLED_PART};
use crate::prompt_rows::{check_prompt_ids, prompt_rows};
use crate::rollout_rows::{Extras, RolloutRow, RolloutRows};
use crate::sampling::{self, Sampled, SamplingPlan};
use crate::sampling_keys::{self, SamplingKeys};

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
    /// Samples only from this many of the most likely tokens. Default 0: all.
    #[serde(default, skip_serializing_if = "sampling_keys::is_none")]
    pub top_k: u32,
    /// Samples only from the fewest most likely tokens that have this much of the probability. Default 1: all.
    #[serde(
        default = "sampling_keys::one",
        skip_serializing_if = "sampling_keys::is_one"
    )]
    pub top_p: f64,
    /// Samples only from tokens that have at least this share of the largest probability. Default 0: all.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens that the prompt or the answer has. Default 1: none.
    #[serde(
        default = "sampling_keys::one",
        skip_serializing_if = "sampling_keys::is_one"
    )]
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens that the answer has. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub presence_penalty: f64,
    /// Taken from the logits of a token once for each time that the answer has it. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub frequency_penalty: f64,
    /// An answer cannot end by itself before it has this many tokens. Default 0.
    #[serde(default, skip_serializing_if = "sampling_keys::is_none")]
    pub min_new_tokens: u32,
    /// Texts that end an answer; its text is cut before them, its tokens are kept. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Whether the table has a column `entropies`, with the entropy of the distribution at each token. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_entropy: bool,
    /// A server that is asked, instead of a model on the input port `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Number format of the weights. Default `float32`.
    #[serde(default)]
    pub precision: Precision,
    /// Answers decoded at the same time; bounds the memory of the key-value cache. Default 256.
    #[serde(default = "sampling::max_concurrent")]
    pub max_concurrent: u32,
}

impl OperatorKind for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u32 = 3;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "samples answers of a model to every prompt";
}

impl Rollout {
    fn keys(&self) -> SamplingKeys {
        SamplingKeys {
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            min_new_tokens: self.min_new_tokens,
            stop: self.stop.clone(),
        }
    }

    /// The columns that the table has beside the usual ones.
    fn extras(&self) -> Extras {
        Extras {
            // A server tells one log-probability for each token, if any.
            truncated_logprobs: self.keys().truncates() && self.endpoint.is_none(),
            entropies: self.record_entropy,
            may_lack_tokens: self.endpoint.is_some(),
        }
    }
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<Rollout>();
}

impl OperatorConfig for Rollout {
    fn ports(&self) -> Ports {
        let prompts = InputType::columns(TableName::Prompts, &["prompt_id", "messages"]);
        let mut inputs = vec![InputPort::new("prompts", prompts)];
        if self.endpoint.is_none() {
            inputs.push(InputPort::new("model", InputType::Model));
        }
        Ports::new(inputs, &["rollouts"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = ValueFaults::default();
        faults.sampling("samples", self.samples, self.temperature);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
        self.keys()
            .check(self.temperature, self.max_new_tokens, &mut faults);
        if let Some(endpoint) = &self.endpoint {
            endpoint::check(endpoint, &mut faults);
            if self.record_entropy {
                let message =
                    "a server tells no entropies: leave out `record-entropy` or `endpoint`";
                faults.fault("record-entropy", message.to_owned());
            }
        }
        let rollouts = PortType::Table {
            table: TableName::Rollouts,
            schema: self.extras().schema(),
        };
        faults.or(
            &[],
            PortTypes::from([("rollouts".to_owned(), vec![rollouts])]),
        )
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        endpoint::content(canonical, "/endpoint")
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
        match self.endpoint {
            Some(_) => ASKED_PART,
            None => SAMPLED_PART,
        }
    }

    fn part_config(&self, canonical: &Value) -> Value {
        // The slices say which samples a part has, and no row depends on how many are decoded at the same time.
        let config = without(canonical, &["samples", "max-concurrent"]);
        endpoint::content(&config, "/endpoint")
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
            keys: self.keys(),
            max_new_tokens: self.max_new_tokens,
            max_concurrent: self.max_concurrent,
            seed: context.seed,
            exact_ranges: true,
        };
        let (answerer, model) = match &self.endpoint {
            Some(endpoint) => {
                let server = EndpointSampler::start(endpoint, &plan, view)?;
                let name = server.name().to_owned();
                (Answerer::Server(Box::new(server)), name)
            }
            None => {
                let sampler = PartSampler::load("model", self.precision, plan, context, view)?;
                let sampler = Answerer::Model(Box::new(Mutex::new(sampler)));
                (sampler, model_digest(view, "model")?)
            }
        };
        Ok(Box::new(RolloutTask {
            answerer,
            model,
            seed: context.seed,
            extras: self.extras(),
        }))
    }
}

struct RolloutTask<'a> {
    answerer: Answerer<'a>,
    model: String,
    seed: u64,
    extras: Extras,
}

impl MapTask for RolloutTask<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let rows = prompt_rows(part.rows)?;
        let samples = self.answerer.sample(&rows, part.slices)?;
        let table = |range: &Vec<Sampled>| {
            let mut table = RolloutRows::new(self.extras);
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
