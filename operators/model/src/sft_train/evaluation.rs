//! Evaluation by generation while a model is trained: answers to held-out prompts, judged as the stage `verify` judges them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::policy::{MemoryPlan, TokenizedPrompt};
use engine_core::{Fault, ModelError, OperatorError, Policy, StageContext, StageIo, seed};
use operators_verdict::{Outcome, wilson_interval};
use operators_verifier::{Judged, Question, Verifier, VerifyConfig};
use schemars::JsonSchema;
use schemas::TableName;
use schemas::tables::TEXT;
use serde::{Deserialize, Serialize};

use crate::faults::ValueFaults;
use crate::local_judge::LocalJudge;
use crate::processor::PromptEncoder;
use crate::prompt_rows::{PromptRow, read_prompts};
use crate::rollout::model_digest;
use crate::rollout_rows::{Extras, RolloutRow, RolloutRows};
use crate::sampling::{self, Asked, Sampled, SamplingPlan, sample_prompts};
use crate::sampling_keys::{self, SamplingKeys};

/// The port of the prompts.
pub(super) const PORT: &str = "evaluation";

/// Figures of an evaluation, as the `metrics` table names them.
pub(super) const FIGURES: [&str; 6] = [
    "eval_accuracy",
    "eval_accuracy_low",
    "eval_accuracy_high",
    "eval_unusable",
    "eval_truncated",
    "eval_tokens",
];

/// How a model is evaluated while it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evaluation {
    /// Steps from one evaluation to the next; there is one after the last step as well.
    pub every: u32,
    /// How answers are judged.
    pub verify: VerifyConfig,
    /// Most tokens of an answer, the end token included.
    pub max_new_tokens: u32,
    /// Answers for each prompt. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub samples: u32,
    /// Divides the logits before sampling. Default 0: greedy decoding.
    #[serde(default, skip_serializing_if = "sampling_keys::is_zero")]
    pub temperature: f64,
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
    /// Answers decoded at the same time; bounds the memory of the key-value cache. Default 256.
    #[serde(default = "sampling::max_concurrent")]
    pub max_concurrent: u32,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

impl Evaluation {
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

    /// Every value that is out of range, as faults of the key `evaluate`.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = ValueFaults::default();
        faults.at_least("every", u64::from(self.every), 1);
        faults.sampling("samples", self.samples, self.temperature);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
        self.keys()
            .check(self.temperature, self.max_new_tokens, &mut faults);
        let mut all = faults.or(&["evaluate"], ()).err().unwrap_or_default();
        all.extend(self.verify.faults(&VERIFY));
        all
    }

    /// Columns that the prompts must have.
    pub(super) fn columns(&self) -> Vec<&'static str> {
        let mut columns = vec!["prompt_id", "messages"];
        if self.verify.needs_gold() {
            columns.push("answer");
        }
        columns
    }
}

/// The keys that lead to the verifier.
pub(super) const VERIFY: [&str; 2] = ["evaluate", "verify"];

/// The `rollouts` table of evaluations. A rollout is named by step, prompt and sample.
pub(super) fn rollouts_schema() -> SchemaRef {
    let usual = TableName::Rollouts.schema();
    let mut fields: Vec<Arc<Field>> = usual.fields().iter().cloned().collect();
    fields.extend(
        [
            // Steps that the model had taken.
            Field::new("step", DataType::Int64, false),
            Field::new("verdict", TEXT, false),
            // The answer found in the completion.
            Field::new("extracted", TEXT, true),
        ]
        .map(Arc::new),
    );
    Arc::new(Schema::new(fields))
}

/// The prompts of a stage, ready to be asked again and again.
pub(super) struct Evaluator<'a> {
    config: &'a Evaluation,
    rows: Vec<PromptRow>,
    prompts: Vec<Arc<TokenizedPrompt>>,
    verifier: Verifier,
    /// The same answers would be sampled from the same weights.
    seed: u64,
    /// Digest of the model that training started from.
    model: String,
}

