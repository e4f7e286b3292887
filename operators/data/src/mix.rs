//! mix: puts several sets of examples together, with a cap for each origin, or in a given ratio.
//!
//! What is left out is drawn by the stage's seed. Examples with equal prompt, text and origin are all kept. The counts of a
//! ratio are exact: shares of the total, rounded by the largest remainders.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageIo,
};
use engine_query::{Order, QuerySession};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::draw::draw;
use crate::fraction::Fraction;

/// How examples are put together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mix {
    /// Whether the examples come in an order drawn by the stage's seed; else they are sorted by origin and prompt.
    pub shuffle: bool,
    /// Most examples of an origin, by its name. Origins that are not named are kept whole.
    #[serde(default)]
    pub max: BTreeMap<String, u64>,
    /// How many examples of each origin there are beside the others, such as `{ self: 3, expert: 1 }`. Every origin must be
    /// named; 0 leaves one out.
    #[serde(default)]
    pub ratio: Option<BTreeMap<String, Fraction>>,
    /// How many examples are taken in all. Without it a ratio takes as many as there are examples for, after `max`.
    #[serde(default)]
    pub total: Option<u64>,
}

impl OperatorKind for Mix {
    const KIND: &'static str = "mix";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "puts sets of examples together, with caps by origin or in a ratio";
}

impl OperatorConfig for Mix {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![InputPort::new("examples", InputType::table(TableName::Examples)).many()],
            &["examples"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        if let Some(fault) = self.fault() {
            return Err(vec![fault]);
        }
        Ok(PortTypes::from([(
            "examples".to_owned(),
            vec![PortType::table(TableName::Examples)],
        )]))
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Any, io.scratch())?;
        session.register_function(draw(context.seed));
        session.register_port(io, "examples")?;
        let caps = self.caps(&session)?;
        let frame = session.sql(&self.query(&caps))?;
        session.write(frame, &TableName::Examples.schema(), io, "examples")?;
        Ok(())
    }
}

/// How many examples of each origin are taken, where not all of them are, and how many in all.
#[derive(Debug, Default)]
struct Caps {
    origins: BTreeMap<String, u64>,
    total: Option<u64>,
}

impl Mix {
    fn fault(&self) -> Option<Fault> {
        if self.total == Some(0) {
            let fault = Fault::at("wrong-value", "total", "`total` takes no example at all");
            return Some(fault.with_help("write 1 or more, or leave it out"));
        }
        let ratio = self.ratio.as_ref()?;
        let weights: Vec<Fraction> = ratio.values().copied().collect();
        let message = match Fraction::proportions(&weights) {
            None => "the numbers of `ratio` have too many digits",
            Some(whole) if whole.iter().all(|weight| *weight == 0) => {
                "`ratio` takes no example of any origin"
            }
            Some(_) => return None,
        };
        let help = "write how many of each origin there are beside the others, such as `{ self: 3, expert: 1 }`";
        Some(Fault::at("wrong-value", "ratio", message).with_help(help))
    }

