//! split: divides rows among named ports by a hash of their prompt id, such as training and test prompts.
//!
//! Where a row goes depends on its prompt id (or its group) and the configuration alone: not on other rows, their order, or the
//! run's seed. So rows that are added leave the others where they are, and every table of the same prompts is divided alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageIo, seed,
};
use engine_query::{Order, QuerySession, conform};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::filter_by_pass_rate::is_port_name;
use crate::fraction::Fraction;
use crate::prompt_index::{Lookup, PromptIndex, texts};

/// How rows are divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Split {
    /// Ports and the share of prompts for each, such as `{ train: 0.9, test: 0.1 }`. They add up to 1 exactly; write a third as
    /// `"1/3"`. The port that is first by name is the one that the bare stage name means.
    pub shares: BTreeMap<String, Fraction>,
    /// A text column: rows with an equal value go to one port, such as all questions on one document. Rows without a value go
    /// by their prompt id.
    #[serde(default)]
    pub by: Option<String>,
    /// Another text divides the same rows in another way.
    #[serde(default)]
    pub salt: Option<String>,
}

impl OperatorKind for Split {
    const KIND: &'static str = "split";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "divides rows among named ports by a hash of their prompt id";
}

impl OperatorConfig for Split {
    fn ports(&self) -> Ports {
        let rows = InputType::columns(TableName::Prompts, &["prompt_id"]);
        let names: Vec<&str> = self.shares.keys().map(String::as_str).collect();
        Ports::new(vec![InputPort::new("rows", rows)], &names)
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = self.share_faults();
        let rows = inputs.get("rows").cloned().unwrap_or_default();
        if let Some(PortType::Table { schema, .. }) = rows.first() {
            faults.extend(self.group_fault(schema));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let names = self.shares.keys().cloned();
        Ok(names.map(|name| (name, rows.clone())).collect())
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "rows")?;
        let schema = session.schema("rows")?;
        for port in self.shares.keys() {
            io.write(port, RecordBatch::new_empty(Arc::clone(&schema)))?;
        }
        let ends = self.ends();
        let mut placed = Placed::default();
        for batch in session.stream(session.sql("SELECT * FROM rows")?) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = conform(&batch?, &schema)?;
            let places = self.places(&batch, &ends, &mut placed)?;
            for (place, port) in self.shares.keys().enumerate() {
                let mask: BooleanArray = places
                    .iter()
                    .map(|found| Some(*found as usize == place))
                    .collect();
                if mask.true_count() > 0 {
                    io.write(port, filter_record_batch(&batch, &mask)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Where prompts have gone that went by a group: a prompt with two groups must not go to two ports.
#[derive(Debug, Default)]
struct Placed {
    index: PromptIndex,
    lookup: Lookup,
    places: Vec<u32>,
}

impl Split {
    fn share_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (name, share) in &self.shares {
            let at = |message: String| {
                let mut fault = Fault::at("wrong-value", "shares", message);
                fault.path.push(name.clone());
                fault
            };
            if name == "quarantine" {
                let fault = at(format!("`{name}` is the name of another output"));
                faults
                    .push(fault.with_help("every stage can have one of that name; choose another"));
            } else if !is_port_name(name) {
                faults.push(
                    at(format!("`{name}` cannot be the name of an output")).with_help(
                        "begin with a small letter and go on with small letters, digits, `-` and `_`",
                    ),
                );
            }
            if share.is_zero() {
                faults.push(at(format!("the share of `{name}` is 0")).with_help("leave it out"));
            }
        }
        let sum = self
            .shares
            .values()
            .try_fold(Fraction::ZERO, |sum, share| sum.plus(*share));
        if sum != Some(Fraction::ONE) {
            let message = match sum {
                Some(sum) => format!("the shares add up to {sum}, not to 1"),
                None => "the shares do not add up to 1".to_owned(),
            };
            faults.push(Fault::at("wrong-value", "shares", message).with_help(
                "shares are parts of 1, such as 0.9 and 0.1, and every row goes to one port: give what is left a port of its own, and write a third as \"1/3\"",
            ));
        }
        faults
    }

    fn group_fault(&self, schema: &SchemaRef) -> Option<Fault> {
        let column = self.by.as_ref()?;
        let message = match schema.field_with_name(column) {
            Ok(field) if field.data_type() == &DataType::LargeUtf8 => return None,
            Ok(_) => format!("`{column}` is no column of texts"),
            Err(_) => format!("the rows have no column `{column}`"),
        };
        let texts: Vec<&str> = schema
            .fields()
            .iter()
            .filter(|field| field.data_type() == &DataType::LargeUtf8)
            .map(|field| field.name().as_str())
            .collect();
        let help = format!("their text columns are {}", texts.join(", "));
        Some(Fault::at("missing-column", "by", message).with_help(help))
    }

    /// Where the hashes of each port end, but for the last port.
    fn ends(&self) -> Vec<u64> {
        let mut sum = Fraction::ZERO;
        let mut ends: Vec<u64> = self
            .shares
            .values()
            .map(|share| {
                sum = sum
                    .plus(*share)
                    .expect("the plan saw that the shares add up");
                sum.floor_of(u64::MAX)
            })
            .collect();
        ends.pop();
        ends
    }

    fn places(
        &self,
        batch: &RecordBatch,
        ends: &[u64],
        placed: &mut Placed,
    ) -> Result<Vec<u32>, OperatorError> {
        let ids = texts(batch, "prompt_id", "rows")?;
        let groups = match &self.by {
            None => None,
            Some(column) => batch.column_by_name(column).map(AsArray::as_string::<i64>),
        };
        let salt = self.salt.as_deref().unwrap_or_default();
        let salt = seed::derive(0, salt);
        let mut places = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let id = ids.value(row);
            let group = groups.filter(|groups| groups.is_valid(row));
            // A group and a prompt of one name have nothing to do with each other.
            let hash = match group {
                Some(groups) => seed::derive(salt, &format!("group {}", groups.value(row))),
                None => seed::derive(salt, &format!("prompt {id}")),
            };
            let place = ends.partition_point(|end| *end <= hash) as u32;
            if groups.is_some() {
                placed.check(id, place, self.by.as_deref().unwrap_or_default())?;
            }
            places.push(place);
        }
        Ok(places)
    }
}

impl Placed {
    fn check(&mut self, id: &str, place: u32, column: &str) -> Result<(), OperatorError> {
        let number = self.lookup.insert(&mut self.index, id) as usize;
        if number == self.places.len() {
            self.places.push(place);
        }
        if self.places[number] == place {
            return Ok(());
        }
        Err(OperatorError::Data(format!(
            "prompt `{id}` has rows with different values of `{column}`, which go to different ports; give each prompt one \
             value, or leave `by` out"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;

    use super::*;
    use crate::testing::{TestIo, prompts, rollouts, text_values};

    fn config(value: serde_json::Value) -> Split {
        serde_json::from_value(value).unwrap()
    }

    fn halves() -> Split {
        config(json!({ "shares": { "train": 0.9, "test": 0.1 } }))
    }

    /// Ids by port.
    fn run(split: &Split, parts: &[RecordBatch]) -> BTreeMap<String, Vec<String>> {
        let mut io = TestIo::new();
        io.input("rows", parts);
        io.run(split, 7).unwrap();
        let names = split.shares.keys().cloned();
        names
            .map(|name| {
                let rows = io.output(&name);
                assert_eq!(rows.schema(), parts[0].schema());
                (name, text_values(&rows, "prompt_id"))
            })
            .collect()
    }

    fn numbered(numbers: std::ops::Range<u32>) -> RecordBatch {
        let ids: Vec<String> = numbers.map(|number| format!("p{number}")).collect();
        let rows: Vec<_> = ids.iter().map(|id| (id.as_str(), None, None)).collect();
        prompts(&rows)
    }

    #[test]
    fn shares_hold_and_every_row_goes_to_one_port() {
        let ports = run(&halves(), &[numbered(0..5000)]);
        let (train, test) = (&ports["train"], &ports["test"]);
        assert!((430..570).contains(&test.len()), "{}", test.len());
        let all: BTreeSet<&String> = train.iter().chain(test).collect();
        assert_eq!((all.len(), train.len() + test.len()), (5000, 5000));
    }

    #[test]
    fn other_parts_and_more_rows_leave_a_row_where_it_is() {
        let few = run(&halves(), &[numbered(0..300)]);
        let parts: Vec<RecordBatch> = (0..30)
            .map(|part| numbered(part * 10..part * 10 + 10))
            .collect();
        assert_eq!(run(&halves(), &parts), few);
        let many = run(&halves(), &[numbered(200..600), numbered(0..200)]);
        for (port, ids) in &few {
            let found: BTreeSet<&String> = many[port].iter().collect();
            assert!(ids.iter().all(|id| found.contains(id)), "{port}");
        }
    }

    #[test]
    fn every_table_of_the_prompts_is_divided_alike() {
        let ids: Vec<String> = (0..200).map(|number| format!("p{number}")).collect();
        let rows: Vec<_> = ids
            .iter()
            .flat_map(|id| [(id.as_str(), 0, "a"), (id.as_str(), 1, "b")])
            .collect();
        let of_rollouts = run(&halves(), &[rollouts(&rows)]);
        for (port, ids) in run(&halves(), &[numbered(0..200)]) {
            let twice: Vec<String> = ids.iter().flat_map(|id| [id.clone(), id.clone()]).collect();
            assert_eq!(of_rollouts[&port], twice);
        }
    }

    #[test]
    fn a_salt_divides_anew_and_three_thirds_are_a_whole() {
        let mut salted = halves();
        salted.salt = Some("again".to_owned());
        assert_ne!(
            run(&salted, &[numbered(0..300)]),
            run(&halves(), &[numbered(0..300)])
        );
        let thirds = config(json!({ "shares": { "a": "1/3", "b": "1/3", "c": "1/3" } }));
        assert!(thirds.output_types(&PortTypes::new()).is_ok());
        let ports = run(&thirds, &[numbered(0..3000)]);
        assert!(ports.values().all(|ids| (900..1100).contains(&ids.len())));
    }

    #[test]
    fn groups_stay_together() {
        let ids: Vec<(String, String)> = (0..400)
            .map(|number| (format!("p{number}"), format!("document {}", number % 40)))
            .collect();
        let mut rows: Vec<_> = ids
            .iter()
            .map(|(id, group)| (id.as_str(), None, Some(group.as_str())))
            .collect();
        rows.push(("alone", None, None));
        let split = config(json!({ "shares": { "train": 0.5, "test": 0.5 }, "by": "category" }));
        let mut io = TestIo::new();
        io.input("rows", &[prompts(&rows)]);
        io.run(&split, 0).unwrap();
        let groups = |port: &str| -> BTreeSet<String> {
            text_values(&io.output(port), "category")
                .into_iter()
                .collect()
        };
        let (train, test) = (groups("train"), groups("test"));
        assert_eq!(train.intersection(&test).count(), 0);
        assert_eq!(train.len() + test.len(), 41);
        assert!(!train.is_empty() && !test.is_empty());

        let torn: Vec<_> = ids
            .iter()
            .map(|(_, group)| ("one", None, Some(group.as_str())))
            .collect();
        io.input("rows", &[prompts(&torn)]);
        let error = io.run(&split, 0).unwrap_err().to_string();
        assert!(
            error.contains("prompt `one` has rows with different values"),
            "{error}"
        );
    }

    #[test]
    fn wrong_shares_are_found_at_plan_time() {
        for (split, expected) in [
            (
                json!({ "shares": { "a": 0.5, "b": 0.4 } }),
                "add up to 9/10",
            ),
            (json!({ "shares": {} }), "add up to 0"),
            (json!({ "shares": { "a": 1, "b": 0 } }), "share of `b` is 0"),
            (json!({ "shares": { "A": 1 } }), "cannot be the name"),
            (
                json!({ "shares": { "a": 1 }, "by": "topic" }),
                "no column `topic`",
            ),
            (
                json!({ "shares": { "a": 1 }, "by": "messages" }),
                "`messages` is no column of texts",
            ),
        ] {
            let inputs =
                PortTypes::from([("rows".to_owned(), vec![PortType::table(TableName::Prompts)])]);
            let faults = config(split.clone()).output_types(&inputs).unwrap_err();
            assert!(
                faults[0].message.contains(expected),
                "{split}: {}",
                faults[0].message
            );
        }
    }

    #[test]
    fn no_rows_give_empty_ports() {
        let ports = run(&halves(), &[prompts(&[])]);
        assert!(ports.values().all(Vec::is_empty));
    }
}
