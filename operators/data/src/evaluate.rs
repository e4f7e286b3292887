//! evaluate: accuracy by category and over all, with 95 % Wilson intervals.
//!
//! Every usable rollout counts as one independent trial; with several samples of one prompt the interval is too narrow
//! for a statement about other prompts, so test sets are best evaluated with one sample each.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, LargeStringArray, RecordBatch, UInt32Array};
use arrow::datatypes::Int64Type;
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageEvent, StageIo,
};
use engine_query::{Order, QuerySession};
pub use operators_verdict::wilson_interval;
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::judged::{is_correct, is_judged};

/// The category of the row over all prompts.
const ALL: &str = "all";

/// Accuracy by category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {}

impl OperatorKind for Evaluate {
    const KIND: &'static str = "evaluate";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "accuracy by category with 95 % intervals";
}

impl OperatorConfig for Evaluate {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![
                InputPort::new(
                    "verdicts",
                    InputType::columns(TableName::Verdicts, &["prompt_id", "verdict"]),
                ),
                InputPort::new(
                    "prompts",
                    InputType::columns(TableName::Prompts, &["prompt_id", "category"]),
                ),
            ],
            &["evaluations"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "evaluations".to_owned(),
            vec![PortType::table(TableName::Evaluations)],
        )]))
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Any, io.scratch())?;
        session.register_port(io, "verdicts")?;
        session.register_port(io, "prompts")?;
        let frame = session.sql(&format!(
            "SELECT p.category AS category, COUNT(*) AS samples, SUM(CASE WHEN {correct} THEN 1 ELSE 0 END) AS correct \
             FROM verdicts v JOIN prompts p ON v.prompt_id = p.prompt_id WHERE {judged} \
             GROUP BY p.category ORDER BY category",
            correct = is_correct("v"),
            judged = is_judged("v"),
        ))?;
        let counts = counts(&session.collect(frame)?)?;
        warn_of_left_out(&session, io)?;
        if counts.last().is_none_or(|(_, samples, _)| *samples == 0) {
            io.event(StageEvent::Warning(
                "no verdict of these prompts is a judgement; the accuracy says nothing".to_owned(),
            ));
        }
        io.write("evaluations", evaluations(&counts)?)
    }
}

/// Says which verdicts no accuracy counts.
fn warn_of_left_out(session: &QuerySession, io: &dyn StageIo) -> Result<(), OperatorError> {
    let masked = format!("NOT ({})", is_judged("v"));
    let strange = "NOT EXISTS (SELECT 1 FROM prompts p WHERE p.prompt_id = v.prompt_id)";
    for (condition, reason) in [
        (masked.as_str(), "are no judgement (timed-out or failed)"),
        (strange, "belong to none of these prompts"),
    ] {
        let frame = session.sql(&format!(
            "SELECT COUNT(*) AS n FROM verdicts v WHERE {condition}"
        ))?;
        let counted = session.collect(frame)?;
        let count: i64 = counted
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().iter())
            .sum();
        if count > 0 {
            io.event(StageEvent::Warning(format!(
                "{count} verdicts {reason} and are left out"
            )));
        }
    }
    Ok(())
}

/// Category, samples and correct ones; rows without a category count in the last row, which is over all.
fn counts(batches: &[RecordBatch]) -> Result<Vec<(String, u32, u32)>, OperatorError> {
    let mut rows = Vec::new();
    let mut total = (0_u32, 0_u32);
    for batch in batches {
        let categories = batch.column(0).as_string::<i64>();
        let samples = batch.column(1).as_primitive::<Int64Type>();
        let correct = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let count = |value: i64| {
                u32::try_from(value).map_err(|_| {
                    OperatorError::Data(format!(
                        "{value} rollouts in one category are more than can be counted"
                    ))
                })
            };
            let (samples, correct) = (count(samples.value(row))?, count(correct.value(row))?);
            total = (
                total.0.saturating_add(samples),
                total.1.saturating_add(correct),
            );
            let category =
                arrow::array::Array::is_valid(categories, row).then(|| categories.value(row));
            if category == Some(ALL) {
                return Err(OperatorError::Data(
                    "a prompt has the category `all`, which stands for all prompts; rename it"
                        .to_owned(),
                ));
            }
            if let Some(category) = category {
                rows.push((category.to_owned(), samples, correct));
            }
        }
    }
    rows.push((ALL.to_owned(), total.0, total.1));
    Ok(rows)
}

fn evaluations(counts: &[(String, u32, u32)]) -> Result<RecordBatch, OperatorError> {
    let intervals: Vec<(f64, f64)> = counts
        .iter()
        .map(|(_, samples, correct)| wilson_interval(*correct, *samples))
        .collect();
    let accuracy = |samples: u32, correct: u32| {
        if samples == 0 {
            0.0
        } else {
            f64::from(correct) / f64::from(samples)
        }
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(LargeStringArray::from_iter_values(
            counts.iter().map(|(category, _, _)| category),
        )),
        Arc::new(UInt32Array::from_iter_values(
            counts.iter().map(|(_, samples, _)| *samples),
        )),
        Arc::new(UInt32Array::from_iter_values(
            counts.iter().map(|(_, _, correct)| *correct),
        )),
        Arc::new(Float64Array::from_iter_values(
            counts
                .iter()
                .map(|(_, samples, correct)| accuracy(*samples, *correct)),
        )),
        Arc::new(Float64Array::from_iter_values(
            intervals.iter().map(|(low, _)| *low),
        )),
        Arc::new(Float64Array::from_iter_values(
            intervals.iter().map(|(_, high)| *high),
        )),
    ];
    Ok(RecordBatch::try_new(
        TableName::Evaluations.schema(),
        columns,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestIo, floats, prompts, text_values, verdicts};

    #[test]
    fn categories_are_counted_apart_and_together() {
        let mut io = TestIo::new();
        let table = prompts(&[
            ("a", None, Some("sum")),
            ("b", None, Some("read")),
            ("c", None, None),
        ]);
        io.input("prompts", &[table.slice(0, 2), table.slice(2, 1)]);
        io.input(
            "verdicts",
            &[verdicts(&[
                ("a", 0, "correct", true),
                ("a", 1, "wrong", true),
                ("b", 0, "unparsed", true),
                ("b", 1, "timed-out", true),
                ("c", 0, "correct", true),
                ("elsewhere", 0, "correct", true),
            ])],
        );
        io.run(&Evaluate {}, 0).unwrap();
        let out = io.output("evaluations");
        assert_eq!(text_values(&out, "category"), ["read", "sum", "all"]);
        assert_eq!(
            out.column_by_name("samples")
                .unwrap()
                .as_primitive::<arrow::datatypes::UInt32Type>()
                .values(),
            &[1, 2, 4]
        );
        assert_eq!(floats(&out, "accuracy"), [0.0, 0.5, 0.5]);
        assert_eq!(
            io.warnings(),
            [
                "1 verdicts are no judgement (timed-out or failed) and are left out",
                "1 verdicts belong to none of these prompts and are left out"
            ]
        );
    }

    #[test]
    fn without_verdicts_there_is_one_row_and_a_warning() {
        let mut io = TestIo::new();
        io.input("prompts", &[prompts(&[])]);
        io.input("verdicts", &[verdicts(&[])]);
        io.run(&Evaluate {}, 0).unwrap();
        assert_eq!(text_values(&io.output("evaluations"), "category"), ["all"]);
        assert_eq!(io.warnings().len(), 1);
    }
}
