//! sql: one query over any inputs, each a table by the name of its port.
//!
//! Checked at plan time against the columns of the inputs. Runs on one core, so that equal inputs give equal rows in the
//! same order even where the query sorts by nothing.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::datatypes::Schema;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion, TreeNodeVisitor};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use engine_core::operator::Family;
use engine_core::{
    Fault, OperatorConfig, OperatorError, OperatorKind, OutputPort, Placement, PortType, PortTypes,
    Ports, StageContext, StageIo,
};
use engine_query::{Order, QuerySession, storage_schema};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sql {
    /// One SELECT. Every input is a table under its name; write a name with dashes or capitals in double quotes.
    pub query: String,
}

impl OperatorKind for Sql {
    const KIND: &'static str = "sql";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "one query over any inputs";
}

impl OperatorConfig for Sql {
    fn ports(&self) -> Ports {
        Ports {
            inputs: Vec::new(),
            open_inputs: true,
            outputs: vec![OutputPort {
                name: "rows".to_owned(),
            }],
        }
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let frame = self.planned(inputs)?;
        check_repeatable(frame.logical_plan())?;
        let schema = storage_schema(frame.schema().as_arrow());
        check_names(&schema)?;
        let types = PortTypes::from([(
            "rows".to_owned(),
            vec![PortType::Table {
                table: TableName::Rows,
                schema,
            }],
        )]);
        planner().last = Some((self.clone(), inputs.clone(), frame));
        Ok(types)
    }

    /// The optimised plan: spaces, comments, letter case and the order of conditions that mean the same do not count.
    fn key_config(&self, canonical: &serde_json::Value, inputs: &PortTypes) -> serde_json::Value {
        let planned = planner()
            .last
            .take()
            .filter(|(sql, types, _)| sql == self && types == inputs);
        let frame = match planned {
            Some((_, _, frame)) => Some(frame),
            None => self.planned(inputs).ok(),
        };
        let plan = frame.and_then(|frame| plan_text(&frame.into_optimized_plan().ok()?).ok());
        match plan {
            Some(plan) => json!({ "plan": plan, "datafusion": datafusion::DATAFUSION_VERSION }),
            None => canonical.clone(),
        }
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        for port in io.input_ports() {
            session.register_port(io, &port)?;
        }
        let frame = session.sql(&self.query)?;
        let schema = storage_schema(frame.schema().as_arrow());
        session.write(frame, &schema, io, "rows")?;
        Ok(())
    }
}

impl Sql {
    /// The query over tables without rows.
    fn planned(&self, inputs: &PortTypes) -> Result<DataFrame, Vec<Fault>> {
        let mut planner = planner();
        // A session in which something panics is not used again.
        let session = match planner.session.take() {
            Some(session) => session,
            None => QuerySession::new(Order::Repeatable).map_err(internal)?,
        };
        let planned = self.planned_in(&session, inputs);
        for port in inputs.keys() {
            session.deregister(port).map_err(internal)?;
        }
        planner.session = Some(session);
        planned
    }

