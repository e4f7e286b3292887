//! verify: judges every rollout against the gold answer of its prompt.
//!
//! A gold answer that is missing or cannot be parsed gives `failed`, which is masked and counted, never rewarded.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, LargeStringArray, RecordBatch};
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, Progress, StageContext, StageEvent, StageIo,
};
use operators_verdict::{Outcome, Verdict, VerifyConfig};
use rayon::prelude::*;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

/// How rollouts are compared with the gold answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Verify(pub VerifyConfig);

impl OperatorKind for Verify {
    const KIND: &'static str = "verify";
    const VERSION: u32 = 1;
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
            vec![PortType::table(TableName::Verdicts)],
        )]))
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let gold = self.gold_answers(io)?;
        let mut done = 0;
        let mut masked = 0;
        for batch in io.read("rollouts")? {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let (judged, unusable) = self.judge(&batch, &gold)?;
            done += judged.num_rows() as u64;
            masked += unusable;
            io.write("verdicts", judged)?;
            io.event(StageEvent::Progress(Progress {
                done,
                unit: "rollouts".to_owned(),
                ..Progress::default()
            }));
        }
        if done == 0 {
            io.write(
                "verdicts",
                RecordBatch::new_empty(TableName::Verdicts.schema()),
            )?;
        }
        if masked > 0 {
            io.event(StageEvent::Warning(format!(
                "{masked} of {done} rollouts have no verdict (timed-out or failed) and are masked"
            )));
        }
        Ok(())
    }
}

impl Verify {
    /// Gold answers by prompt id; None where there is none or it cannot be parsed.
    fn gold_answers(
        &self,
        io: &dyn StageIo,
    ) -> Result<HashMap<String, Option<String>>, OperatorError> {
        let mut gold = HashMap::new();
        let mut unusable = 0_usize;
        let mut first = None;
        for batch in io.read("prompts")? {
            let batch = batch?;
            let ids = text_column(&batch, "prompt_id")?;
            let answers = text_column(&batch, "answer")?;
            for row in 0..batch.num_rows() {
                let id = ids.value(row);
                let answer = answers.is_valid(row).then(|| answers.value(row));
                let fault = match answer {
                    None => Some("it has none".to_owned()),
                    Some(answer) => self
                        .0
                        .check_gold(answer)
                        .err()
                        .map(|error| error.to_string()),
                };
                if let Some(fault) = &fault {
                    unusable += 1;
                    first.get_or_insert_with(|| format!("`{id}`: {fault}"));
                }
                gold.insert(
                    id.to_owned(),
                    answer.filter(|_| fault.is_none()).map(str::to_owned),
                );
            }
        }
        if let Some(first) = first {
            let message = format!(
                "{unusable} prompts have no usable gold answer, first {first}; their rollouts are `failed` and never rewarded"
            );
            io.event(StageEvent::Warning(message));
        }
        Ok(gold)
    }

    /// The verdicts of a batch of rollouts, and how many of them are no judgement.
    fn judge(
        &self,
        batch: &RecordBatch,
        gold: &HashMap<String, Option<String>>,
    ) -> Result<(RecordBatch, usize), OperatorError> {
        let ids = text_column(batch, "prompt_id")?;
        let texts = text_column(batch, "text")?;
        let format = self.0.format();
        let verdicts: Vec<Verdict> = (0..batch.num_rows())
            .into_par_iter()
            .map(|row| match gold.get(ids.value(row)) {
                Some(Some(gold)) => Ok(self.0.verdict(gold, texts.value(row))),
                Some(None) => Ok(Verdict { outcome: Outcome::Failed, extracted: None, format_ok: format.holds(texts.value(row)) }),
                None => Err(OperatorError::Data(format!(
                    "a rollout has the prompt id `{}`, which is not in `prompts`; connect the prompts that the rollouts were made from",
                    ids.value(row)
                ))),
            })
            .collect::<Result<_, _>>()?;
        let masked = verdicts
            .iter()
            .filter(|verdict| !verdict.outcome.is_usable())
            .count();
        let sample = batch
            .column_by_name("sample")
            .ok_or_else(|| missing("sample"))?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ids.clone()),
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
                verdicts.iter().map(|_| self.0.name()),
            )),
        ];
        Ok((
            RecordBatch::try_new(TableName::Verdicts.schema(), columns)?,
            masked,
        ))
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
