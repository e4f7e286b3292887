//! verify: judges every rollout against the gold answer of its prompt.
//!
//! A gold answer that is missing or cannot be parsed gives `failed`, which is masked and counted, never rewarded.

mod gold;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array, LargeStringArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use engine_core::operator::Family;
use engine_core::{
    FailedRow, Fault, InputPort, InputType, Joined, MapOperator, MapOutput, MapPart, MapTask,
    OperatorConfig, OperatorError, OperatorKind, Placement, PortType, PortTypes, Ports,
    StageContext, StageEvent, StageView,
};
use operators_verdict::{Outcome, Prepared, Verdict, VerifyConfig};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use gold::{Gold, GoldAnswers};

/// How rollouts are compared with the gold answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Verify(pub VerifyConfig);

impl OperatorKind for Verify {
    const KIND: &'static str = "verify";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "judges every rollout against the gold answer of its prompt";
}

impl OperatorConfig for Verify {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![
                InputPort::new(
                    "rollouts",
                    InputType::columns(TableName::Rollouts, &["prompt_id", "sample", "text"]),
                ),
                InputPort::new(
                    "prompts",
                    InputType::columns(TableName::Prompts, &["prompt_id", "answer"]),
                ),
            ],
            &["verdicts"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "verdicts".to_owned(),
            vec![PortType::Table {
                table: TableName::Verdicts,
                schema: schema(&self.0),
            }],
        )]))
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
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

    fn start<'a>(
        &'a self,
        _context: &'a StageContext<'a>,
        view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        Ok(Box::new(Judge {
            config: &self.0,
            gold: GoldAnswers::read(&self.0, view)?,
            view,
            judged: AtomicU64::new(0),
            masked: AtomicU64::new(0),
        }))
    }
}

/// The columns of the verdicts. Several verifiers together also say how far they agree.
fn schema(config: &VerifyConfig) -> SchemaRef {
    let plain = TableName::Verdicts.schema();
    if !config.is_combined() {
        return plain;
    }
    let mut fields: Vec<FieldRef> = plain.fields().iter().cloned().collect();
    // Share of the verifiers that say what is said together, of those that can judge.
    fields.push(Arc::new(Field::new("agreement", DataType::Float64, true)));
    Arc::new(Schema::new_with_metadata(fields, plain.metadata().clone()))
}

/// Rollouts that one thread judges in a row: those of one prompt meet a gold answer that has been read once.
const RUN: usize = 64;

/// A verdict, and how far several verifiers agree on it.
type Judged = (Verdict, Option<f64>);

/// The gold answers, and how many rollouts met one.
struct Judge<'a> {
    config: &'a VerifyConfig,
    gold: GoldAnswers,
    view: &'a dyn StageView,
    judged: AtomicU64,
    masked: AtomicU64,
}

impl MapTask for Judge<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let ids = text_column(part.rows, "prompt_id")?;
        let texts = text_column(part.rows, "text")?;
        let rows: Vec<usize> = (0..part.rows.num_rows()).collect();
        let verdicts: Vec<Option<Judged>> = rows
            .par_chunks(RUN)
            .flat_map_iter(|rows| self.judge(rows, ids, texts))
            .collect();
        let failed = verdicts
            .iter()
            .enumerate()
            .filter(|(_, verdict)| verdict.is_none())
            .map(|(row, _)| FailedRow {
                row,
                error: format!(
                    "a rollout has the prompt id `{}`, which is not in `prompts`; connect the prompts that the rollouts were made from",
                    ids.value(row)
                ),
            })
            .collect();
        let output = self.table(part.rows, &verdicts)?;
        Ok(MapOutput {
            slices: vec![[("verdicts".to_owned(), output)].into()],
            failed,
            tokens: 0,
        })
    }
}

