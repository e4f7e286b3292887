//! score: turns verdicts into rewards, with every part of a reward in a column of its own.
//!
//! Rollouts without a judgement (`timed-out`, `failed`) get no row: they are masked, not worth 0.

use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageIo,
};
use engine_query::{Order, QuerySession};
use operators_verdict::{ScoreConfig, ScoreError};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use crate::judged::{is_correct, is_judged};

/// Weights of the parts of the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Score(pub ScoreConfig);

impl OperatorKind for Score {
    const KIND: &'static str = "score";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "turns verdicts into rewards with named parts";
}

impl OperatorConfig for Score {
    fn ports(&self) -> Ports {
        let verdicts = InputType::columns(
            TableName::Verdicts,
            &["prompt_id", "sample", "verdict", "format_ok"],
        );
        Ports::new(vec![InputPort::new("verdicts", verdicts)], &["scores"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        if let Err(error @ ScoreError::NotFinite { name, .. }) = self.0.check() {
            return Err(vec![
                Fault::at("wrong-value", name, error.to_string())
                    .with_help("write a number such as 0.5"),
            ]);
        }
        Ok(PortTypes::from([(
            "scores".to_owned(),
            vec![PortType::table(TableName::Scores)],
        )]))
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Any, io.scratch())?;
        session.register_port(io, "verdicts")?;
        let (accuracy, format) = (self.0.accuracy, self.0.format);
        let frame = session.sql(&format!(
            "SELECT prompt_id, sample, ({accuracy:?}) * reward_accuracy + ({format:?}) * reward_format AS reward, reward_accuracy, reward_format \
             FROM (SELECT prompt_id, sample, \
                          CASE WHEN {correct} THEN 1.0 ELSE 0.0 END AS reward_accuracy, \
                          CASE WHEN v.format_ok THEN 1.0 ELSE 0.0 END AS reward_format \
                   FROM verdicts v WHERE {judged}) \
             ORDER BY prompt_id, sample",
            correct = is_correct("v"),
            judged = is_judged("v"),
        ))?;
        session.write(frame, &TableName::Scores.schema(), io, "scores")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestIo, floats, text_values, verdicts};

    #[test]
    fn rewards_are_weighted_sums_and_masked_rollouts_have_none() {
        let score = Score(ScoreConfig {
            accuracy: 1.0,
            format: 0.5,
        });
        let batch = verdicts(&[
            ("b", 0, "wrong", true),
            ("a", 1, "correct", false),
            ("a", 0, "correct", true),
            ("b", 1, "timed-out", true),
            ("b", 2, "unparsed", false),
            ("b", 3, "failed", true),
        ]);
        let expected = [1.5, 1.0, 0.5, 0.0];
        for parts in [
            vec![batch.clone()],
            vec![batch.slice(0, 1), batch.slice(1, 3), batch.slice(4, 2)],
        ] {
            let mut io = TestIo::new();
            io.input("verdicts", &parts);
            io.run(&score, 0).unwrap();
            let out = io.output("scores");
            assert_eq!(text_values(&out, "prompt_id"), ["a", "a", "b", "b"]);
            assert_eq!(floats(&out, "reward"), expected);
            assert_eq!(floats(&out, "reward_accuracy"), [1.0, 1.0, 0.0, 0.0]);
            assert_eq!(out.schema(), TableName::Scores.schema());
        }
    }

    #[test]
    fn weights_must_be_finite() {
        let score = Score(ScoreConfig {
            accuracy: f64::INFINITY,
            format: -0.5,
        });
        assert_eq!(
            score.output_types(&PortTypes::new()).unwrap_err()[0].path,
            ["accuracy"]
        );
    }
}
