//! verify: judges every rollout against the gold answer of its prompt.
//!
//! A gold answer that is missing or cannot be parsed gives `failed`, which is masked and counted, never rewarded. Verdicts are kept
//! apart from the rollouts: one that was given is not asked for again as long as the rollout, its prompt and the verifier are the
//! same. A rollout that a judge's server failed is no `failed` verdict but a failed row, which is asked for again.

mod prompts;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array, LargeStringArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use engine_core::operator::Family;
use engine_core::{
    External, FailedRow, Fault, InputPort, InputType, Joined, MapOperator, MapOutput, MapPart,
    MapTask, OperatorConfig, OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes,
    Ports, StageContext, StageEvent, StageView,
};
use operators_model::LocalJudge;
use operators_verifier::{Judged, Question, Verifier, VerifyConfig};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use schemas::tables::TEXT;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use prompts::{Prompt, Prompts};

/// The input port of a model that judges.
const JUDGE: &str = "judge";
/// Rollouts in a part, on average, for programs and judges: what is lost when a run is broken off.
const SLOW_PART: usize = 256;

/// How rollouts are compared with the gold answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Verify(pub VerifyConfig);

impl OperatorKind for Verify {
    const KIND: &'static str = "verify";
    const VERSION: u32 = 3;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "judges every rollout against the gold answer of its prompt";
}

impl OperatorConfig for Verify {
    fn ports(&self) -> Ports {
        let mut columns = vec!["prompt_id", "answer"];
        if self.0.reads_question() {
            columns.push("messages");
        }
        let mut inputs = vec![
            InputPort::new(
                "rollouts",
                InputType::columns(TableName::Rollouts, &["prompt_id", "sample", "text"]),
            ),
            InputPort::new("prompts", InputType::columns(TableName::Prompts, &columns)),
        ];
        if self.0.needs_model() {
            inputs.push(InputPort::new(JUDGE, InputType::Model));
        }
        Ports::new(inputs, &["verdicts"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.0.faults(&[]);
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(PortTypes::from([(
            "verdicts".to_owned(),
            vec![PortType::Table {
                table: TableName::Verdicts,
                schema: schema(&self.0),
            }],
        )]))
    }

    fn placement(&self) -> Option<Placement> {
        self.0.needs_model().then_some(Placement::Worker)
    }

    fn externals(&self) -> Vec<External> {
        self.0.externals(&[])
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        self.0.inspect(root, &[])
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        content(canonical)
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

/// What of a configuration counts for verdicts.
fn content(canonical: &Value) -> Value {
    let mut config = canonical.clone();
    VerifyConfig::retain_content(&mut config);
    config
}

impl MapOperator for Verify {
    fn rows_port(&self) -> Option<&str> {
        Some("rollouts")
    }

    fn joined(&self) -> Vec<Joined> {
        vec![Joined {
            port: "prompts",
            column: "prompt_id",
        }]
    }

    fn part_size(&self) -> PartSize {
        let default = PartSize::default();
        if self.0.is_rule() {
            return default;
        }
        PartSize {
            rows: SLOW_PART,
            ..default
        }
    }

    fn part_config(&self, canonical: &Value) -> Value {
        content(canonical)
    }

    fn start<'a>(
        &'a self,
        context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        let mut verifier = Verifier::open(&self.0, context, view)?;
        if let Some(options) = self.0.local_judge() {
            let judge = LocalJudge::open(options, JUDGE, context, view)?;
            verifier = verifier.with_model(Box::new(judge));
        }
        Ok(Box::new(Judge {
            config: &self.0,
            verifier,
            prompts: Prompts::read(&self.0, view)?,
            view,
            judged: AtomicU64::new(0),
            masked: AtomicU64::new(0),
        }))
    }
}

/// The columns of the verdicts, with the reason. Several verifiers or votes together also say how far they agree.
fn schema(config: &VerifyConfig) -> SchemaRef {
    let plain = TableName::Verdicts.schema();
    let mut fields: Vec<FieldRef> = plain.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("reason", TEXT, true)));
    if config.has_agreement() {
        // Share of the verifiers (or votes) that say what is said together, of those that were asked and can judge.
        fields.push(Arc::new(Field::new("agreement", DataType::Float64, true)));
    }
    Arc::new(Schema::new_with_metadata(fields, plain.metadata().clone()))
}

/// The verifier and what it compares with, and how many rollouts it judged.
struct Judge<'a> {
    config: &'a VerifyConfig,
    verifier: Verifier,
    prompts: Prompts,
    view: &'a dyn StageView,
    judged: AtomicU64,
    masked: AtomicU64,
}