    fn caps(&self, session: &QuerySession) -> Result<Caps, OperatorError> {
        let Some(ratio) = &self.ratio else {
            return Ok(Caps {
                origins: self.max.clone(),
                total: self.total,
            });
        };
        let mut there = BTreeMap::new();
        let counts = session.sql("SELECT origin, COUNT(*) FROM examples GROUP BY origin")?;
        for batch in session.collect(counts)? {
            let origins = batch.column(0).as_string::<i64>();
            let numbers = batch.column(1).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let origin = origins.value(row);
                let most = self.max.get(origin).copied().unwrap_or(u64::MAX);
                there.insert(origin.to_owned(), most.min(numbers.value(row) as u64));
            }
        }
        if let Some(other) = there.keys().find(|origin| !ratio.contains_key(*origin)) {
            return Err(OperatorError::Data(format!(
                "there are examples of origin `{other}`, which `ratio` does not name; write 0 to leave them out"
            )));
        }
        let weights: Vec<Fraction> = ratio.values().copied().collect();
        let weights = Fraction::proportions(&weights)
            .ok_or_else(|| OperatorError::Internal("the plan saw the ratio".to_owned()))?;
        let supply: Vec<u64> = ratio
            .keys()
            .map(|origin| there.get(origin).copied().unwrap_or(0))
            .collect();
        let most = most_in_ratio(&weights, &supply);
        let total = self.total.unwrap_or(most);
        if total > most {
            let scarce = ratio
                .keys()
                .zip(weights.iter().zip(&supply))
                .filter(|(_, (weight, _))| **weight > 0)
                .min_by_key(|(_, (weight, supply))| most_in_ratio(&[**weight], &[**supply]));
            let scarce = scarce.map_or("", |(origin, _)| origin.as_str());
            return Err(OperatorError::Data(format!(
                "`total` asks for {total} examples, and in this ratio there are {most}: `{scarce}` is what runs short; ask for \
                 fewer, or leave `total` out"
            )));
        }
        let counts = largest_remainders(&weights, total);
        Ok(Caps {
            origins: ratio.keys().cloned().zip(counts).collect(),
            total: None,
        })
    }

    fn query(&self, caps: &Caps) -> String {
        // Rows that are equal in all of this are the same example, so their order says nothing.
        let identity = "origin, prompt_id, text, array_to_string(token_ids, ' '), model";
        let drawn = "draw(concat(origin, ' ', prompt_id, ' ', text, ' ', coalesce(array_to_string(token_ids, ' '), '')))";
        let mut cap = String::from("TRUE");
        if !caps.origins.is_empty() {
            let cases: Vec<String> = caps
                .origins
                .iter()
                .map(|(origin, count)| {
                    format!(
                        "WHEN '{}' THEN place <= {count}",
                        origin.replace('\'', "''")
                    )
                })
                .collect();
            cap = format!("CASE origin {} ELSE TRUE END", cases.join(" "));
        }
        let order = if self.shuffle {
            format!("drawn, {identity}")
        } else {
            identity.to_owned()
        };
        let kept = format!(
            "SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY origin ORDER BY drawn, prompt_id, model) AS place \
                            FROM (SELECT *, {drawn} AS drawn FROM examples)) WHERE {cap}"
        );
        let kept = match caps.total {
            None => kept,
            Some(total) => format!(
                "SELECT * FROM (SELECT *, row_number() OVER (ORDER BY drawn, {identity}) AS among_all FROM ({kept})) \
                 WHERE among_all <= {total}"
            ),
        };
        format!(
            "SELECT prompt_id, messages, text, token_ids, origin, model FROM ({kept}) ORDER BY {order}"
        )
    }
}

/// The largest total whose shares there is enough for.
fn most_in_ratio(weights: &[u64], supply: &[u64]) -> u64 {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let totals = weights
        .iter()
        .zip(supply)
        .filter(|(weight, _)| **weight > 0)
        .map(|(weight, supply)| u128::from(*supply) * sum / u128::from(*weight));
    totals
        .min()
        .map_or(0, |total| u64::try_from(total).unwrap_or(u64::MAX))
}

/// Whole shares of a total: rounded down, and what is left goes to the largest remainders; among equals to the first.
fn largest_remainders(weights: &[u64], total: u64) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let share = |weight: &u64| u128::from(*weight) * u128::from(total);
    let mut counts: Vec<u64> = weights
        .iter()
        .map(|weight| (share(weight) / sum) as u64)
        .collect();
    let left = total - counts.iter().sum::<u64>();
    let mut places: Vec<usize> = (0..weights.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(share(&weights[*place]) % sum));
    for place in places.into_iter().take(left as usize) {
        counts[place] += 1;
    }
    counts
}

#[cfg(test)]
mod tests;
