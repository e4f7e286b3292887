//! What a pipeline says of a `score` stage.

use std::collections::{BTreeMap, BTreeSet};

use engine_core::Fault;
use operators_verdict::{Advantage, Language, Length, Overlong, Repetition, ScoreConfig, SqlPart};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parts of the reward with their weights; a part that is left out does not count. The keys are those of `score` in `rl-train`,
/// and `advantages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Score {
    /// Weight of a correct answer: 1 for one, 0 for a wrong or missing one. Default 0.
    #[serde(default)]
    pub accuracy: f64,
    /// Weight of the required form: 1 where the completion has it, else 0. Default 0.
    #[serde(default)]
    pub format: f64,
    /// Soft punishment of overlong completions, from 0 to -1. Reads `rollouts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// Punishment of repeated n-grams of tokens, from 0 to -1. Reads `rollouts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition: Option<Repetition>,
    /// Worth of a right or wrong answer by its length. Reads `rollouts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Length>,
    /// Share of the letters that are of the expected scripts, from 0 to 1. Reads `rollouts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Parts of your own by name: SQL expressions over the columns of the verdict, its rollout and its prompt. Reads `rollouts` and
    /// `prompts` where an expression uses their columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sql: BTreeMap<String, SqlPart>,
    /// Advantages to add, each a column `advantage_<name>`, with the columns `group_samples`, `group_mean`, `group_std`, `group_min`,
    /// `group_max` and `group_rank` (1 is best). A group is all judged rollouts of a prompt; the batch is the whole table. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advantages: Vec<Advantage>,
}

impl Score {
    /// The parts of the reward, as `rl-train` has them.
    #[must_use]
    pub fn parts(&self) -> ScoreConfig {
        ScoreConfig {
            accuracy: self.accuracy,
            format: self.format,
            overlong: self.overlong,
            repetition: self.repetition,
            length: self.length,
            language: self.language.clone(),
            sql: self.sql.clone(),
        }
    }

    /// Every fault of names and numbers.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let faults = self.parts().faults();
        let mut faults: Vec<Fault> = faults
            .iter()
            .map(|error| Fault {
                path: error.path(),
                message: error.to_string(),
                help: Some(error.help().to_owned()),
                code: "wrong-value",
            })
            .collect();
        let distinct: BTreeSet<Advantage> = self.advantages.iter().copied().collect();
        if distinct.len() < self.advantages.len() {
            let fault = Fault::at(
                "wrong-value",
                "advantages",
                "an advantage is asked for twice",
            );
            faults.push(fault.with_help("name each once"));
        }
        faults
    }

    /// Columns of rollouts that the parts of ours look at.
    pub(super) fn rollout_columns(&self) -> Vec<&'static str> {
        let mut columns = Vec::new();
        if self.language.is_some() {
            columns.push("text");
        }
        if self.parts().needs_tokens() {
            columns.push("token_ids");
        }
        if self.length.is_some_and(|length| length.exceeded.is_some()) {
            columns.push("finish_reason");
        }
        columns
    }

    /// The first part of ours that looks at rollouts.
    pub(super) fn part_over_rollouts(&self) -> Option<&'static str> {
        let parts = [
            ("overlong", self.overlong.is_some()),
            ("repetition", self.repetition.is_some()),
            ("length", self.length.is_some()),
            ("language", self.language.is_some()),
        ];
        parts
            .into_iter()
            .find(|(_, is_there)| *is_there)
            .map(|(name, _)| name)
    }
}
