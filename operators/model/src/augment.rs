//! `augment`: answers of an expert to prompts that a model cannot solve.
//!
//! Use it on the prompts with pass rate 0. The expert is another model, here or behind a server, or worked solutions out of the
//! prompts' column or of another table. Only finished answers that are verified as correct become examples; every prompt that
//! got none is listed with the reason.

mod ask;
mod outcome;
mod rewrite;
mod worked;

use std::path::Path;

use arrow::datatypes::{Field, Schema, SchemaRef};
use engine_core::operator::Family;
use engine_core::policy::Precision;
use engine_core::{
    External, Fault, InputPort, InputType, Joined, MapOperator, MapTask, OperatorConfig,
    OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports, Registry,
    StageContext, StageView,
};
use operators_endpoint::Endpoint;
use operators_verifier::{Verifier, VerifyConfig};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::LocalJudge;
use crate::endpoint::{self, ASKED_PART};
use crate::faults::ValueFaults;
use crate::part_sampler::SAMPLED_PART;
use crate::prompt_rows::check_prompt_ids;
use crate::rollout::without;
use crate::sampling;
use crate::sampling_keys::{self, SamplingKeys};
use ask::{AugmentTask, Expert as StartedExpert};
use worked::Worked;

/// Takes verified answers of an expert as examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Augment {
    /// Who answers.
    pub expert: Expert,
    /// How answers are compared with the gold answer; only correct ones are kept.
    pub verify: VerifyConfig,
    /// Whether an answer must have the required form as well.
    pub require_format: bool,
    /// The form that right answers are rewritten to, for example `<think>{reasoning}</think><answer>{answer}</answer>`: `{answer}`
    /// is the answer that was found, `{reasoning}` what leads to it, `{text}` the whole. What comes out is verified again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
    /// Answers with one of these texts, in any case, are not kept; for example `hint`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
}

/// Who answers.
#[expect(
    clippy::large_enum_variant,
    reason = "a stage has one, and boxes would be in everybody's way"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Expert {
    /// The model on the input port `model`.
    Model(ExpertModel),
    /// Worked solutions: those of the input `solutions` (`prompt_id`, `text`), or the column `solution` of the prompts.
    Solutions(Solutions),
}

/// How the expert model is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExpertModel {
    /// Answers sampled for each prompt.
    pub attempts: u32,
    /// Most examples for each prompt: the first correct answers.
    pub keep: u32,
    /// Divides the logits before sampling; 1 samples from the model as it is, 0 decodes greedily.
    pub temperature: f64,
    /// Most tokens of an answer, the end token included. Answers that are cut there are not kept.
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
    /// Asks again, with a hint, for prompts that got no right answer. Examples have the prompt without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Hint>,
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

/// What an expert is told that cannot find the answer by itself. Such examples have the origin `expert-hinted`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hint {
    /// Put after the question; `{answer}` is the gold answer, `{solution}` the column of that name.
    pub text: String,
    /// Answers sampled for each prompt with the hint.
    pub attempts: u32,
}

/// Options of worked solutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Solutions {
    /// Most examples for each prompt: the first correct solutions. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub keep: u32,
}

fn one() -> u32 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_one(number: &u32) -> bool {
    *number == 1
}

impl OperatorKind for Augment {
    const KIND: &'static str = "augment";
    const VERSION: u32 = 3;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "takes verified answers of an expert as examples";
}

/// Adds the kind.
pub fn register(registry: &mut Registry) {
    registry.register::<Augment>();
}

