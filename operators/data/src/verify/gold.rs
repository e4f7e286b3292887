//! Gold answers by prompt id, for very many prompts: sorted digests of the ids beside one text buffer.

use arrow::array::{Array, LargeStringArray, LargeStringBuilder};
use engine_core::{OperatorError, StageEvent, StageView};
use operators_verdict::VerifyConfig;
use rayon::prelude::*;

use super::text_column;

/// What a prompt has to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gold<'a> {
    /// An answer that can be compared.
    Usable(&'a str),
    /// None, or one that cannot be parsed.
    Unusable,
}

/// The gold answers of all prompts.
#[derive(Debug)]
pub(super) struct GoldAnswers {
    /// Digest of an id and its place in `answers`, sorted; the last of equal ids counts.
    ids: Vec<([u64; 2], u32)>,
    /// Null where there is no usable one.
    answers: LargeStringArray,
}

impl GoldAnswers {
    /// Reads the port `prompts`, and warns once of answers that cannot be used.
    pub(super) fn read(config: &VerifyConfig, view: &dyn StageView) -> Result<Self, OperatorError> {
        let mut ids = Vec::new();
        let mut answers = LargeStringBuilder::new();
        let mut unusable = 0_usize;
        let mut first = None;
        for batch in view.read("prompts")? {
            if view.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = batch?;
            let names = text_column(&batch, "prompt_id")?;
            let texts = text_column(&batch, "answer")?;
            let faults: Vec<Option<String>> = (0..batch.num_rows())
                .into_par_iter()
                .map(|row| fault(config, texts, row))
                .collect();
            for (row, fault) in faults.into_iter().enumerate() {
                let place = u32::try_from(ids.len()).map_err(|_| {
                    OperatorError::Data(
                        "there are more than 4294967295 prompts; verify them in several stages"
                            .to_owned(),
                    )
                })?;
                ids.push((digest(names.value(row)), place));
                match fault {
                    None if texts.is_null(row) => answers.append_value(""),
                    None => answers.append_value(texts.value(row)),
                    Some(fault) => {
                        unusable += 1;
                        first.get_or_insert_with(|| format!("`{}`: {fault}", names.value(row)));
                        answers.append_null();
                    }
                }
            }
        }
        if let Some(first) = first {
            let message = format!(
                "{unusable} prompts have no usable gold answer, first {first}; their rollouts are `failed` and never rewarded"
            );
            view.event(StageEvent::Warning(message));
        }
        ids.par_sort_unstable();
        Ok(Self {
            ids,
            answers: answers.finish(),
        })
    }

    /// The gold answer of a prompt; none when there is no such prompt.
    pub(super) fn of(&self, id: &str) -> Option<Gold<'_>> {
        let digest = digest(id);
        let after = self.ids.partition_point(|(other, _)| *other <= digest);
        let (found, place) = self.ids[..after].last()?;
        let place = *place as usize;
        (*found == digest).then(|| {
            if self.answers.is_valid(place) {
                Gold::Usable(self.answers.value(place))
            } else {
                Gold::Unusable
            }
        })
    }
}

fn fault(config: &VerifyConfig, answers: &LargeStringArray, row: usize) -> Option<String> {
    let checked = if answers.is_valid(row) {
        config.check_gold(answers.value(row))
    } else if config.needs_gold() {
        return Some("it has none".to_owned());
    } else {
        config.check_gold("")
    };
    checked.err().map(|error| error.to_string())
}

/// Half a blake3 digest: no two ids that anyone has share it.
fn digest(id: &str) -> [u64; 2] {
    let hash = blake3::hash(id.as_bytes());
    let half = |from: usize| {
        let bytes = hash.as_bytes()[from..from + 8].try_into();
        u64::from_le_bytes(bytes.expect("eight bytes of thirty-two"))
    };
    [half(0), half(8)]
}