impl MapTask for Judge<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let ids = text_column(part.rows, "prompt_id")?;
        let texts = text_column(part.rows, "text")?;
        let prompts: Vec<Option<Prompt<'_>>> = (0..part.rows.num_rows())
            .into_par_iter()
            .map(|row| self.prompts.of(ids.value(row)))
            .collect();
        let known = prompts.iter().enumerate();
        let questions: Vec<Question<'_>> = known
            .filter_map(|(row, prompt)| {
                let prompt = (*prompt)?;
                Some(Question {
                    prompt_id: ids.value(row),
                    question: prompt.question,
                    gold: prompt.gold,
                    text: texts.value(row),
                })
            })
            .collect();
        let judged = self.verifier.judge(&questions, self.view)?;
        let mut failed = Vec::new();
        let mut verdicts = Vec::with_capacity(judged.len());
        let mut judged = judged.into_iter();
        for (row, prompt) in prompts.iter().enumerate() {
            let error = match prompt.and_then(|_| judged.next()) {
                None => format!(
                    "a rollout has the prompt id `{}`, which is not in `prompts`; connect the prompts that the rollouts were made from",
                    ids.value(row)
                ),
                Some(judged) if judged.is_open => format!(
                    "{}; run again to ask for such rollouts alone, or set them aside with `quarantine` and ask later with `metis-flow replay`",
                    judged.reason
                ),
                Some(judged) => {
                    verdicts.push(judged);
                    continue;
                }
            };
            failed.push(FailedRow { row, error });
        }
        let failed_rows: HashSet<usize> = failed.iter().map(|failed| failed.row).collect();
        let has_verdict: BooleanArray = (0..prompts.len())
            .map(|row| Some(!failed_rows.contains(&row)))
            .collect();
        let rollouts = if has_verdict.true_count() == has_verdict.len() {
            part.rows.clone()
        } else {
            filter_record_batch(part.rows, &has_verdict)?
        };
        let output = self.table(&rollouts, &verdicts)?;
        Ok(MapOutput {
            slices: vec![[("verdicts".to_owned(), output)].into()],
            failed,
            tokens: 0,
        })
    }
}

impl Judge<'_> {
    /// The verdicts of some rollouts.
    fn table(
        &self,
        rollouts: &RecordBatch,
        judged: &[Judged],
    ) -> Result<RecordBatch, OperatorError> {
        let masked = judged
            .iter()
            .filter(|judged| !judged.verdict.outcome.is_usable())
            .count();
        self.judged
            .fetch_add(judged.len() as u64, Ordering::Relaxed);
        self.masked.fetch_add(masked as u64, Ordering::Relaxed);
        let verdicts = || judged.iter().map(|judged| &judged.verdict);
        let sample = rollouts
            .column_by_name("sample")
            .ok_or_else(|| missing("sample"))?;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(text_column(rollouts, "prompt_id")?.clone()),
            Arc::clone(sample),
            Arc::new(LargeStringArray::from_iter_values(
                verdicts().map(|verdict| verdict.outcome.as_str()),
            )),
            Arc::new(LargeStringArray::from_iter(
                verdicts().map(|verdict| verdict.extracted.as_deref()),
            )),
            Arc::new(BooleanArray::from_iter(
                verdicts().map(|verdict| Some(verdict.format_ok)),
            )),
            Arc::new(LargeStringArray::from_iter_values(
                verdicts().map(|_| self.config.name()),
            )),
            Arc::new(LargeStringArray::from_iter_values(
                judged.iter().map(|judged| &judged.reason),
            )),
        ];
        if self.config.has_agreement() {
            let agreements = judged.iter().map(|judged| judged.agreement);
            columns.push(Arc::new(Float64Array::from_iter(agreements)));
        }
        Ok(RecordBatch::try_new(schema(self.config), columns)?)
    }
}

impl Drop for Judge<'_> {
    /// All parts are judged: says what no single part can know.
    fn drop(&mut self) {
        self.verifier.tell_account(self.view);
        let (judged, masked) = (
            self.judged.load(Ordering::Relaxed),
            self.masked.load(Ordering::Relaxed),
        );
        if masked > 0 {
            self.view.event(StageEvent::Warning(format!(
                "{masked} of {judged} rollouts have no verdict (timed-out or failed) and are masked; the column `reason` says why"
            )));
        }
    }
}

fn text_column<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a LargeStringArray, OperatorError> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_string_opt::<i64>())
        .ok_or_else(|| missing(name))
}

fn missing(name: &str) -> OperatorError {
    OperatorError::Internal(format!(
        "a planned input has no column `{name}` of the declared type"
    ))
}

#[cfg(test)]
#[path = "verify/tests.rs"]
mod tests;
