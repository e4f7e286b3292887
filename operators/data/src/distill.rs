//! distill: turns a model's own correct rollouts into training examples, some for each prompt.
//!
//! Kept are correct completions that ended by themselves (a truncated one would teach not to stop), each token
//! sequence once. Their tokens go on as they were sampled.

use arrow::array::AsArray;
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
use crate::judged::is_correct;

/// Which correct rollouts become examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Distill {
    /// How many of a prompt's correct rollouts are kept, and which.
    pub keep: Keep,
    /// Whether a rollout must have the required format as well.
    pub require_format: bool,
}

/// Which of a prompt's correct rollouts are kept, at most so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those with the lowest sample index.
    First(u32),
    /// Those with the fewest tokens; among equals the first.
    Shortest(u32),
    /// Drawn by the stage's seed.
    Random(u32),
    /// Those with the highest reward; among equals the first. The only rule that reads the input `scores`, and needs it.
    Best(u32),
}

impl Keep {
    fn count(self) -> u32 {
        match self {
            Self::First(count)
            | Self::Shortest(count)
            | Self::Random(count)
            | Self::Best(count) => count,
        }
    }

    fn order(self) -> &'static str {
        match self {
            Self::First(_) => "sample",
            Self::Shortest(_) => "length, sample",
            Self::Random(_) => "draw(concat(prompt_id, ' ', CAST(sample AS VARCHAR))), sample",
            Self::Best(_) => "reward DESC, sample",
        }
    }
}

impl OperatorKind for Distill {
    const KIND: &'static str = "distill";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "a model's own correct rollouts as training examples";
}

impl OperatorConfig for Distill {
    fn ports(&self) -> Ports {
        let rollouts = [
            "prompt_id",
            "sample",
            "text",
            "token_ids",
            "finish_reason",
            "model",
        ];
        let inputs = vec![
            InputPort::new(
                "prompts",
                InputType::columns(TableName::Prompts, &["prompt_id", "messages"]),
            ),
            InputPort::new(
                "rollouts",
                InputType::columns(TableName::Rollouts, &rollouts),
            ),
            InputPort::new(
                "verdicts",
                InputType::columns(
                    TableName::Verdicts,
                    &["prompt_id", "sample", "verdict", "format_ok"],
                ),
            ),
            InputPort::new(
                "scores",
                InputType::columns(TableName::Scores, &["prompt_id", "sample", "reward"]),
            )
            .optional(),
        ];
        Ports::new(inputs, &["examples"])
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        if self.keep.count() == 0 {
            return Err(vec![
                Fault::at("wrong-value", "keep", "`keep` keeps 0 rollouts of a prompt")
                    .with_help("write 1 or more"),
            ]);
        }
        if self.uses_scores() && inputs.get("scores").is_none_or(Vec::is_empty) {
            let fault = Fault::at(
                "missing-input",
                "keep",
                "`best` goes by reward, and the input `scores` is not connected",
            );
            return Err(vec![fault.with_help(
                "connect a `score` stage as `scores`, or keep the first or the shortest",
            )]);
        }
        Ok(PortTypes::from([(
            "examples".to_owned(),
            vec![PortType::table(TableName::Examples)],
        )]))
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Any, io.scratch())?;
        session.register_function(draw(context.seed));
        for port in ["prompts", "rollouts", "verdicts"] {
            session.register_port(io, port)?;
        }
        if self.uses_scores() {
            session.register_port(io, "scores")?;
        }
        for port in ["rollouts", "verdicts"] {
            check_named_once(&session, port)?;
        }
        let frame = session.sql(&self.query())?;
        session.write(frame, &TableName::Examples.schema(), io, "examples")?;
        Ok(())
    }
}

/// Rollouts meet their verdicts by prompt and sample. The rollouts of a training stage have each pair in every step, and a
/// wrong answer would meet the verdict of a right one.
fn check_named_once(session: &QuerySession, port: &str) -> Result<(), OperatorError> {
    let twice = session.collect(session.sql(&format!(
        "SELECT prompt_id FROM {port} GROUP BY prompt_id, sample HAVING COUNT(*) > 1 ORDER BY prompt_id LIMIT 1"
    ))?)?;
    match twice.iter().find(|batch| batch.num_rows() > 0) {
        None => Ok(()),
        Some(batch) => Err(OperatorError::Data(format!(
            "`{port}` has a sample of prompt `{}` more than once; connect a `rollout` stage and its verdicts, or choose one \
             training step with a `sql` stage",
            batch.column(0).as_string::<i64>().value(0)
        ))),
    }
}

impl Distill {
    fn uses_scores(&self) -> bool {
        matches!(self.keep, Keep::Best(_))
    }