/// How good a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Accuracy {
    pub(super) correct: u32,
    /// Answers with a verdict that is a judgement.
    pub(super) judged: u32,
}

impl Accuracy {
    /// Whether more of the answers are right.
    pub(super) fn is_better_than(self, other: Self) -> bool {
        u64::from(self.correct) * u64::from(other.judged)
            > u64::from(other.correct) * u64::from(self.judged)
    }

    pub(super) fn share(self) -> f64 {
        f64::from(self.correct) / f64::from(self.judged.max(1))
    }
}

impl<'a> Evaluator<'a> {
    /// Reads the prompts, and refuses those that nothing can be judged of.
    ///
    /// # Errors
    /// When there are none, or one cannot be used.
    pub(super) fn open(
        config: &'a Evaluation,
        encoder: &mut PromptEncoder,
        policy: &dyn Policy,
        context: &StageContext<'_>,
        io: &dyn StageIo,
    ) -> Result<Self, OperatorError> {
        let rows = read_prompts(io, PORT)?;
        if rows.is_empty() {
            let message = format!("there are no prompts on the input port `{PORT}`");
            return Err(OperatorError::Data(message));
        }
        for row in &rows {
            config
                .verify
                .check_gold(row.answer.as_deref())
                .map_err(|error| row.fault(&format!("it cannot be evaluated: {error}")))?;
        }
        let prompts = encoder.encode(&rows.iter().collect::<Vec<_>>(), io)?;
        for (row, prompt) in rows.iter().zip(&prompts) {
            match policy.check_prompt(prompt, config.max_new_tokens as usize) {
                Ok(()) => {}
                Err(ModelError::Input(message)) => return Err(row.fault(&message)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            config,
            rows,
            prompts,
            verifier: Verifier::open(&config.verify, context, io)?,
            seed: seed::derive(context.seed, "evaluation"),
            model: model_digest(io, "model")?,
        })
    }

    /// Tokens of the longest prompt and answer together, and answers decoded at the same time.
    pub(super) fn demand(&self) -> (usize, usize) {
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.token_ids.len());
        let tokens = prompt_tokens.max().unwrap_or(0) + self.config.max_new_tokens as usize;
        let answers = self.rows.len() * self.config.samples as usize;
        (tokens, answers.min(self.config.max_concurrent as usize))
    }

    /// Loads the judge that is a model, beside the one that is trained.
    ///
    /// # Errors
    /// When it cannot be loaded or does not fit.
    pub(super) fn open_judge(
        &mut self,
        plan: &MemoryPlan,
        context: &StageContext<'_>,
        io: &dyn StageIo,
    ) -> Result<(), OperatorError> {
        if let Some(options) = self.config.verify.local_judge() {
            let (held, available) = (plan.peak(), plan.available);
            let judge = LocalJudge::beside_training(options, held, available, context, io)?;
            self.verifier.set_model(Box::new(judge));
        }
        Ok(())
    }

    /// Tells what judges cost.
    pub(super) fn tell_account(&self, io: &dyn StageIo) {
        self.verifier.tell_account(io);
    }

    /// Whether the model is evaluated after this step.
    pub(super) fn is_due(&self, step: u64, steps: u64) -> bool {
        step == steps || step.is_multiple_of(u64::from(self.config.every))
    }