    fn planned_in(
        &self,
        session: &QuerySession,
        inputs: &PortTypes,
    ) -> Result<DataFrame, Vec<Fault>> {
        let mut faults = Vec::new();
        for (port, types) in inputs {
            match types.first() {
                Some(PortType::Table { schema, .. }) => {
                    session.register_empty(port, schema).map_err(internal)?;
                }
                Some(PortType::Model) => {
                    faults.push(Fault::new(
                        "type-mismatch",
                        format!("input `{port}` is a model, and a query reads tables"),
                    ));
                }
                None => {}
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let names: Vec<&str> = inputs.keys().map(String::as_str).collect();
        session.sql(&self.query).map_err(|error| {
            vec![
                Fault::at("bad-query", "query", error.to_string())
                    .with_help(format!("the tables are the inputs: {}", names.join(", "))),
            ]
        })
    }
}

fn internal(error: engine_query::QueryError) -> Vec<Fault> {
    vec![Fault::new("bad-query", error.to_string())]
}

/// Plans queries one by one. To make a session takes longer than to plan most queries in it.
struct Planner {
    session: Option<QuerySession>,
    /// The query that was planned last: its key is asked for right after its columns.
    last: Option<(Sql, PortTypes, DataFrame)>,
}

static PLANNER: Mutex<Planner> = Mutex::new(Planner {
    session: None,
    last: None,
});

fn planner() -> MutexGuard<'static, Planner> {
    PLANNER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A plan as text that tells apart whatever gives other rows. DataFusion's own text leaves out a few things.
fn plan_text(plan: &LogicalPlan) -> datafusion::error::Result<String> {
    let mut text = PlanText::default();
    plan.visit_with_subqueries(&mut text)?;
    Ok(text.lines.join("\n"))
}

#[derive(Default)]
struct PlanText {
    lines: Vec<String>,
    depth: usize,
}

impl<'n> TreeNodeVisitor<'n> for PlanText {
    type Node = LogicalPlan;

    fn f_down(&mut self, node: &'n LogicalPlan) -> datafusion::error::Result<TreeNodeRecursion> {
        let indent = "  ".repeat(self.depth);
        self.lines.push(format!("{indent}{}", node.display()));
        match node {
            LogicalPlan::Join(join) => {
                self.lines
                    .push(format!("{indent}  nulls: {:?}", join.null_equality));
            }
            LogicalPlan::Values(values) => {
                for row in &values.values {
                    let row: Vec<String> = row.iter().map(ToString::to_string).collect();
                    self.lines
                        .push(format!("{indent}  row: {}", row.join(", ")));
                }
            }
            _ => {}
        }
        let lines = &mut self.lines;
        let mut long = |expression: &Expr| {
            if let Expr::Literal(
                value @ (ScalarValue::Binary(Some(_))
                | ScalarValue::LargeBinary(Some(_))
                | ScalarValue::BinaryView(Some(_))
                | ScalarValue::FixedSizeBinary(_, Some(_))),
                _,
            ) = expression
            {
                lines.push(format!("{indent}  bytes: {value:?}"));
            }
            Ok(TreeNodeRecursion::Continue)
        };
        node.apply_expressions(|expression| expression.apply(&mut long))?;
        self.depth += 1;
        Ok(TreeNodeRecursion::Continue)
    }

    fn f_up(&mut self, _node: &'n LogicalPlan) -> datafusion::error::Result<TreeNodeRecursion> {
        self.depth -= 1;
        Ok(TreeNodeRecursion::Continue)
    }
}

/// A stage's rows are cached by its query and inputs, so a query must give the same rows whenever it runs.
fn check_repeatable(plan: &LogicalPlan) -> Result<(), Vec<Fault>> {
    let mut found = None;
    let mut look = |expression: &Expr| {
        if let Expr::ScalarFunction(call) = expression
            && call.func.signature().volatility != Volatility::Immutable
        {
            found.get_or_insert_with(|| call.func.name().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    };
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| expression.apply(&mut look))
    })
    .map_err(|error| vec![Fault::at("bad-query", "query", error.to_string())])?;
    match found {
        None => Ok(()),
        Some(name) => Err(vec![
            Fault::at(
                "bad-query",
                "query",
                format!("`{name}()` gives something else in every run, and the result of a stage is kept"),
            )
            .with_help("write the value into the query"),
        ]),
    }
}

fn check_names(schema: &Schema) -> Result<(), Vec<Fault>> {
    let mut seen = BTreeSet::new();
    let twice = schema
        .fields()
        .iter()
        .find(|field| !seen.insert(field.name()));
    match twice {
        None => Ok(()),
        Some(field) => Err(vec![
            Fault::at(
                "bad-query",
                "query",
                format!("two columns of the result are called `{}`", field.name()),
            )
            .with_help("name them apart with AS"),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestIo, text_values, verdicts};

    fn sql(query: &str) -> Sql {
        Sql {
            query: query.to_owned(),
        }
    }

    fn planned(query: &str) -> Result<PortTypes, Vec<Fault>> {
        sql(query).output_types(&PortTypes::from([(
            "verdicts".to_owned(),
            vec![PortType::table(TableName::Verdicts)],
        )]))
    }

    #[test]
    fn mistakes_are_found_at_plan_time() {
        for (query, expected) in [
            ("select verdikt from verdicts", "verdikt"),
            ("select * from rollouts", "rollouts"),
            ("select prompt_id from", "expected"),
            ("drop table verdicts", "DDL"),
            (
                "select prompt_id from verdicts where random() < 0.5",
                "`random()`",
            ),
            ("select prompt_id, now() as at from verdicts", "`now()`"),
            (
                "select sample, sample + 1 as sample from verdicts",
                "sample",
            ),
        ] {
            let faults = planned(query).unwrap_err();
            assert_eq!(faults[0].path, ["query"]);
            assert!(
                faults[0]
                    .message
                    .to_lowercase()
                    .contains(&expected.to_lowercase()),
                "{query}: {}",
                faults[0].message
            );
        }
        let model = PortTypes::from([("base".to_owned(), vec![PortType::Model])]);
        assert!(
            sql("select 1").output_types(&model).unwrap_err()[0]
                .message
                .contains("`base`")
        );
    }

    fn key(query: &str) -> serde_json::Value {
        let inputs = PortTypes::from([
            (
                "verdicts".to_owned(),
                vec![PortType::table(TableName::Verdicts)],
            ),
            (
                "other".to_owned(),
                vec![PortType::table(TableName::Verdicts)],
            ),
        ]);
        let key = sql(query).key_config(&json!({ "query": query }), &inputs);
        assert!(key.get("plan").is_some(), "{query}: {key}");
        key
    }

    #[test]
    fn the_spelling_of_a_query_is_not_in_its_key() {
        let query = "select prompt_id, count(*) as n from verdicts where sample < 4 and verdict = 'correct' group by prompt_id";
        for same in [
            "SELECT prompt_id,  COUNT(*) AS n\n  -- a comment\nFROM verdicts\nWHERE sample < 4 AND verdict = 'correct'\nGROUP BY prompt_id",
            "select prompt_id, count(*) n from verdicts where (sample < 2 + 2) and verdict = 'correct' group by 1",
        ] {
            assert_eq!(key(query), key(same), "{same}");
        }
    }

    #[test]
    fn what_gives_other_rows_is_in_the_key() {
        let bytes = "arrow_cast(x'00010203040506070809";
        let values = "select * from (values (1), (2), (3), (4), (5), (6)) as t(a)";
        for (query, other) in [
            (
                "select * from verdicts where sample < 4",
                "select * from verdicts where sample < 5",
            ),
            (
                "select sample as a from verdicts",
                "select sample as b from verdicts",
            ),
            (
                "select sample from verdicts limit 3",
                "select sample from verdicts limit 4",
            ),
            (
                "select * from verdicts order by sample",
                "select * from verdicts order by sample desc",
            ),
            ("select * from verdicts", "select * from other"),
            (values, &values.replace('6', "7")),
            (
                &format!("select {bytes}0a', 'LargeBinary') as b from verdicts"),
                &format!("select {bytes}0b', 'LargeBinary') as b from verdicts"),
            ),
            (
                "select a.sample from verdicts a left semi join other b on a.verdict = b.verdict",
                "select a.sample from verdicts a left semi join other b on a.verdict is not distinct from b.verdict",
            ),
        ] {
            assert_ne!(key(query), key(other), "{query}");
        }
    }

    #[test]
    fn the_planned_columns_are_the_written_ones() {
        let query = "select prompt_id, upper(verdict) as shout, count(*) as n, array_agg(sample) as samples from verdicts group by 1, 2";
        let PortType::Table { schema, .. } = planned(query).unwrap()["rows"][0].clone() else {
            panic!("a table")
        };
        let rows = [
            ("b", 0, "correct", true),
            ("a", 0, "wrong", true),
            ("b", 1, "correct", true),
        ];
        let mut outputs = Vec::new();
        for parts in [
            vec![verdicts(&rows)],
            vec![verdicts(&rows[..1]), verdicts(&rows[1..])],
        ] {
            let mut io = TestIo::new();
            io.input("verdicts", &parts);
            io.run(&sql(query), 0).unwrap();
            let out = io.output("rows");
            assert_eq!(out.schema(), schema);
            assert_eq!(
                text_values(&out, "prompt_id"),
                ["b", "a"],
                "first come first"
            );
            outputs.push(out);
        }
        assert_eq!(outputs[0], outputs[1]);
    }

    #[test]
    fn no_rows_keep_their_columns() {
        let mut io = TestIo::new();
        io.input("verdicts", &[verdicts(&[])]);
        io.run(&sql("select prompt_id from verdicts where sample > 5"), 0)
            .unwrap();
        assert_eq!(
            (
                io.output("rows").num_rows(),
                io.output("rows").num_columns()
            ),
            (0, 1)
        );
    }
}
