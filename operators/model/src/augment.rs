//! `augment`: answers of an expert to prompts that a model cannot solve.
//!
//! Use it on the prompts with pass rate 0. The expert is another local model or the worked solution that the prompts bring
//! along. Only finished answers that are verified as correct become examples.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray, BooleanArray, LargeStringBuilder, UInt64Array};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use engine_core::operator::Family;
use engine_core::policy::Precision;
use engine_core::{
    FailedRow, Fault, InputPort, InputType, MapOperator, MapOutput, MapPart, MapTask,
    OperatorConfig, OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports,
    Registry, StageContext, StageView,
};
use operators_endpoint::Endpoint;
use operators_verdict::{Outcome, VerifyConfig};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::columns::list_builder;
use crate::endpoint::{self, ASKED_PART, Answerer, EndpointSampler};
use crate::faults::ValueFaults;
use crate::part_sampler::{PartSampler, SAMPLED_PART};
use crate::processor::Processor;
use crate::prompt_rows::{PromptRow, check_prompt_ids, prompt_rows};
use crate::rollout::{model_digest, without};
use crate::sampling::{self, Sampled, SamplingPlan};
use crate::sampling_keys::{self, SamplingKeys};

/// What the `origin` column of the examples says.
const ORIGIN: &str = "expert";

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
    /// The column `solution` of the prompts.
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

/// Options of worked solutions: none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Solutions {}

impl OperatorKind for Augment {
    const KIND: &'static str = "augment";
    const VERSION: u32 = 2;
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
        Ports::new(inputs, &["examples", "unanswered"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = ValueFaults::default();
        if let Expert::Model(model) = &self.expert {
            faults.sampling("attempts", model.attempts, model.temperature);
            faults.at_least("keep", u64::from(model.keep), 1);
            faults.at_least("max-new-tokens", u64::from(model.max_new_tokens), 1);
            faults.at_least("max-concurrent", u64::from(model.max_concurrent), 1);
            model
                .keys()
                .check(model.temperature, model.max_new_tokens, &mut faults);
            if let Some(endpoint) = &model.endpoint {
                endpoint::check(endpoint, &mut faults);
            }
        }
        let types = PortTypes::from([
            (
                "examples".to_owned(),
                vec![PortType::table(TableName::Examples)],
            ),
            (
                "unanswered".to_owned(),
                vec![PortType::table(TableName::Prompts)],
            ),
        ]);
        faults.or(&["expert", "model"], types)
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        endpoint::content(canonical, "/expert/model/endpoint")
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Augment {
    fn rows_port(&self) -> Option<&str> {
        Some("prompts")
    }

    fn part_size(&self) -> PartSize {
        match &self.expert {
            Expert::Model(model) if model.endpoint.is_some() => ASKED_PART,
            Expert::Model(_) => SAMPLED_PART,
            Expert::Solutions(_) => PartSize::default(),
        }
    }

    fn part_config(&self, canonical: &Value) -> Value {
        let mut config = endpoint::content(canonical, "/expert/model/endpoint");
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
        let source = match &self.expert {
            Expert::Model(model) => Source::Model(Box::new(model.start(context, view)?)),
            Expert::Solutions(_) => Source::Solutions,
        };
        Ok(Box::new(AugmentTask {
            config: self,
            source,
        }))
    }
}

impl ExpertModel {
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

    fn start<'a>(
        &self,
        context: &StageContext<'_>,
        view: &'a dyn StageView,
    ) -> Result<StartedModel<'a>, OperatorError> {
        let plan = SamplingPlan {
            temperature: self.temperature,
            keys: self.keys(),
            max_new_tokens: self.max_new_tokens,
            max_concurrent: self.max_concurrent,
            seed: context.seed,
            exact_ranges: false,
        };
        if let Some(endpoint) = &self.endpoint {
            let server = EndpointSampler::start(endpoint, &plan, view)?;
            return Ok(StartedModel {
                digest: server.name().to_owned(),
                answerer: Answerer::Server(Box::new(server)),
                attempts: self.attempts,
                keep: self.keep,
                // Whose tokens they are is not known.
                keep_tokens: false,
            });
        }
        let sampler = PartSampler::load("model", self.precision, plan, context, view)?;
        let keep_tokens = !view.inputs("student").is_empty()
            && same_tokenizer(&view.model_folder("student")?, sampler.processor())?;
        Ok(StartedModel {
            answerer: Answerer::Model(Box::new(Mutex::new(sampler))),
            digest: model_digest(view, "model")?,
            attempts: self.attempts,
            keep: self.keep,
            keep_tokens,
        })
    }
}

struct AugmentTask<'a> {
    config: &'a Augment,
    source: Source<'a>,
}