    /// Samples and judges answers of the weights in use, and writes them down. Gives the accuracy and the figures of the step.
    ///
    /// # Errors
    /// When the model or the verifier fails, or no answer can be judged.
    pub(super) fn evaluate(
        &self,
        policy: &mut dyn Policy,
        encoder: &PromptEncoder,
        step: u64,
        io: &mut dyn StageIo,
    ) -> Result<(Accuracy, [f64; FIGURES.len()]), OperatorError> {
        let sampled = self.sample(policy, encoder, io)?;
        let verdicts = self.judge(&sampled, io)?;
        io.write("rollouts", self.batch(step, &sampled, &verdicts)?)?;
        let count = |outcome: Outcome| {
            let found = verdicts
                .iter()
                .filter(|judged| judged.verdict.outcome == outcome);
            u32::try_from(found.count()).unwrap_or(u32::MAX)
        };
        let unusable = count(Outcome::TimedOut) + count(Outcome::Failed);
        let accuracy = Accuracy {
            correct: count(Outcome::Correct),
            judged: u32::try_from(sampled.len()).unwrap_or(u32::MAX) - unusable,
        };
        if accuracy.judged == 0 {
            return Err(OperatorError::Data(format!(
                "step {step}: none of the {unusable} answers of the evaluation could be judged"
            )));
        }
        let (low, high) = wilson_interval(accuracy.correct, accuracy.judged);
        let answers = sampled.len() as f64;
        let truncated = sampled
            .iter()
            .filter(|answer| !answer.is_complete())
            .count();
        let tokens: usize = sampled
            .iter()
            .map(|answer| answer.completion.token_ids.len())
            .sum();
        let figures = [
            accuracy.share(),
            low,
            high,
            f64::from(unusable) / answers,
            truncated as f64 / answers,
            tokens as f64 / answers,
        ];
        Ok((accuracy, figures))
    }

    fn sample(
        &self,
        policy: &mut dyn Policy,
        encoder: &PromptEncoder,
        io: &dyn StageIo,
    ) -> Result<Vec<Sampled>, OperatorError> {
        let plan = SamplingPlan {
            temperature: self.config.temperature,
            keys: self.config.keys(),
            max_new_tokens: self.config.max_new_tokens,
            max_concurrent: self.config.max_concurrent,
            seed: self.seed,
            exact_ranges: false,
        };
        let asked: Vec<Asked<'_>> = self
            .rows
            .iter()
            .zip(&self.prompts)
            .map(|(row, prompt)| Asked {
                row,
                prompt: Arc::clone(prompt),
            })
            .collect();
        let samples = 0..self.config.samples;
        let sampled = sample_prompts(
            policy,
            encoder.processor(),
            &asked,
            std::slice::from_ref(&samples),
            &plan,
            io,
            &mut |_| {},
        )?;
        policy.release_generation();
        Ok(sampled.into_iter().flatten().collect())
    }

    fn judge(&self, sampled: &[Sampled], io: &dyn StageIo) -> Result<Vec<Judged>, OperatorError> {
        let asked: Vec<String> = if self.config.verify.reads_question() {
            self.rows.iter().map(PromptRow::question).collect()
        } else {
            vec![String::new(); self.rows.len()]
        };
        let questions: Vec<Question<'_>> = sampled
            .iter()
            .map(|answer| Question {
                prompt_id: &self.rows[answer.prompt].prompt_id,
                question: &asked[answer.prompt],
                gold: self.rows[answer.prompt].answer.as_deref(),
                text: &answer.text,
            })
            .collect();
        self.verifier.judge(&questions, io)
    }

    fn batch(
        &self,
        step: u64,
        sampled: &[Sampled],
        verdicts: &[Judged],
    ) -> Result<RecordBatch, OperatorError> {
        let mut table = RolloutRows::new(Extras::default());
        for answer in sampled {
            table.push(RolloutRow {
                prompt_id: &self.rows[answer.prompt].prompt_id,
                sample: answer.sample,
                text: &answer.text,
                completion: &answer.completion,
                prompt_tokens: self.prompts[answer.prompt].token_ids.len(),
                model: &self.model,
                seed: self.seed,
            })?;
        }
        let step = i64::try_from(step).expect("steps are 32-bit numbers");
        let outcomes = verdicts
            .iter()
            .map(|judged| judged.verdict.outcome.as_str());
        let extracted: LargeStringArray = verdicts
            .iter()
            .map(|judged| judged.verdict.extracted.as_deref())
            .collect();
        let mut columns = table.columns();
        columns.extend([
            Arc::new(Int64Array::from_value(step, sampled.len())) as ArrayRef,
            Arc::new(LargeStringArray::from_iter_values(outcomes)),
            Arc::new(extracted),
        ]);
        Ok(RecordBatch::try_new(rollouts_schema(), columns)?)
    }
}
