//! filter-by-pass-rate: splits prompts by how often their rollouts are right: always, sometimes, never.
//!
//! Decided on two integers, usable and correct samples, never on a rounded rate. Prompts without a usable sample, or with
//! fewer than `min-samples`, go to no port; `pass_rates` still has a row for every prompt with a usable sample.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageEvent, StageIo,
};
use engine_query::{Order, QuerySession};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::judged::{is_correct, is_judged};

/// How prompts are split by pass rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FilterByPassRate {
    /// Usable samples that a prompt must have to go to a port; 1 when left out.
    #[serde(default)]
    pub min_samples: Option<u32>,
}

/// Ports of prompts and the condition on the counts for each.
const BUCKETS: [(&str, &str); 3] = [
    ("solved", "r.correct = r.samples"),
    ("partial", "r.correct > 0 AND r.correct < r.samples"),
    ("failed", "r.correct = 0"),
];

/// Columns of pass rates that decide: the prompt, its samples, the correct ones.
const COUNTS: [usize; 3] = [0, 1, 2];

impl OperatorKind for FilterByPassRate {
    const KIND: &'static str = "filter-by-pass-rate";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "splits prompts into solved, partial and failed by exact counts";
}

impl OperatorConfig for FilterByPassRate {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![
                InputPort::new(
                    "verdicts",
                    InputType::columns(TableName::Verdicts, &["prompt_id", "verdict"]),
                ),
                InputPort::new("prompts", InputType::table(TableName::Prompts)),
            ],
            &["solved", "partial", "failed", "pass_rates"],
        )
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        if self.min_samples == Some(0) {
            let fault = Fault::at("wrong-value", "min-samples", "`min-samples` is 0")
                .with_help("write 1 or more, or leave it out");
            return Err(vec![fault]);
        }
        // The three ports keep every column of the prompts.
        let prompts = inputs.get("prompts").cloned().unwrap_or_default();
        let mut types: PortTypes = BUCKETS
            .iter()
            .map(|(port, _)| ((*port).to_owned(), prompts.clone()))
            .collect();
        types.insert(
            "pass_rates".to_owned(),
            vec![PortType::table(TableName::PassRates)],
        );
        Ok(types)
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        // One core: sorting very long prompts on several at once takes more memory than a query may have.
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "verdicts")?;
        session.register_port(io, "prompts")?;
        let counted = session.sql(&format!(
            "SELECT prompt_id, samples, correct, CAST(correct AS DOUBLE) / CAST(samples AS DOUBLE) AS pass_rate \
             FROM (SELECT v.prompt_id AS prompt_id, COUNT(*) AS samples, SUM(CASE WHEN {correct} THEN 1 ELSE 0 END) AS correct \
                   FROM verdicts v WHERE {judged} GROUP BY v.prompt_id) \
             ORDER BY prompt_id",
            correct = is_correct("v"),
            judged = is_judged("v"),
        ))?;
        let schema = TableName::PassRates.schema();
        // What the buckets are decided on stays in memory, and no more: there may be very many prompts.
        let mut counts = Vec::new();
        session.write_and_show(counted, &schema, io, "pass_rates", |batch| {
            let slim = batch.project(&COUNTS);
            counts.push(slim.expect("the table has these columns"));
        })?;
        let columns = Arc::new(
            schema
                .project(&COUNTS)
                .expect("the table has these columns"),
        );
        session.register_batches("rates", &columns, counts)?;
        self.write_buckets(&session, io)?;
        self.warn_of_left_out(&session, io)
    }
}

impl FilterByPassRate {
    fn write_buckets(
        &self,
        session: &QuerySession,
        io: &mut dyn StageIo,
    ) -> Result<(), OperatorError> {
        let schema = session.schema("prompts")?;
        let min_samples = self.min_samples.unwrap_or(1);
        // The table on the left is held in memory: the narrow one, since prompts may be very long.
        for (port, condition) in BUCKETS {
            let frame = session.sql(&format!(
                "SELECT p.* FROM rates r JOIN prompts p ON p.prompt_id = r.prompt_id \
                 WHERE r.samples >= {min_samples} AND {condition} ORDER BY p.prompt_id"
            ))?;
            session.write(frame, &schema, io, port)?;
        }
        Ok(())
    }