/// Where answers come from.
enum Source<'a> {
    Model(Box<StartedModel<'a>>),
    Solutions,
}

/// An expert model that is loaded.
struct StartedModel<'a> {
    answerer: Answerer<'a>,
    digest: String,
    attempts: u32,
    keep: u32,
    /// Whether the student reads the expert's tokens alike.
    keep_tokens: bool,
}

/// An answer that became an example.
#[derive(Debug)]
struct Kept {
    /// Index of the prompt.
    prompt: usize,
    text: String,
    /// The expert's tokens, where the student reads them alike.
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Answers {
    kept: Vec<Kept>,
    /// Digest of the model that answered.
    model: Option<String>,
    /// Tokens that were sampled.
    tokens: u64,
    /// Prompts that could not be asked.
    failed: Vec<FailedRow>,
}

impl MapTask for AugmentTask<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let table = prompts_table(part.rows)?;
        let rows = prompt_rows(&table)?;
        let answers = match &self.source {
            Source::Model(model) => self.config.ask_model(model, &rows)?,
            Source::Solutions => self.config.take_solutions(&rows)?,
        };
        let ports = BTreeMap::from([
            ("examples".to_owned(), examples(&table, &rows, &answers)?),
            ("unanswered".to_owned(), unanswered(&table, &answers)?),
        ]);
        Ok(MapOutput {
            slices: vec![ports],
            failed: answers.failed,
            tokens: answers.tokens,
        })
    }
}

impl Augment {
    fn ask_model(
        &self,
        model: &StartedModel<'_>,
        rows: &[PromptRow],
    ) -> Result<Answers, OperatorError> {
        let (asked, mut failed) = with_gold(rows);
        let questions: Vec<PromptRow> = asked.iter().map(|row| rows[*row].clone()).collect();
        let attempts = 0..model.attempts;
        let mut samples = (model.answerer).sample(&questions, std::slice::from_ref(&attempts))?;
        let tokens = samples.tokens();
        failed.extend(samples.failed.drain(..).map(|failure| FailedRow {
            row: asked[failure.row],
            ..failure
        }));
        failed.sort_by_key(|failure| failure.row);
        let sampled: Vec<Sampled> = (samples.ranges.into_iter().flatten())
            .map(|answer| Sampled {
                prompt: asked[answer.prompt],
                ..answer
            })
            .collect();
        let correct = self.correct(rows, sampled)?;
        Ok(Answers {
            kept: first_of_each_prompt(correct, model.keep, model.keep_tokens),
            model: Some(model.digest.clone()),
            tokens,
            failed,
        })
    }

    /// The finished and correct answers.
    fn correct(
        &self,
        rows: &[PromptRow],
        sampled: Vec<Sampled>,
    ) -> Result<Vec<Sampled>, OperatorError> {
        let judged: Result<Vec<bool>, OperatorError> = sampled
            .par_iter()
            .map(|answer| {
                Ok(answer.is_complete() && self.accepts(&rows[answer.prompt], &answer.text)?)
            })
            .collect();
        let judged = sampled.into_iter().zip(judged?);
        Ok(judged
            .filter(|(_, is_correct)| *is_correct)
            .map(|(answer, _)| answer)
            .collect())
    }

    fn take_solutions(&self, rows: &[PromptRow]) -> Result<Answers, OperatorError> {
        let (asked, failed) = with_gold(rows);
        let mut kept = Vec::new();
        for prompt in asked {
            let row = &rows[prompt];
            if let Some(text) = &row.solution
                && self.accepts(row, text)?
            {
                kept.push(Kept {
                    prompt,
                    text: text.clone(),
                    token_ids: None,
                });
            }
        }
        Ok(Answers {
            kept,
            failed,
            ..Answers::default()
        })
    }

