//! Examples as training uses them, read from the `examples` table.

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use engine_core::{OperatorError, StageIo};

use super::config::Turns;
use crate::columns::{ids_column, text_column};
use crate::processor::{Chat, Processor};
use crate::prompt_rows::{ContentPart, Message, PromptRow, messages_at, messages_column};

/// The role of the turns that are learnt.
const ASSISTANT: &str = "assistant";

/// What stands for an answer while the end of a turn is looked for.
const PROBE: &str = "xyzzy";

/// An example: a conversation and the answers in it that are learnt.
#[derive(Clone, Debug)]
pub(super) struct ExampleRow {
    /// The conversation up to the last answer; the table has no gold answers.
    pub(super) prompt: PromptRow,
    /// The answers, in their order; the last one comes after all messages of the prompt.
    pub(super) answers: Vec<Answer>,
}

/// One turn of the assistant.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Its number among the assistant's turns of the conversation, from 1.
    pub(super) turn: u32,
    /// Messages of the conversation before it.
    pub(super) messages: usize,
    /// Its tokens, the end token included.
    pub(super) tokens: Vec<u32>,
}

/// Reads all examples of an input port. Answers without token ids are tokenised, once, and get the token that ends a turn.
pub(super) fn read_examples(
    io: &dyn StageIo,
    port: &str,
    turns: Turns,
    processor: &Processor,
) -> Result<Vec<ExampleRow>, OperatorError> {
    let end_token = turn_end(processor);
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
            let last = if token_ids.is_valid(row) {
                let sampled = token_ids.value(row);
                Ok(sampled.as_primitive::<UInt32Type>().values().to_vec())
            } else {
                answer_tokens(processor, end_token, texts.value(row))
            };
            let answers = last.and_then(|last| {
                check_tokens(&last, processor)?;
                answers(&prompt.messages, last, turns, |text| {
                    answer_tokens(processor, end_token, text)
                })
            });
            let answers = answers.map_err(|message| prompt.fault(&message))?;
            rows.push(ExampleRow { prompt, answers });
        }
    }
    Ok(rows)
}

/// The answers of a conversation that are learnt; `last` comes after all messages.
fn answers(
    messages: &[Message],
    last: Vec<u32>,
    turns: Turns,
    tokenise: impl Fn(&str) -> Result<Vec<u32>, String>,
) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    let mut turn = 0;
    for (place, message) in messages.iter().enumerate() {
        if message.role != ASSISTANT {
            continue;
        }
        turn += 1;
        if turns == Turns::Last {
            continue;
        }
        let is_text = |part: &ContentPart| matches!(part, ContentPart::Text(_));
        if !message.content.iter().all(is_text) {
            return Err(format!(
                "answer {turn} has an image, which cannot be learnt; take it out, or set `turns: last`"
            ));
        }
        answers.push(Answer {
            turn,
            messages: place,
            tokens: tokenise(&message.text())?,
        });
    }
    answers.push(Answer {
        turn: turn + 1,
        messages: messages.len(),
        tokens: last,
    });
    Ok(answers)
}

/// Tokens of an answer that is given as text.
fn answer_tokens(processor: &Processor, end_token: u32, text: &str) -> Result<Vec<u32>, String> {
    let mut tokens = processor.encode_completion(text)?;
    if let Some(last) = tokens.last_mut()
        && *last == processor.end_token()
    {
        *last = end_token;
    }
    Ok(tokens)
}

/// The token that the chat template puts behind an answer, if it is one that ends completions; else the tokenizer's end token.
fn turn_end(processor: &Processor) -> u32 {
    let message = |role: &str, text: &str| Message {
        role: role.to_owned(),
        content: vec![ContentPart::Text(text.to_owned())],
    };
    let mut chat = Chat::from_messages(&[message("user", "1"), message(ASSISTANT, PROBE)]);
    chat.add_generation_prompt = false;
    let rendered = processor.render(&chat).unwrap_or_default();
    let after = rendered
        .rsplit_once(PROBE)
        .map_or("", |(_, after)| after.trim_start());
    let mut stops = processor.stop_token_ids().iter().copied();
    stops
        .find(|stop| {
            let text = processor.token_text(*stop);
            !text.is_empty() && after.starts_with(&text)
        })
        .unwrap_or(processor.end_token())
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
