//! Gold answers and questions by prompt id, for very many prompts: sorted digests of the ids beside one text buffer each.

use arrow::array::{Array, LargeStringArray, LargeStringBuilder};
use arrow::record_batch::RecordBatch;
use engine_core::{OperatorError, StageEvent, StageView};
use operators_model::prompt_rows::prompt_rows;
use operators_verifier::VerifyConfig;
use rayon::prelude::*;

use super::text_column;

/// What a prompt asks and what the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prompt<'a> {
    pub(super) gold: Option<&'a str>,
    /// Empty where no verifier reads it.
    pub(super) question: &'a str,
}

/// All prompts.
#[derive(Debug)]
pub(super) struct Prompts {
    /// Digest of an id and its place, sorted; the last of equal ids counts.
    ids: Vec<([u64; 2], u32)>,
    /// Null where there is none.
    answers: LargeStringArray,
    questions: Option<LargeStringArray>,
}

impl Prompts {
    /// Reads the port `prompts`, and warns once of answers that cannot be used.
    pub(super) fn read(config: &VerifyConfig, view: &dyn StageView) -> Result<Self, OperatorError> {
        let mut ids = Vec::new();
        let mut answers = LargeStringBuilder::new();
        let mut questions = config.reads_question().then(LargeStringBuilder::new);
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
                .map(|row| {
                    let gold = texts.is_valid(row).then(|| texts.value(row));
                    config.check_gold(gold).err().map(|error| error.to_string())
                })
                .collect();
            for (row, fault) in faults.into_iter().enumerate() {
                let place = u32::try_from(ids.len()).map_err(|_| {
                    OperatorError::Data(
                        "there are more than 4294967295 prompts; verify them in several stages"
                            .to_owned(),
                    )
                })?;
                ids.push((digest(names.value(row)), place));
                answers.append_option(texts.is_valid(row).then(|| texts.value(row)));
                if let Some(fault) = fault {
                    unusable += 1;
                    first.get_or_insert_with(|| format!("`{}`: {fault}", names.value(row)));
                }
            }
            if let Some(questions) = &mut questions {
                append_questions(&batch, questions)?;
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
            questions: questions.map(|mut questions| questions.finish()),
        })
    }

    /// The prompt with an id.
    pub(super) fn of(&self, id: &str) -> Option<Prompt<'_>> {
        let digest = digest(id);
        let after = self.ids.partition_point(|(other, _)| *other <= digest);
        let (found, place) = self.ids[..after].last()?;
        let place = *place as usize;
        (*found == digest).then(|| Prompt {
            gold: self
                .answers
                .is_valid(place)
                .then(|| self.answers.value(place)),
            question: self
                .questions
                .as_ref()
                .map_or("", |texts| texts.value(place)),
        })
    }
}

fn append_questions(
    batch: &RecordBatch,
    questions: &mut LargeStringBuilder,
) -> Result<(), OperatorError> {
    for row in prompt_rows(batch)? {
        questions.append_value(row.question());
    }
    Ok(())
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