    fn query(&self) -> String {
        let format = if self.require_format {
            "AND v.format_ok"
        } else {
            ""
        };
        let (reward, scores) = if self.uses_scores() {
            (
                ", s.reward AS reward",
                "JOIN scores s ON s.prompt_id = r.prompt_id AND s.sample = r.sample",
            )
        } else {
            ("", "")
        };
        format!(
            "WITH good AS ( \
                 SELECT r.prompt_id AS prompt_id, r.sample AS sample, coalesce(array_length(r.token_ids), character_length(r.text)) AS length{reward}, \
                        row_number() OVER (PARTITION BY r.prompt_id, coalesce(array_to_string(r.token_ids, ' '), r.text) ORDER BY r.sample) AS copy \
                 FROM rollouts r JOIN verdicts v ON v.prompt_id = r.prompt_id AND v.sample = r.sample {scores} \
                 WHERE {correct} {format} AND r.finish_reason = 'stop'), \
             ranked AS ( \
                 SELECT prompt_id, sample, row_number() OVER (PARTITION BY prompt_id ORDER BY {order}) AS place FROM good WHERE copy = 1), \
             kept AS (SELECT prompt_id, sample FROM ranked WHERE place <= {count}) \
             SELECT p.prompt_id, p.messages, r.text, r.token_ids, 'self' AS origin, r.model \
             FROM kept k JOIN rollouts r ON r.prompt_id = k.prompt_id AND r.sample = k.sample JOIN prompts p ON p.prompt_id = k.prompt_id \
             ORDER BY k.prompt_id, k.sample",
            correct = is_correct("v"),
            order = self.keep.order(),
            count = self.keep.count(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestIo, prompts, rollouts_with_tokens, scores, text_values, verdicts};
    use arrow::array::RecordBatch;

    /// Prompt a: samples 0 to 4, of which 1 repeats 0, 3 is wrong; prompt b: one truncated, one badly formed.
    fn io(parts: usize) -> TestIo {
        let rollouts = rollouts_with_tokens(&[
            ("a", 0, "long", &[1, 2, 3, 9], "stop"),
            ("a", 1, "long", &[1, 2, 3, 9], "stop"),
            ("a", 2, "short", &[4, 9], "stop"),
            ("a", 3, "wrong", &[5], "stop"),
            ("a", 4, "mid", &[6, 7, 9], "stop"),
            ("b", 0, "cut", &[1, 2], "length"),
            ("b", 1, "bare", &[8, 9], "stop"),
            ("c", 0, "not asked", &[8, 9], "stop"),
        ]);
        let verdicts = verdicts(&[
            ("a", 0, "correct", true),
            ("a", 1, "correct", true),
            ("a", 2, "correct", true),
            ("a", 3, "wrong", true),
            ("a", 4, "correct", true),
            ("b", 0, "correct", true),
            ("b", 1, "correct", false),
            ("c", 0, "correct", true),
        ]);
        let cut = |batch: &RecordBatch| -> Vec<RecordBatch> {
            (0..batch.num_rows())
                .step_by(parts)
                .map(|start| batch.slice(start, parts.min(batch.num_rows() - start)))
                .collect()
        };
        let mut io = TestIo::new();
        io.input("rollouts", &cut(&rollouts));
        io.input("verdicts", &cut(&verdicts));
        io.input(
            "prompts",
            &[prompts(&[("b", None, None), ("a", None, None)])],
        );
        io.input(
            "scores",
            &[scores(&[
                ("a", 0, 0.5),
                ("a", 1, 0.5),
                ("a", 2, 0.75),
                ("a", 4, 1.5),
                ("b", 1, 1.0),
            ])],
        );
        io
    }

    fn texts(keep: Keep, require_format: bool, parts: usize, seed: u64) -> Vec<String> {
        let mut io = io(parts);
        io.run(
            &Distill {
                keep,
                require_format,
            },
            seed,
        )
        .unwrap();
        let out = io.output("examples");
        assert_eq!(out.schema(), TableName::Examples.schema());
        text_values(&out, "text")
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        for parts in [100, 3, 1] {
            assert_eq!(texts(Keep::First(2), true, parts, 0), ["long", "short"]);
            assert_eq!(texts(Keep::Shortest(2), true, parts, 0), ["short", "mid"]);
            assert_eq!(texts(Keep::Best(1), true, parts, 0), ["mid"]);
            assert_eq!(
                texts(Keep::First(10), true, parts, 0),
                ["long", "short", "mid"]
            );
            assert_eq!(texts(Keep::First(1), false, parts, 0), ["long", "bare"]);
        }
    }

    #[test]
    fn random_choice_depends_on_the_seed_alone() {
        let drawn: Vec<Vec<String>> = (0..20)
            .map(|seed| texts(Keep::Random(1), true, 100, seed))
            .collect();
        assert!(
            drawn.iter().any(|texts| texts != &drawn[0]),
            "twenty seeds draw different rollouts"
        );
        assert_eq!(texts(Keep::Random(1), true, 2, 3), drawn[3]);
    }

    #[test]
    fn samples_that_are_named_twice_are_refused() {
        let mut io = io(100);
        let steps = [
            ("a", 0, "right", &[1, 9][..], "stop"),
            ("a", 0, "wrong", &[2, 9], "stop"),
        ];
        io.input("rollouts", &[rollouts_with_tokens(&steps)]);
        io.input(
            "verdicts",
            &[verdicts(&[
                ("a", 0, "correct", true),
                ("a", 0, "wrong", true),
            ])],
        );
        let distill = Distill {
            keep: Keep::First(2),
            require_format: true,
        };
        let error = io.run(&distill, 0).unwrap_err().to_string();
        assert!(
            error.contains("`rollouts` has a sample of prompt `a`"),
            "{error}"
        );
    }

    #[test]
    fn best_needs_scores() {
        let best = Distill {
            keep: Keep::Best(1),
            require_format: true,
        };
        assert_eq!(
            best.output_types(&PortTypes::new()).unwrap_err()[0].code,
            "missing-input"
        );
        let connected = PortTypes::from([(
            "scores".to_owned(),
            vec![PortType::table(TableName::Scores)],
        )]);
        assert!(best.output_types(&connected).is_ok());
    }

    #[test]
    fn examples_say_where_they_come_from() {
        let mut io = io(100);
        io.run(
            &Distill {
                keep: Keep::First(1),
                require_format: true,
            },
            0,
        )
        .unwrap();
        let out = io.output("examples");
        assert_eq!(text_values(&out, "origin"), ["self"]);
        assert_eq!(text_values(&out, "model"), ["m"]);
    }
}
