//! mix: puts several sets of examples together, with a cap for each origin.
//!
//! What a cap drops is drawn by the stage's seed. Examples with equal prompt, text and origin are all kept.

use std::collections::BTreeMap;

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

/// How examples are put together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mix {
    /// Whether the examples come in an order drawn by the stage's seed; else they are sorted by origin and prompt.
    pub shuffle: bool,
    /// Most examples of an origin, by its name. Origins that are not named are kept whole.
    #[serde(default)]
    pub max: BTreeMap<String, u64>,
}

impl OperatorKind for Mix {
    const KIND: &'static str = "mix";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "puts sets of examples together, with caps by origin";
}

impl OperatorConfig for Mix {
    fn ports(&self) -> Ports {
        Ports::new(
            vec![InputPort::new("examples", InputType::table(TableName::Examples)).many()],
            &["examples"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        Ok(PortTypes::from([(
            "examples".to_owned(),
            vec![PortType::table(TableName::Examples)],
        )]))
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Any, io.scratch())?;
        session.register_function(draw(context.seed));
        session.register_port(io, "examples")?;
        let frame = session.sql(&self.query())?;
        session.write(frame, &TableName::Examples.schema(), io, "examples")?;
        Ok(())
    }
}

impl Mix {
    fn query(&self) -> String {
        // Rows that are equal in all of this are the same example, so their order says nothing.
        let identity = "origin, prompt_id, text, array_to_string(token_ids, ' '), model";
        let drawn = "draw(concat(origin, ' ', prompt_id, ' ', text, ' ', coalesce(array_to_string(token_ids, ' '), '')))";
        let mut cap = String::from("TRUE");
        if !self.max.is_empty() {
            let cases: Vec<String> = self
                .max
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
        format!(
            "SELECT prompt_id, messages, text, token_ids, origin, model \
             FROM (SELECT *, row_number() OVER (PARTITION BY origin ORDER BY drawn, prompt_id, model) AS place \
                   FROM (SELECT *, {drawn} AS drawn FROM examples)) \
             WHERE {cap} ORDER BY {order}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestIo, examples, text_values};

    fn run(mix: &Mix, seed: u64, parts: usize) -> Vec<String> {
        let own = examples(&[
            ("c", "1", "self"),
            ("a", "2", "self"),
            ("b", "3", "self"),
            ("a", "0", "self"),
        ]);
        let expert = examples(&[("e", "5", "expert"), ("d", "4", "expert")]);
        let mut io = TestIo::new();
        let mut batches: Vec<_> = (0..4)
            .step_by(parts)
            .map(|start| own.slice(start, parts.min(4 - start)))
            .collect();
        batches.push(expert);
        io.input("examples", &batches);
        io.run(mix, seed).unwrap();
        text_values(&io.output("examples"), "text")
    }

    #[test]
    fn without_shuffle_the_order_is_by_origin_and_prompt() {
        let mix = Mix {
            shuffle: false,
            max: BTreeMap::new(),
        };
        assert_eq!(run(&mix, 0, 4), ["4", "5", "0", "2", "3", "1"]);
        assert_eq!(run(&mix, 1, 1), ["4", "5", "0", "2", "3", "1"]);
    }

    #[test]
    fn a_shuffle_is_a_permutation_by_seed() {
        let mix = Mix {
            shuffle: true,
            max: BTreeMap::new(),
        };
        let drawn: Vec<Vec<String>> = (0..5).map(|seed| run(&mix, seed, 4)).collect();
        assert!(drawn.iter().any(|order| order != &drawn[0]));
        for mut order in drawn.clone() {
            order.sort();
            assert_eq!(order, ["0", "1", "2", "3", "4", "5"]);
        }
        assert_eq!(run(&mix, 2, 1), drawn[2]);
    }

    #[test]
    fn caps_hold_by_origin() {
        let mix = Mix {
            shuffle: false,
            max: BTreeMap::from([("self".to_owned(), 2), ("nobody".to_owned(), 0)]),
        };
        let kept = run(&mix, 0, 4);
        assert_eq!(kept.len(), 4);
        assert_eq!(kept[..2], ["4", "5"]);
        assert_eq!(run(&mix, 0, 1), kept);
    }
}