impl Judge<'_> {
    /// Judges rows that follow each other.
    fn judge(
        &self,
        rows: &[usize],
        ids: &LargeStringArray,
        texts: &LargeStringArray,
    ) -> Vec<Option<Judged>> {
        let mut last: Option<(&str, Option<Prepared>)> = None;
        let mut verdicts = Vec::with_capacity(rows.len());
        for &row in rows {
            let Some(gold) = self.gold.of(ids.value(row)) else {
                verdicts.push(None);
                continue;
            };
            let text = texts.value(row);
            if let Gold::Usable(gold) = gold
                && last.as_ref().is_none_or(|(known, _)| *known != gold)
            {
                last = Some((gold, self.config.prepare(gold).ok()));
            }
            let ready = match (gold, &last) {
                (Gold::Usable(_), Some((_, Some(ready)))) => Some(ready),
                _ => None,
            };
            verdicts.push(Some(match ready {
                Some(ready) => self.config.judge_together(ready, text),
                None => {
                    let verdict = Verdict {
                        outcome: Outcome::Failed,
                        extracted: None,
                        format_ok: self.config.format().holds(text),
                    };
                    (verdict, None)
                }
            }));
        }
        verdicts
    }

    /// The verdicts of the rollouts that have one.
    fn table(
        &self,
        rollouts: &RecordBatch,
        verdicts: &[Option<Judged>],
    ) -> Result<RecordBatch, OperatorError> {
        let has_verdict: BooleanArray = verdicts
            .iter()
            .map(|verdict| Some(verdict.is_some()))
            .collect();
        let rollouts = if has_verdict.true_count() == verdicts.len() {
            rollouts.clone()
        } else {
            filter_record_batch(rollouts, &has_verdict)?
        };
        let agreements: Vec<Option<f64>> =
            verdicts.iter().flatten().map(|judged| judged.1).collect();
        let verdicts: Vec<&Verdict> = verdicts.iter().flatten().map(|judged| &judged.0).collect();
        let masked = verdicts
            .iter()
            .filter(|verdict| !verdict.outcome.is_usable())
            .count();
        self.judged
            .fetch_add(verdicts.len() as u64, Ordering::Relaxed);
        self.masked.fetch_add(masked as u64, Ordering::Relaxed);
        let sample = rollouts
            .column_by_name("sample")
            .ok_or_else(|| missing("sample"))?;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(text_column(&rollouts, "prompt_id")?.clone()),
            Arc::clone(sample),
            Arc::new(LargeStringArray::from_iter_values(
                verdicts.iter().map(|verdict| verdict.outcome.as_str()),
            )),
            Arc::new(LargeStringArray::from_iter(
                verdicts.iter().map(|verdict| verdict.extracted.as_deref()),
            )),
            Arc::new(BooleanArray::from_iter(
                verdicts.iter().map(|verdict| Some(verdict.format_ok)),
            )),
            Arc::new(LargeStringArray::from_iter_values(
                verdicts.iter().map(|_| self.config.name()),
            )),
        ];
        if self.config.is_combined() {
            columns.push(Arc::new(Float64Array::from(agreements)));
        }
        Ok(RecordBatch::try_new(schema(self.config), columns)?)
    }
}

