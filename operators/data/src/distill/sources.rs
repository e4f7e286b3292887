//! Rollouts of several stages side by side, each with the verdicts and scores of its own.
//!
//! Two stages number their samples alike, so that here a sample has a number in which its stage counts as well.

use engine_core::{Artifact, OperatorError, StageIo};
use engine_query::{Order, QuerySession};

/// The tables of a port, each by the files that it consists of.
#[derive(Debug)]
pub(super) struct Sources {
    tables: Vec<Vec<String>>,
}

impl Sources {
    /// The tables of a port, in the order of the pipeline.
    pub(super) fn of(io: &dyn StageIo, port: &str) -> Result<Self, OperatorError> {
        let mut urls = io.part_urls(port)?;
        let mut tables = Vec::new();
        for artifact in io.inputs(port).iter().skip(1).rev() {
            let parts = match artifact {
                Artifact::Dataset(dataset) => dataset.parts.len(),
                Artifact::Model(_) => 0,
            };
            tables.push(urls.split_off(urls.len().saturating_sub(parts)));
        }
        tables.push(urls);
        tables.reverse();
        Ok(Self { tables })
    }

    /// A session with the tables: the place of each, and its name.
    pub(super) fn open(
        &self,
        io: &dyn StageIo,
    ) -> Result<(QuerySession, Vec<(u32, String)>), OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        let mut named = Vec::with_capacity(self.tables.len());
        for (place, urls) in (0..).zip(&self.tables) {
            let name = format!("source_{place}");
            session.register_parquet(&name, urls.clone())?;
            named.push((place, name));
        }
        Ok((session, named))
    }

    /// How samples are numbered here.
    pub(super) fn numbering(&self) -> Numbering {
        Numbering(self.tables.len() as u32)
    }
}

/// Numbers for the samples of so many stages: first sample 0 of each, then sample 1 of each, and so on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbering(u32);

impl Numbering {
    /// The number of a stage's sample.
    pub(super) fn number(self, source: u32, sample: u32) -> Result<u32, OperatorError> {
        let number = sample
            .checked_mul(self.0)
            .and_then(|n| n.checked_add(source));
        number.ok_or_else(|| {
            OperatorError::Data(format!(
                "sample {sample} cannot be told from those of {} other tables: samples are numbered from 0, a few for each prompt",
                self.0 - 1
            ))
        })
    }

    /// The sample, as its stage numbers it.
    pub(super) fn sample(self, number: u32) -> u32 {
        number / self.0
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::UInt32Type;
    use serde_json::json;

    use super::super::tests::config;
    use super::*;
    use crate::testing::{TestIo, prompts, rollouts_with_tokens, scores, text_values, verdicts};

    /// Two stages that both have samples 0 and 1 of prompts b and a: what is right in one is wrong in the other.
    fn io() -> TestIo {
        let of = |name: &str| {
            let texts = [("b", 0), ("a", 0), ("a", 1), ("b", 1)]
                .map(|(id, sample)| (id, sample, format!("{name}{id}{sample}")));
            let tokens = texts.each_ref().map(|(_, _, text)| {
                let tokens = text.bytes().map(u32::from);
                tokens.collect::<Vec<u32>>()
            });
            let rows = texts.iter().zip(&tokens);
            let rows: Vec<(&str, u32, &str, &[u32], &str)> = rows
                .map(|((id, sample, text), tokens)| {
                    (*id, *sample, text.as_str(), &tokens[..], "stop")
                })
                .collect();
            rollouts_with_tokens(&rows)
        };
        let (first, second) = (of("x"), of("y"));
        let parts = |batch: &RecordBatch| vec![batch.slice(0, 3), batch.slice(3, 1)];
        let mut io = TestIo::new();
        io.input_tables(
            "rollouts",
            &[parts(&first), vec![first.slice(0, 0)], parts(&second)],
        );
        let judged = |right: &[(&str, u32)]| {
            let all = [("a", 0), ("a", 1), ("b", 0), ("b", 1)];
            let verdict = |row: &(&'static str, u32)| {
                let verdict = if right.contains(row) {
                    "correct"
                } else {
                    "wrong"
                };
                (row.0, row.1, verdict, true)
            };
            verdicts(&all.iter().map(verdict).collect::<Vec<_>>())
        };
        let right = [
            judged(&[("a", 1), ("b", 0)]),
            judged(&[]),
            judged(&[("a", 0), ("a", 1)]),
        ];
        io.input_tables("verdicts", &right.map(|batch| vec![batch]));
        io.input(
            "prompts",
            &[prompts(&[("a", None, None), ("b", None, None)])],
        );
        let rewards = [
            scores(&[("a", 1, 0.5), ("b", 0, 1.0)]),
            scores(&[]),
            scores(&[("a", 0, 0.75), ("a", 1, 0.25)]),
        ];
        io.input_tables("scores", &rewards.map(|batch| vec![batch]));
        io
    }

    fn texts(value: serde_json::Value) -> Vec<String> {
        let mut io = io();
        io.run(&config(value), 0).unwrap();
        text_values(&io.output("examples"), "text")
    }

    #[test]
    fn rollouts_of_several_stages_meet_their_own_verdicts_and_scores() {
        let keep = |rule: &str, count: u32| {
            texts(json!({ "keep": { rule: count }, "require-format": true }))
        };
        assert_eq!(keep("first", 9), ["ya0", "xa1", "ya1", "xb0"]);
        assert_eq!(keep("first", 1), ["ya0", "xb0"]);
        assert_eq!(keep("best", 2), ["ya0", "xa1", "xb0"]);
        let capped = texts(json!({
            "keep": { "first": 9 }, "require-format": true, "max": { "total": 3 },
        }));
        assert_eq!(capped.len(), 3);
        for text in capped {
            assert!(
                ["ya0", "xa1", "ya1", "xb0"].contains(&text.as_str()),
                "{text}"
            );
        }
    }

    #[test]
    fn contaminated_samples_are_named_as_their_stage_numbers_them() {
        let mut io = io();
        io.input("evaluation", &[prompts(&[("xa1", None, None)])]);
        let found = config(json!({
            "keep": { "first": 9 }, "require-format": true, "decontaminate": { "words": 8 },
        }));
        io.run(&found, 0).unwrap();
        let listed = io.output("contaminated");
        let samples = listed.column_by_name("sample").unwrap();
        assert_eq!(samples.as_primitive::<UInt32Type>().values().to_vec(), [1]);
        assert_eq!(
            text_values(&io.output("examples"), "text"),
            ["ya0", "ya1", "xb0"]
        );
    }

    #[test]
    fn numbers_tell_stages_apart_and_one_stage_keeps_its_own() {
        let numbers = Numbering(3);
        let all = (0..4).flat_map(|sample| (0..3).map(move |source| (source, sample)));
        let all: Vec<u32> = all
            .map(|(source, n)| numbers.number(source, n).unwrap())
            .collect();
        assert_eq!(all, (0..12).collect::<Vec<u32>>());
        assert_eq!(numbers.sample(11), 3);
        assert!(numbers.number(0, u32::MAX).is_err());
        assert_eq!(Numbering(1).number(0, u32::MAX).unwrap(), u32::MAX);
    }
}
