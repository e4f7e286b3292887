//! `rollout`: samples answers of a model to every prompt.
//!
//! Use it to probe a model (many samples) or to evaluate it (one greedy sample). What a row gets does not depend on the
//! other rows, so the order of prompts and the size of batches do not matter.

use engine_core::operator::Family;
use engine_core::policy::{LoadOptions, Precision};
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, Registry, StageContext, StageIo,
};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;
use crate::prompt_rows::{PromptRow, read_prompts};
use crate::rollout_rows::{RolloutRow, RolloutRows};
use crate::sampling::{
    self, SamplingPlan, check_cancelled, load_encoder, progress, sample_prompts,
};

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
    const VERSION: u32 = 1;
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

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let rows = read_prompts(io, "prompts")?;
        let folder = io.model_folder("model")?;
        let model = model_digest(io, "model")?;
        let mut encoder = load_encoder(&folder)?;
        let options = LoadOptions {
            precision: self.precision,
            training: None,
        };
        let mut policy = context.backend()?.load(&folder, &options)?;
        let plan = self.plan(context.seed);
        let total = rows.len() as u64 * u64::from(self.samples);
        let (mut done, mut tokens) = (0_u64, 0_u64);
        if rows.is_empty() {
            return io.write("rollouts", RolloutRows::new().finish()?);
        }
        for chunk in rows.chunks(plan.prompts_per_call()) {
            check_cancelled(io)?;
            let chunk: Vec<&PromptRow> = chunk.iter().collect();
            let prompts = encoder.encode(&chunk, io)?;
            let shared: &dyn StageIo = io;
            let mut tell = |reached: engine_core::policy::GenerationProgress| {
                let (done, tokens) = (
                    done + reached.sequences as u64,
                    tokens + reached.tokens as u64,
                );
                shared.event(progress("rollouts", done, total, tokens, String::new()));
            };
            let sampled = sample_prompts(
                &mut *policy,
                encoder.processor(),
                &chunk,
                &prompts,
                &plan,
                shared,
                &mut tell,
            )?;
            let mut table = RolloutRows::new();
            for rollout in &sampled {
                table.push(RolloutRow {
                    prompt_id: &chunk[rollout.prompt].prompt_id,
                    sample: rollout.sample,
                    text: &rollout.text,
                    completion: &rollout.completion,
                    prompt_tokens: prompts[rollout.prompt].token_ids.len(),
                    model: &model,
                    seed: plan.seed,
                })?;
            }
            io.write("rollouts", table.finish()?)?;
            done += sampled.len() as u64;
            tokens += sampled
                .iter()
                .map(|rollout| rollout.completion.token_ids.len() as u64)
                .sum::<u64>();
            io.event(progress("rollouts", done, total, tokens, String::new()));
        }
        Ok(())
    }
}

impl Rollout {
    fn plan(&self, seed: u64) -> SamplingPlan {
        SamplingPlan {
            samples: self.samples,
            temperature: self.temperature,
            max_new_tokens: self.max_new_tokens,
            max_concurrent: self.max_concurrent,
            seed,
        }
    }
}

/// Digest of the model on an input port.
pub(crate) fn model_digest(io: &dyn StageIo, port: &str) -> Result<String, OperatorError> {
    let model = io.inputs(port).first();
    let model =
        model.ok_or_else(|| OperatorError::Internal(format!("input `{port}` has no model")))?;
    Ok(model.digest().to_string())
}

#[cfg(test)]
mod tests;
