//! Rewards of judged answers, by the same definition as the stage `score`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, LargeStringArray, RecordBatch, UInt32Array, UInt64Array,
};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use engine_core::{Fault, OperatorError, PortType, PortTypes, StageView};
use engine_query::{Expressions, Values, side_by_side};
use operators_verdict::{Facts, Reward, ScoreConfig};
use schemas::TableName;

use super::judging::Judgement;
use crate::rollout_rows::{Extras, RolloutRow, RolloutRows};

/// An answer that gets a reward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// Index of the prompt among the rows of the stage.
    pub(super) row: usize,
    pub(super) rollout: RolloutRow<'a>,
    pub(super) judgement: &'a Judgement,
}

/// Turns judgements into rewards.
#[derive(Debug)]
pub(super) struct Rewarder<'a> {
    score: &'a ScoreConfig,
    verifier: &'static str,
    sql: Option<Sql>,
}

/// The parts of a reward that are SQL expressions, and the table of prompts that they may look at.
#[derive(Debug)]
struct Sql {
    expressions: Expressions,
    prompts: RecordBatch,
}

/// The columns that an expression sees.
fn visible(prompts: &Schema) -> SchemaRef {
    let rollouts = TableName::Rollouts.schema();
    let tokens = Schema::new(vec![Field::new("tokens", DataType::Int64, false)]);
    side_by_side(&[&TableName::Verdicts.schema(), &rollouts, &tokens, prompts])
}

/// Every fault of a score's names, numbers and expressions.
pub(super) fn faults(score: &ScoreConfig, inputs: &PortTypes) -> Vec<Fault> {
    let fault = |path: Vec<String>, message: String, help: Option<String>| Fault {
        path: std::iter::once("score".to_owned()).chain(path).collect(),
        message,
        help,
        code: "wrong-value",
    };
    let mut faults: Vec<Fault> = score
        .faults()
        .iter()
        .map(|error| {
            fault(
                error.path(),
                error.to_string(),
                Some(error.help().to_owned()),
            )
        })
        .collect();
    let prompts = inputs.get("prompts").and_then(|types| types.first());
    if let Some(PortType::Table { schema, .. }) = prompts
        && let Err(errors) = Expressions::compile(&score.sql_parts(), &visible(schema))
    {
        faults.extend(errors.into_iter().map(|error| {
            let path = ["sql", &error.name, "expression"].map(str::to_owned);
            fault(path.into(), error.message, error.help)
        }));
    }
    faults
}

impl<'a> Rewarder<'a> {
    /// Prepares the parts of a score. `verifier` is the name of the one that judges.
    ///
    /// # Errors
    /// When the prompts cannot be read or an expression does not fit them.
    pub(super) fn open(
        score: &'a ScoreConfig,
        verifier: &'static str,
        view: &dyn StageView,
    ) -> Result<Self, OperatorError> {
        let parts = score.sql_parts();
        let sql = if parts.is_empty() {
            None
        } else {
            let batches: Vec<RecordBatch> = view.read("prompts")?.collect::<Result<_, _>>()?;
            let schema = batches
                .first()
                .map_or_else(|| TableName::Prompts.schema(), RecordBatch::schema);
            let prompts = concat_batches(&schema, &batches)?;
            let expressions =
                Expressions::compile(&parts, &visible(&schema)).map_err(|errors| {
                    let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    OperatorError::Data(format!("score: {}", messages.join("; ")))
                })?;
            Some(Sql {
                expressions,
                prompts,
            })
        };
        Ok(Self {
            score,
            verifier,
            sql,
        })
    }

    /// The rewards of answers, in their order.
    ///
    /// # Errors
    /// When an expression gives no number; the message names the answer.
    pub(super) fn rewards(
        &self,
        candidates: &[Candidate<'_>],
    ) -> Result<Vec<Option<Reward>>, OperatorError> {
        let values = match &self.sql {
            Some(sql) => Some(sql.values(candidates, self.verifier)?),
            None => None,
        };
        let mut of_row = Vec::new();
        let reward = |(index, candidate): (usize, &Candidate<'_>)| {
            if let Some(values) = &values {
                values.row_into(index, &mut of_row);
            }
            let facts = Facts {
                verdict: &candidate.judgement.verdict,
                measured: candidate.judgement.measured,
                truncated: candidate.rollout.completion.finish_reason
                    == engine_core::policy::FinishReason::Length,
                sql: &of_row,
            };
            self.score.reward(&facts).map_err(|error| {
                let rollout = &candidate.rollout;
                OperatorError::Data(format!(
                    "prompt `{}`, sample {}: {error}; {}",
                    rollout.prompt_id,
                    rollout.sample,
                    error.help()
                ))
            })
        };
        candidates.iter().enumerate().map(reward).collect()
    }
}

impl Sql {
    fn values(
        &self,
        candidates: &[Candidate<'_>],
        verifier: &'static str,
    ) -> Result<Values, OperatorError> {
        let prompts = self.prompts.schema();
        let visible = visible(&prompts);
        let mut rollouts = RolloutRows::new(Extras::default());
        for candidate in candidates {
            rollouts.push(candidate.rollout)?;
        }
        let rows = UInt64Array::from_iter_values(candidates.iter().map(|each| each.row as u64));
        let of_rollouts = TableName::Rollouts.schema();
        let rollouts = rollouts.columns();
        let verdicts = |name: &str| verdict_column(name, candidates, verifier);
        let columns: Vec<ArrayRef> = visible
            .fields()
            .iter()
            .map(|field| {
                let name = field.name();
                if let Some(column) = verdicts(name) {
                    return Ok(column);
                }
                if let Ok(index) = of_rollouts.index_of(name) {
                    return Ok(Arc::clone(&rollouts[index]));
                }
                if name == "tokens" {
                    let tokens = candidates.iter().map(|each| {
                        i64::try_from(each.judgement.measured.tokens).unwrap_or(i64::MAX)
                    });
                    return Ok(Arc::new(Int64Array::from_iter_values(tokens)) as ArrayRef);
                }
                let column = self.prompts.column(prompts.index_of(name)?);
                Ok(take(column, &rows, None)?)
            })
            .collect::<Result<_, OperatorError>>()?;
        let batch = RecordBatch::try_new(visible, columns)?;
        Ok(self.expressions.evaluate(&batch)?)
    }
}

/// A column of the verdicts.
fn verdict_column(
    name: &str,
    candidates: &[Candidate<'_>],
    verifier: &'static str,
) -> Option<ArrayRef> {
    let verdicts = candidates.iter().map(|each| &each.judgement.verdict);
    Some(match name {
        "prompt_id" => Arc::new(LargeStringArray::from_iter_values(
            candidates.iter().map(|each| each.rollout.prompt_id),
        )),
        "sample" => Arc::new(UInt32Array::from_iter_values(
            candidates.iter().map(|each| each.rollout.sample),
        )),
        "verdict" => Arc::new(LargeStringArray::from_iter_values(
            verdicts.map(|verdict| verdict.outcome.as_str()),
        )),
        "extracted" => Arc::new(
            verdicts
                .map(|verdict| verdict.extracted.as_deref())
                .collect::<LargeStringArray>(),
        ),
        "format_ok" => Arc::new(BooleanArray::from_iter(
            verdicts.map(|verdict| Some(verdict.format_ok)),
        )),
        "verifier" => Arc::new(LargeStringArray::from_iter_values(
            candidates.iter().map(|_| verifier),
        )),
        _ => return None,
    })
}