    fn accepts(&self, row: &PromptRow, text: &str) -> Result<bool, OperatorError> {
        let verdict = self.verify.verdict(row.gold()?, text);
        Ok(verdict.outcome == Outcome::Correct && (verdict.format_ok || !self.require_format))
    }
}

/// The prompts whose answers can be verified, and the failures of the others.
fn with_gold(rows: &[PromptRow]) -> (Vec<usize>, Vec<FailedRow>) {
    let (mut asked, mut failed) = (Vec::new(), Vec::new());
    for (row, prompt) in rows.iter().enumerate() {
        match prompt.gold() {
            Ok(_) => asked.push(row),
            Err(error) => failed.push(FailedRow {
                row,
                error: error.to_string(),
            }),
        }
    }
    (asked, failed)
}

/// At most `keep` answers of each prompt; those of a prompt are in a row.
fn first_of_each_prompt(correct: Vec<Sampled>, keep: u32, keep_tokens: bool) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    for answer in correct {
        let taken = kept
            .iter()
            .rev()
            .take_while(|earlier| earlier.prompt == answer.prompt)
            .count();
        if taken < keep as usize {
            kept.push(Kept {
                prompt: answer.prompt,
                text: answer.text,
                // Tokens with a stop string are not those of the text; the text is tokenised when it is learnt.
                token_ids: (keep_tokens && !answer.is_cut).then_some(answer.completion.token_ids),
            });
        }
    }
    kept
}

fn same_tokenizer(folder: &std::path::Path, expert: &Processor) -> Result<bool, OperatorError> {
    Ok(Processor::load(folder)?.tokenizer_digest() == expert.tokenizer_digest())
}

/// The rows with the columns of the table, in its order, and no others.
fn prompts_table(batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let schema: SchemaRef = TableName::Prompts.schema();
    let columns: Option<Vec<ArrayRef>> = schema
        .fields()
        .iter()
        .map(|field| batch.column_by_name(field.name()).cloned())
        .collect();
    let columns =
        columns.ok_or_else(|| OperatorError::Internal("a prompts table lacks a column".into()))?;
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// The prompts without an example that did not fail either.
fn unanswered(table: &RecordBatch, answers: &Answers) -> Result<RecordBatch, OperatorError> {
    let mut is_open = vec![true; table.num_rows()];
    let settled = answers.kept.iter().map(|kept| kept.prompt);
    for row in settled.chain(answers.failed.iter().map(|failure| failure.row)) {
        is_open[row] = false;
    }
    Ok(filter_record_batch(table, &BooleanArray::from(is_open))?)
}

fn examples(
    table: &RecordBatch,
    rows: &[PromptRow],
    answers: &Answers,
) -> Result<RecordBatch, OperatorError> {
    let places = UInt64Array::from_iter_values(answers.kept.iter().map(|kept| kept.prompt as u64));
    let messages = table
        .column_by_name("messages")
        .expect("the table was made with all columns");
    let messages = take(messages.as_list::<i64>(), &places, None)?;
    let (mut ids, mut texts) = (LargeStringBuilder::new(), LargeStringBuilder::new());
    let (mut origins, mut models) = (LargeStringBuilder::new(), LargeStringBuilder::new());
    let mut token_ids = list_builder::<UInt32Type>();
    for kept in &answers.kept {
        ids.append_value(&rows[kept.prompt].prompt_id);
        texts.append_value(&kept.text);
        if let Some(ids) = &kept.token_ids {
            token_ids.values().append_slice(ids);
        }
        token_ids.append(kept.token_ids.is_some());
        origins.append_value(ORIGIN);
        models.append_option(answers.model.as_deref());
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        messages,
        Arc::new(texts.finish()),
        Arc::new(token_ids.finish()),
        Arc::new(origins.finish()),
        Arc::new(models.finish()),
    ];
    Ok(RecordBatch::try_new(TableName::Examples.schema(), columns)?)
}

#[cfg(test)]
mod tests;
