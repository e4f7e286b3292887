//! Examples as training uses them, read from the `examples` table.

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use engine_core::{OperatorError, StageIo};

use crate::columns::{ids_column, text_column};
use crate::processor::Processor;
use crate::prompt_rows::{PromptRow, messages_at, messages_column};

/// An example: a conversation and the completion to learn.
#[derive(Clone, Debug)]
pub(super) struct ExampleRow {
    /// The conversation; the table has no answers.
    pub(super) prompt: PromptRow,
    /// Completion tokens; every one carries loss.
    pub(super) completion: Vec<u32>,
}

/// Reads all examples of an input port. Those without token ids are tokenised, once, and get the end token.
pub(super) fn read_examples(
    io: &dyn StageIo,
    port: &str,
    processor: &Processor,
) -> Result<Vec<ExampleRow>, OperatorError> {
    let mut rows = Vec::new();
    for batch in io.read(port)? {
        let batch = batch?;
        let ids = text_column(&batch, "prompt_id")?;
        let messages = messages_column(&batch)?;
        let texts = text_column(&batch, "text")?;
        let token_ids = ids_column(&batch, "token_ids")?;
        for row in 0..batch.num_rows() {
            let prompt = PromptRow {
                prompt_id: ids.value(row).to_owned(),
                messages: messages_at(messages, row),
                answer: None,
                solution: None,
            };
            let completion = if token_ids.is_valid(row) {
                token_ids
                    .value(row)
                    .as_primitive::<UInt32Type>()
                    .values()
                    .to_vec()
            } else {
                processor
                    .encode_completion(texts.value(row))
                    .map_err(|message| prompt.fault(&message))?
            };
            check_tokens(&completion, processor).map_err(|message| prompt.fault(&message))?;
            rows.push(ExampleRow { prompt, completion });
        }
    }
    Ok(rows)
}

fn check_tokens(completion: &[u32], processor: &Processor) -> Result<(), String> {
    if completion.is_empty() {
        return Err("its example has no tokens to learn".into());
    }
    match completion.iter().find(|id| !processor.knows(**id)) {
        Some(id) => Err(format!(
            "its example has token id {id}, which is not in the model's vocabulary; was it sampled from another model?"
        )),
        None => Ok(()),
    }
}
