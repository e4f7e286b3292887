//! From conversations to sequences with exact masks.
//!
//! An answer is learnt as the model is asked for it: behind the prompt that the chat template makes of the turns before it.
//! Where the prompt of the next answer begins with the prompt and the tokens of this one, token by token, both are one
//! sequence, and the loss mask says which tokens are answers. Where it does not (a template that takes thoughts out of earlier
//! turns, text that is tokenised otherwise there, an image after the first answer), the next answer begins a sequence of its own.

use std::sync::Arc;

use engine_core::policy::TokenizedPrompt;
use engine_core::{OperatorError, StageIo};

use super::example_rows::{Answer, ExampleRow};
use crate::processor::PromptEncoder;
use crate::prompt_rows::PromptRow;
use crate::sampling::check_cancelled;

/// Conversations tokenised together.
const ROWS_TOGETHER: usize = 256;

/// One sequence to learn from.
#[derive(Clone, Debug)]
pub(super) struct Example {
    /// The conversation up to the first answer of the sequence.
    pub(super) prompt: PromptRow,
    /// Everything behind it.
    pub(super) completion: Vec<u32>,
    /// Which of its tokens are answers; empty: all.
    pub(super) loss_mask: Vec<bool>,
    /// Tokens of the prompt, those of images included.
    pub(super) prompt_tokens: usize,
}

impl Example {
    /// Tokens that carry loss.
    pub(super) fn targets(&self) -> usize {
        if self.loss_mask.is_empty() {
            self.completion.len()
        } else {
            self.loss_mask
                .iter()
                .filter(|is_target| **is_target)
                .count()
        }
    }

    /// All tokens.
    pub(super) fn tokens(&self) -> usize {
        self.prompt_tokens + self.completion.len()
    }
}

/// An answer that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) prompt_id: String,
    pub(super) turn: u32,
    pub(super) tokens: usize,
}

/// Sequences of all examples, and the answers that end behind `limit` tokens.
///
/// # Errors
/// When a conversation or an image cannot be used, or the run was asked to stop.
pub(super) fn sequences(
    rows: Vec<ExampleRow>,
    limit: Option<u32>,
    encoder: &mut PromptEncoder,
    io: &dyn StageIo,
) -> Result<(Vec<Example>, Vec<Dropped>), OperatorError> {
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    let (mut examples, mut dropped) = (Vec::with_capacity(rows.len()), Vec::new());
    let mut rows = rows.into_iter();
    loop {
        let together: Vec<ExampleRow> = rows.by_ref().take(ROWS_TOGETHER).collect();
        if together.is_empty() {
            return Ok((examples, dropped));
        }
        check_cancelled(io)?;
        let asked: Vec<PromptRow> = together
            .iter()
            .flat_map(|row| row.answers.iter().map(|answer| before(row, answer)))
            .collect();
        let mut prompts = encoder
            .encode(&asked.iter().collect::<Vec<_>>(), io)?
            .into_iter();
        for row in together {
            let prompts: Vec<Arc<TokenizedPrompt>> =
                prompts.by_ref().take(row.answers.len()).collect();
            let (runs, long) = runs(&row.answers, &prompts, limit);
            examples.extend(runs.into_iter().map(|run| Example {
                prompt: before(&row, &row.answers[run.first]),
                prompt_tokens: prompts[run.first].token_ids.len(),
                completion: run.completion,
                loss_mask: run.loss_mask,
            }));
            dropped.extend(long.into_iter().map(|(turn, tokens)| Dropped {
                prompt_id: row.prompt.prompt_id.clone(),
                turn,
                tokens,
            }));
        }
    }
}

/// The conversation before an answer.
fn before(row: &ExampleRow, answer: &Answer) -> PromptRow {
    PromptRow {
        messages: row.prompt.messages[..answer.messages].to_vec(),
        ..row.prompt.clone()
    }
}

/// Answers one after the other in one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// Place of its first answer.
    first: usize,
    completion: Vec<u32>,
    loss_mask: Vec<bool>,
}

impl Run {
    fn begin(first: usize, answer: &Answer) -> Self {
        Self {
            first,
            completion: answer.tokens.clone(),
            loss_mask: Vec::new(),
        }
    }

    /// Adds an answer, if its prompt begins with all tokens of the sequence so far.
    fn go_on(
        &mut self,
        first: &TokenizedPrompt,
        prompt: &TokenizedPrompt,
        answer: &Answer,
    ) -> bool {
        let rest = prompt
            .token_ids
            .strip_prefix(first.token_ids.as_slice())
            .and_then(|rest| rest.strip_prefix(self.completion.as_slice()));
        // Images are of the prompt alone.
        let Some(between) = rest.filter(|_| first.images.len() == prompt.images.len()) else {
            return false;
        };
        self.loss_mask.resize(self.completion.len(), true);
        self.completion.extend_from_slice(between);
        self.loss_mask.resize(self.completion.len(), false);
        self.completion.extend_from_slice(&answer.tokens);
        self.loss_mask.resize(self.completion.len(), true);
        true
    }
}

