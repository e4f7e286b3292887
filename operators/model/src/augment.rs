//! `augment`: answers of an expert to prompts that a model cannot solve.
//!
//! Use it on the prompts with pass rate 0. The expert is another local model or the worked solution that the prompts bring
//! along. Only finished answers that are verified as correct become examples.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, LargeStringBuilder, UInt64Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use engine_core::operator::Family;
use engine_core::policy::{GenerationProgress, LoadOptions, Precision};
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, Registry, StageContext, StageIo,
};
use operators_verdict::{Outcome, VerifyConfig};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::columns::list_builder;
use crate::faults::ValueFaults;
use crate::processor::Processor;
use crate::prompt_rows::{PromptRow, read_prompts};
use crate::rollout::model_digest;
use crate::sampling::{
    self, Sampled, SamplingPlan, check_cancelled, load_encoder, progress, sample_prompts,
};

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
    const VERSION: u32 = 1;
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
        if matches!(self.expert, Expert::Model(_)) {
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

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let rows = read_prompts(io, "prompts")?;
        for row in &rows {
            row.gold()?;
        }
        let found = match &self.expert {
            _ if rows.is_empty() => Answers::default(),
            Expert::Model(model) => self.ask_model(model, &rows, context, io)?,
            Expert::Solutions(_) => self.take_solutions(&rows)?,
        };
        let table = prompts_table(io)?;
        io.write("examples", examples(&table, &rows, &found)?)?;
        let answered: Vec<bool> = answered(rows.len(), &found);
        let unanswered = (0..rows.len())
            .filter(|row| !answered[*row])
            .map(|row| row as u64);
        let unanswered = UInt64Array::from_iter_values(unanswered);
        let columns: Result<Vec<ArrayRef>, _> = table
            .columns()
            .iter()
            .map(|column| take(column, &unanswered, None))
            .collect();
        io.write(
            "unanswered",
            RecordBatch::try_new(table.schema(), columns?)?,
        )?;
        let done = rows.len() as u64;
        io.event(progress(
            "prompts",
            done,
            done,
            found.tokens,
            format!("{} examples", found.kept.len()),
        ));
        Ok(())
    }
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
}

impl Augment {
    fn ask_model(
        &self,
        model: &ExpertModel,
        rows: &[PromptRow],
        context: &StageContext<'_>,
        io: &mut dyn StageIo,
    ) -> Result<Answers, OperatorError> {
        let folder = io.model_folder("model")?;
        let mut encoder = load_encoder(&folder)?;
        let keep_tokens = !io.inputs("student").is_empty()
            && same_tokenizer(&io.model_folder("student")?, encoder.processor())?;
        let mut answers = Answers {
            model: Some(model_digest(io, "model")?),
            ..Answers::default()
        };
        let options = LoadOptions {
            precision: model.precision,
            training: None,
        };
        let mut policy = context.backend()?.load(&folder, &options)?;
        let plan = SamplingPlan {
            samples: model.attempts,
            temperature: model.temperature,
            max_new_tokens: model.max_new_tokens,
            max_concurrent: model.max_concurrent,
            seed: context.seed,
        };
        let total = rows.len() as u64 * u64::from(model.attempts);
        let mut done = 0;
        for (index, chunk) in rows.chunks(plan.prompts_per_call()).enumerate() {
            check_cancelled(io)?;
            let chunk: Vec<&PromptRow> = chunk.iter().collect();
            let prompts = encoder.encode(&chunk, io)?;
            let shared: &dyn StageIo = io;
            let tokens = answers.tokens;
            let mut tell = |reached: GenerationProgress| {
                shared.event(progress(
                    "rollouts",
                    done + reached.sequences as u64,
                    total,
                    tokens + reached.tokens as u64,
                    String::new(),
                ));
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
            done += sampled.len() as u64;
            answers.tokens += sampled
                .iter()
                .map(|answer| answer.completion.token_ids.len() as u64)
                .sum::<u64>();
            let first = index * plan.prompts_per_call();
            let correct = self.correct(first, rows, sampled)?;
            answers
                .kept
                .extend(first_of_each_prompt(correct, model.keep, keep_tokens));
        }
        Ok(answers)
    }

    /// The finished and correct answers, with the place of their prompt in `rows`. `first` is that of the first prompt asked.
    fn correct(
        &self,
        first: usize,
        rows: &[PromptRow],
        sampled: Vec<Sampled>,
    ) -> Result<Vec<(usize, Sampled)>, OperatorError> {
        let judged: Result<Vec<bool>, OperatorError> = sampled
            .par_iter()
            .map(|answer| {
                Ok(answer.is_complete()
                    && self.accepts(&rows[first + answer.prompt], &answer.text)?)
            })
            .collect();
        let judged = sampled.into_iter().zip(judged?);
        Ok(judged
            .filter(|(_, is_correct)| *is_correct)
            .map(|(answer, _)| (first + answer.prompt, answer))
            .collect())
    }

    fn take_solutions(&self, rows: &[PromptRow]) -> Result<Answers, OperatorError> {
        let mut kept = Vec::new();
        for (prompt, row) in rows.iter().enumerate() {
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
            ..Answers::default()
        })
    }

    fn accepts(&self, row: &PromptRow, text: &str) -> Result<bool, OperatorError> {
        let verdict = self.verify.verdict(row.gold()?, text);
        Ok(verdict.outcome == Outcome::Correct && (verdict.format_ok || !self.require_format))
    }
}

/// At most `keep` answers of each prompt; those of a prompt are in a row.
fn first_of_each_prompt(correct: Vec<(usize, Sampled)>, keep: u32, keep_tokens: bool) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    for (prompt, answer) in correct {
        let taken = kept
            .iter()
            .rev()
            .take_while(|earlier| earlier.prompt == prompt)
            .count();
        if taken < keep as usize {
            kept.push(Kept {
                prompt,
                text: answer.text,
                token_ids: keep_tokens.then_some(answer.completion.token_ids),
            });
        }
    }
    kept
}

fn same_tokenizer(folder: &std::path::Path, expert: &Processor) -> Result<bool, OperatorError> {
    Ok(Processor::load(folder)?.tokenizer_digest() == expert.tokenizer_digest())
}

fn answered(prompts: usize, answers: &Answers) -> Vec<bool> {
    let mut answered = vec![false; prompts];
    for kept in &answers.kept {
        answered[kept.prompt] = true;
    }
    answered
}

/// All prompts as one batch, with the columns of the table and no others.
fn prompts_table(io: &dyn StageIo) -> Result<RecordBatch, OperatorError> {
    let schema: SchemaRef = TableName::Prompts.schema();
    let mut batches = Vec::new();
    for batch in io.read("prompts")? {
        let batch = batch?;
        let columns: Option<Vec<ArrayRef>> = schema
            .fields()
            .iter()
            .map(|field| batch.column_by_name(field.name()).cloned())
            .collect();
        let columns = columns
            .ok_or_else(|| OperatorError::Internal("a prompts table lacks a column".into()))?;
        batches.push(RecordBatch::try_new(Arc::clone(&schema), columns)?);
    }
    Ok(concat_batches(&schema, &batches)?)
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
