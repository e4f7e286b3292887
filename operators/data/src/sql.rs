//! sql: one query over any inputs, each a table by the name of its port.
//!
//! Checked at plan time against the columns of the inputs. Runs on one core, so that equal inputs give equal rows in the
//! same order even where the query sorts by nothing.

use std::collections::BTreeSet;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
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
        let internal =
            |error: engine_query::QueryError| vec![Fault::new("bad-query", error.to_string())];
        let session = QuerySession::new(Order::Repeatable).map_err(internal)?;
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
        let frame = session.sql(&self.query).map_err(|error| {
            vec![
                Fault::at("bad-query", "query", error.to_string())
                    .with_help(format!("the tables are the inputs: {}", names.join(", "))),
            ]
        })?;
        check_repeatable(frame.logical_plan())?;
        let schema = storage_schema(frame.schema().as_arrow());
        check_names(&schema)?;
        Ok(PortTypes::from([(
            "rows".to_owned(),
            vec![PortType::Table {
                table: TableName::Rows,
                schema,
            }],
        )]))
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::new(Order::Repeatable)?;
        for port in io.input_ports() {
            session.register_port(io, &port)?;
        }
        let frame = session.sql(&self.query)?;
        let schema = storage_schema(frame.schema().as_arrow());
        session.write(frame, &schema, io, "rows")?;
        Ok(())
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