impl Drop for Judge<'_> {
    /// All parts are judged: says what no single part can know.
    fn drop(&mut self) {
        let (judged, masked) = (
            self.judged.load(Ordering::Relaxed),
            self.masked.load(Ordering::Relaxed),
        );
        if masked > 0 {
            self.view.event(StageEvent::Warning(format!(
                "{masked} of {judged} rollouts have no verdict (timed-out or failed) and are masked"
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
mod tests {
    use super::*;
    use crate::testing::{TestIo, prompts, rollouts, text_values};

    fn math() -> Verify {
        serde_json::from_str(r#"{"math": {}}"#).unwrap()
    }

    #[test]
    fn rollouts_meet_the_gold_answer_of_their_prompt() {
        let mut io = TestIo::new();
        io.input(
            "prompts",
            &[prompts(&[
                ("a", Some("7"), None),
                ("b", Some("1/2"), None),
                ("c", None, None),
            ])],
        );
        let boxed = |answer: &str| format!("<think>t</think><answer>\\boxed{{{answer}}}</answer>");
        let texts = [
            boxed("7"),
            boxed("0.5"),
            boxed("8"),
            "7".to_owned(),
            boxed("7"),
        ];
        io.input(
            "rollouts",
            &[rollouts(&[
                ("a", 0, &texts[0]),
                ("b", 0, &texts[1]),
                ("a", 1, &texts[2]),
                ("a", 2, &texts[3]),
                ("c", 0, &texts[4]),
            ])],
        );
        io.run(&math(), 0).unwrap();
        let out = io.output("verdicts");
        assert_eq!(
            text_values(&out, "verdict"),
            ["correct", "correct", "wrong", "unparsed", "failed"]
        );
        assert_eq!(text_values(&out, "extracted"), ["7", "0.5", "8", "", ""]);
        assert_eq!(
            out.column_by_name("format_ok").unwrap().as_boolean(),
            &BooleanArray::from(vec![true, true, true, false, true])
        );
        assert_eq!(io.warnings().len(), 2);
        assert!(io.warnings()[0].contains("`c`"), "{:?}", io.warnings());
    }

    #[test]
    fn several_verifiers_say_how_far_they_agree() {
        let mut io = TestIo::new();
        io.input(
            "prompts",
            &[prompts(&[("a", Some("1/2"), None), ("b", None, None)])],
        );
        io.input(
            "rollouts",
            &[rollouts(&[
                ("a", 0, "<answer>1/2</answer>"),
                ("a", 1, "<answer>0.5</answer>"),
                ("a", 2, "<answer>3</answer>"),
                ("b", 0, "<answer>3</answer>"),
            ])],
        );
        let any: Verify =
            serde_json::from_str(r#"{"any": {"of": [{"math": {}}, {"exact": {}}]}}"#).unwrap();
        io.run(&any, 0).unwrap();
        let out = io.output("verdicts");
        assert_eq!(
            text_values(&out, "verdict"),
            ["correct", "correct", "wrong", "failed"]
        );
        let agreement = out.column_by_name("agreement").unwrap();
        assert_eq!(
            agreement.as_primitive::<arrow::datatypes::Float64Type>(),
            &Float64Array::from(vec![Some(1.0), Some(0.5), Some(1.0), None])
        );
    }

    #[test]
    fn a_verifier_of_form_needs_no_gold_answer() {
        let mut io = TestIo::new();
        io.input("prompts", &[prompts(&[("a", None, None)])]);
        io.input(
            "rollouts",
            &[rollouts(&[
                ("a", 0, "<plan>x</plan><answer>y</answer>"),
                ("a", 1, "<answer>y</answer>"),
            ])],
        );
        let format: Verify =
            serde_json::from_str(r#"{"format": {"tags": ["plan", "answer"]}}"#).unwrap();
        io.run(&format, 0).unwrap();
        assert_eq!(
            text_values(&io.output("verdicts"), "verdict"),
            ["correct", "wrong"]
        );
        assert!(io.warnings().is_empty(), "{:?}", io.warnings());
    }

    #[test]
    fn a_rollout_without_its_prompt_is_named() {
        let mut io = TestIo::new();
        io.input("prompts", &[prompts(&[("a", Some("7"), None)])]);
        io.input("rollouts", &[rollouts(&[("lost", 0, "7")])]);
        assert!(
            io.run(&math(), 0)
                .unwrap_err()
                .to_string()
                .contains("`lost`")
        );
    }

    #[test]
    fn no_rollouts_give_an_empty_table() {
        let mut io = TestIo::new();
        io.input("prompts", &[prompts(&[])]);
        io.input("rollouts", &[rollouts(&[])]);
        io.run(&math(), 0).unwrap();
        assert_eq!(io.output("verdicts").num_rows(), 0);
    }
}