/// The sequences of a conversation, and the turns that end behind `limit` tokens, with these tokens.
fn runs(
    answers: &[Answer],
    prompts: &[Arc<TokenizedPrompt>],
    limit: usize,
) -> (Vec<Run>, Vec<(u32, usize)>) {
    let (mut runs, mut long): (Vec<Run>, Vec<(u32, usize)>) = (Vec::new(), Vec::new());
    for (place, (answer, prompt)) in answers.iter().zip(prompts).enumerate() {
        let tokens = prompt.token_ids.len() + answer.tokens.len();
        if tokens > limit {
            long.push((answer.turn, tokens));
            continue;
        }
        let goes_on = runs
            .last_mut()
            .is_some_and(|run| run.go_on(&prompts[run.first], prompt, answer));
        if !goes_on {
            runs.push(Run::begin(place, answer));
        }
    }
    (runs, long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(turn: u32, tokens: &[u32]) -> Answer {
        Answer {
            turn,
            messages: 0,
            tokens: tokens.to_vec(),
        }
    }

    fn prompt(token_ids: &[u32]) -> Arc<TokenizedPrompt> {
        Arc::new(TokenizedPrompt {
            token_ids: token_ids.to_vec(),
            images: Vec::new(),
        })
    }

    #[test]
    fn answers_whose_prompts_go_on_from_each_other_are_one_sequence() {
        let answers = [answer(1, &[5, 9]), answer(2, &[6, 9]), answer(3, &[7, 9])];
        let prompts = [
            prompt(&[1, 2]),
            prompt(&[1, 2, 5, 9, 3, 2]),
            prompt(&[1, 2, 5, 9, 3, 2, 6, 9, 4]),
        ];
        let (runs, long) = runs(&answers, &prompts, usize::MAX);
        assert_eq!(long, []);
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].completion, [5, 9, 3, 2, 6, 9, 4, 7, 9]);
        let mask: Vec<u8> = runs[0]
            .loss_mask
            .iter()
            .map(|mask| u8::from(*mask))
            .collect();
        assert_eq!(mask, [1, 1, 0, 0, 1, 1, 0, 1, 1]);
    }

    #[test]
    fn an_answer_that_the_template_changes_later_begins_another_sequence() {
        // The second prompt has the first answer without its thought 8; the third has the second one as it was.
        let answers = [
            answer(1, &[8, 5, 9]),
            answer(2, &[6, 9]),
            answer(3, &[7, 9]),
        ];
        let prompts = [
            prompt(&[1, 2]),
            prompt(&[1, 2, 5, 9, 3]),
            prompt(&[1, 2, 5, 9, 3, 6, 9, 4]),
        ];
        let (runs, _) = runs(&answers, &prompts, usize::MAX);
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0], Run::begin(0, &answers[0]));
        assert_eq!(runs[1].first, 1);
        assert_eq!(runs[1].completion, [6, 9, 4, 7, 9]);
        assert_eq!(runs[1].loss_mask, [true, true, false, true, true]);
    }

    #[test]
    fn an_image_after_the_first_answer_begins_another_sequence() {
        let answers = [answer(1, &[5, 9]), answer(2, &[6, 9])];
        let image = Arc::new(engine_core::policy::PatchedImage {
            patches: Vec::new(),
            grid_thw: [1, 2, 2],
        });
        let later = TokenizedPrompt {
            token_ids: vec![1, 2, 5, 9, 3],
            images: vec![image],
        };
        let prompts = [prompt(&[1, 2]), Arc::new(later)];
        assert_eq!(runs(&answers, &prompts, usize::MAX).0.len(), 2);
    }

    #[test]
    fn answers_behind_the_limit_are_dropped_and_those_before_stay() {
        let answers = [
            answer(1, &[5, 9]),
            answer(2, &[6, 6, 6, 9]),
            answer(3, &[7, 9]),
        ];
        let prompts = [
            prompt(&[1, 2]),
            prompt(&[1, 2, 5, 9, 3]),
            prompt(&[1, 2, 5, 9, 3, 6, 6, 6, 9, 4]),
        ];
        let (runs, long) = runs(&answers, &prompts, 8);
        assert_eq!(runs, [Run::begin(0, &answers[0])]);
        assert_eq!(long, [(2, 9), (3, 12)]);
    }
}