impl OperatorConfig for Augment {
    fn ports(&self) -> Ports {
        let mut inputs = vec![InputPort::new(
            "prompts",
            InputType::table(TableName::Prompts),
        )];
        if matches!(&self.expert, Expert::Model(model) if model.endpoint.is_none()) {
            inputs.push(InputPort::new("model", InputType::Model));
            // Connected, its tokenizer decides whether the expert's token ids can be learnt as they are.
            inputs.push(InputPort::new("student", InputType::Model).optional());
        }
        if matches!(self.expert, Expert::Solutions(_)) {
            inputs.push(InputPort::new("solutions", worked::columns()).optional());
        }
        if self.verify.needs_model() {
            inputs.push(InputPort::new("judge", InputType::Model));
        }
        Ports::new(inputs, &["examples", "unanswered"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = self.verify.faults(&["verify"]);
        faults.extend(self.rewrite.as_deref().and_then(rewrite::fault));
        let mut of_expert = ValueFaults::default();
        match &self.expert {
            Expert::Model(model) => model.check(&mut of_expert),
            Expert::Solutions(solutions) => {
                of_expert.at_least("keep", u64::from(solutions.keep), 1);
            }
        }
        let name = match &self.expert {
            Expert::Model(_) => "model",
            Expert::Solutions(_) => "solutions",
        };
        faults.extend(
            of_expert
                .or(&["expert", name], ())
                .err()
                .unwrap_or_default(),
        );
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(PortTypes::from([
            (
                "examples".to_owned(),
                vec![PortType::table(TableName::Examples)],
            ),
            (
                "unanswered".to_owned(),
                vec![PortType::Table {
                    table: TableName::Prompts,
                    schema: unanswered_schema(),
                }],
            ),
        ]))
    }

    fn externals(&self) -> Vec<External> {
        self.verify.externals(&["verify"])
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        self.verify.inspect(root, &["verify"])
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        content(canonical)
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Augment {
    fn rows_port(&self) -> Option<&str> {
        Some("prompts")
    }

    fn joined(&self) -> Vec<Joined> {
        match &self.expert {
            Expert::Model(_) => Vec::new(),
            Expert::Solutions(_) => vec![Joined {
                port: "solutions",
                column: "prompt_id",
            }],
        }
    }

    fn part_size(&self) -> PartSize {
        match &self.expert {
            Expert::Model(model) if model.endpoint.is_some() => ASKED_PART,
            Expert::Model(_) => SAMPLED_PART,
            Expert::Solutions(_) => PartSize::default(),
        }
    }

    fn part_config(&self, canonical: &Value) -> Value {
        let mut config = content(canonical);
        if let Some(model) = config.pointer_mut("/expert/model") {
            // No row depends on how many are decoded at the same time.
            *model = without(model, &["max-concurrent"]);
        }
        config
    }

    fn start<'a>(
        &'a self,
        context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        check_prompt_ids(view, "prompts")?;
        let expert = match &self.expert {
            Expert::Model(model) => StartedExpert::Model(Box::new(model.start(context, view)?)),
            Expert::Solutions(solutions) => {
                StartedExpert::Worked(Worked::read(view, "solutions", solutions.keep)?)
            }
        };
        let mut verifier = Verifier::open(&self.verify, context, view)?;
        if let Some(options) = self.verify.local_judge() {
            let judge = LocalJudge::open(options, "judge", context, view)?;
            verifier = verifier.with_model(Box::new(judge));
        }
        Ok(Box::new(AugmentTask {
            config: self,
            expert,
            verifier,
            view,
        }))
    }
}

/// What counts of a configuration for what comes out.
fn content(canonical: &Value) -> Value {
    let mut config = endpoint::content(canonical, "/expert/model/endpoint");
    if let Some(verify) = config.pointer_mut("/verify") {
        VerifyConfig::retain_content(verify);
    }
    config
}

/// The prompts without an example, and why.
fn unanswered_schema() -> SchemaRef {
    let mut fields: Vec<_> = TableName::Prompts
        .schema()
        .fields()
        .iter()
        .cloned()
        .collect();
    fields.push(Field::new("reason", schemas::tables::TEXT, false).into());
    Schema::new(fields).into()
}

impl ExpertModel {
    fn check(&self, faults: &mut ValueFaults) {
        faults.sampling("attempts", self.attempts, self.temperature);
        faults.at_least("keep", u64::from(self.keep), 1);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
        let keys = self.keys();
        keys.check(self.temperature, self.max_new_tokens, faults);
        if let Some(hint) = &self.hint {
            if hint.attempts == 0 {
                faults.nested(
                    "hint",
                    "attempts",
                    "`attempts` is 0 and must be at least 1".to_owned(),
                );
            }
            if self.temperature == 0.0 && hint.attempts > 1 {
                faults.nested(
                    "hint",
                    "attempts",
                    "`temperature: 0` decodes greedily, so all attempts of a prompt would be the same".to_owned(),
                );
            }
            if !["{answer}", "{solution}"]
                .iter()
                .any(|mark| hint.text.contains(mark))
            {
                let message = "the hint tells nothing of the prompt: it has neither `{answer}` nor `{solution}`";
                faults.nested("hint", "text", message.to_owned());
            }
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint::check(endpoint, faults);
        }
    }

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
}

#[cfg(test)]
mod tests;