    fn warn_of_left_out(
        &self,
        session: &QuerySession,
        io: &dyn StageIo,
    ) -> Result<(), OperatorError> {
        let min_samples = self.min_samples.unwrap_or(1);
        let frame = session.sql(&format!(
            "SELECT COUNT(*) AS n FROM prompts p LEFT JOIN rates r ON p.prompt_id = r.prompt_id \
             WHERE r.samples IS NULL OR r.samples < {min_samples}"
        ))?;
        let left_out: i64 = session
            .collect(frame)?
            .iter()
            .map(|batch| batch.column(0).as_primitive::<Int64Type>())
            .flat_map(|column| {
                (0..column.len())
                    .map(|row| column.value(row))
                    .collect::<Vec<_>>()
            })
            .sum();
        if left_out > 0 {
            let message = format!(
                "{left_out} prompts have fewer than {min_samples} usable samples and go to no port"
            );
            io.event(StageEvent::Warning(message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;

    use super::*;
    use crate::testing::{TestIo, floats, prompts, text_values, verdicts};
    use arrow::datatypes::UInt32Type;

    fn table() -> RecordBatch {
        let mut rows = vec![
            ("solved", 0, "correct", true),
            ("solved", 1, "correct", true),
            ("masked", 0, "timed-out", true),
        ];
        rows.extend([
            ("partial", 0, "correct", true),
            ("partial", 1, "unparsed", true),
            ("partial", 2, "failed", true),
        ]);
        rows.extend([
            ("failed", 0, "wrong", true),
            ("failed", 1, "unparsed", false),
            ("one", 0, "correct", true),
        ]);
        verdicts(&rows)
    }

    fn run(config: FilterByPassRate, verdicts: &[RecordBatch], prompts: &[RecordBatch]) -> TestIo {
        let mut io = TestIo::new();
        io.input("verdicts", verdicts);
        io.input("prompts", prompts);
        io.run(&config, 0).unwrap();
        io
    }

    #[test]
    fn prompts_go_by_their_counts_and_keep_their_columns() {
        let ids = [
            "z", "solved", "partial", "one", "masked", "failed", "unseen",
        ];
        let all: Vec<_> = ids.iter().map(|id| (*id, Some("1"), Some("sum"))).collect();
        let prompts = prompts(&all);
        let mut split = Vec::new();
        for row in 0..prompts.num_rows() {
            split.push(prompts.slice(row, 1));
        }
        for parts in [vec![prompts.clone()], split] {
            let io = run(
                FilterByPassRate::default(),
                &[table().slice(0, 4), table().slice(4, 5)],
                &parts,
            );
            assert_eq!(
                text_values(&io.output("solved"), "prompt_id"),
                ["one", "solved"]
            );
            assert_eq!(text_values(&io.output("partial"), "prompt_id"), ["partial"]);
            assert_eq!(text_values(&io.output("failed"), "prompt_id"), ["failed"]);
            assert_eq!(io.output("failed").schema(), prompts.schema());
            let rates = io.output("pass_rates");
            assert_eq!(
                text_values(&rates, "prompt_id"),
                ["failed", "one", "partial", "solved"]
            );
            assert_eq!(
                rates
                    .column_by_name("samples")
                    .unwrap()
                    .as_primitive::<UInt32Type>()
                    .values(),
                &[2, 1, 2, 2]
            );
            assert_eq!(floats(&rates, "pass_rate"), [0.0, 1.0, 0.5, 1.0]);
            assert_eq!(
                io.warnings(),
                ["3 prompts have fewer than 1 usable samples and go to no port"]
            );
        }
    }

    #[test]
    fn too_few_samples_go_nowhere() {
        let config = FilterByPassRate {
            min_samples: Some(2),
        };
        let io = run(
            config,
            &[table()],
            &[prompts(&[("solved", None, None), ("one", None, None)])],
        );
        assert_eq!(text_values(&io.output("solved"), "prompt_id"), ["solved"]);
        assert_eq!(io.output("pass_rates").num_rows(), 4);
        assert!(
            FilterByPassRate {
                min_samples: Some(0)
            }
            .output_types(&PortTypes::new())
            .is_err()
        );
    }

    #[test]
    fn counts_near_the_ends_are_not_rounded() {
        let mut rows: Vec<(&str, u32, &str, bool)> = (0..3000)
            .map(|sample| ("almost", sample, "correct", true))
            .collect();
        rows.push(("almost", 3000, "wrong", true));
        let io = run(
            FilterByPassRate::default(),
            &[verdicts(&rows)],
            &[prompts(&[("almost", None, None)])],
        );
        assert_eq!(
            (
                io.output("partial").num_rows(),
                io.output("solved").num_rows()
            ),
            (1, 0)
        );
    }

    #[test]
    fn empty_inputs_give_empty_ports() {
        let io = run(
            FilterByPassRate::default(),
            &[verdicts(&[])],
            &[prompts(&[])],
        );
        for port in ["solved", "partial", "failed", "pass_rates"] {
            assert_eq!(io.output(port).num_rows(), 0, "{port}");
        }
    }
}
