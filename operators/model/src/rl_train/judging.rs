//! Verdicts and rewards of a round of sampling. Answers are judged while others are still sampled, unless a loaded model judges,
//! which has the device after the sampler.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::PoisonError;

use engine_core::policy::{Completion, GenerationProgress, GenerationWatch};
use engine_core::{OperatorError, StageView};
use operators_verdict::{Measured, ScoreConfig, Verdict};
use operators_verifier::{Question, Verifier};
use rayon::prelude::*;

use crate::processor::Processor;
use crate::prompt_rows::PromptRow;
use crate::stop_strings::cut;

/// The prompt of a request.
type RowOf<'a> = dyn Fn(usize) -> &'a PromptRow + Sync + 'a;

/// What is needed to judge an answer.
pub(super) struct Bench<'a> {
    pub(super) verifier: &'a Verifier,
    pub(super) score: &'a ScoreConfig,
    pub(super) processor: &'a Processor,
    /// Texts that end an answer and are cut from it.
    pub(super) stop: &'a [String],
    /// Whether the verifier reads what was asked.
    pub(super) reads_question: bool,
}

/// An answer with its text and what counts of it.
#[derive(Clone, Debug)]
pub(super) struct Judgement {
    pub(super) text: String,
    pub(super) verdict: Verdict,
    pub(super) measured: Measured,
}

/// Answers that wait for their judgement, and those that have one.
struct Desk {
    /// Index among the requests, and the tokens.
    waiting: Vec<(usize, Vec<u32>)>,
    /// By index among the requests.
    judged: Vec<Option<Judgement>>,
    /// Whether a thread takes what is waiting.
    is_manned: bool,
    error: Option<OperatorError>,
}

/// Runs `sample` and judges the answers that its watch is told of, side by side. `row_of` is the prompt of a request. The judgements
/// are in the order of the requests, whatever the order in which answers came to an end.
///
/// # Errors
/// Of `sample`, or of the verifier, which breaks sampling off.
pub(super) fn judge_while<T>(
    bench: &Bench<'_>,
    requests: usize,
    row_of: &RowOf<'_>,
    view: &dyn StageView,
    tell: &mut dyn FnMut(GenerationProgress),
    sample: impl FnOnce(&mut dyn GenerationWatch) -> Result<T, OperatorError>,
) -> Result<(T, Vec<Judgement>), OperatorError> {
    let desk = Mutex::new(Desk {
        waiting: Vec::new(),
        judged: vec![None; requests],
        is_manned: false,
        error: None,
    });
    // Sampling stays on this thread, which owns the device.
    let is_after = bench.verifier.has_model();
    let sampled = rayon::in_place_scope(|scope| {
        let mut watch = Watch {
            desk: &desk,
            view,
            tell,
            man: &|| {
                if !is_after {
                    scope.spawn(|_| work(&desk, bench, row_of, view));
                }
            },
        };
        sample(&mut watch)
    });
    if is_after && sampled.is_ok() {
        work(&desk, bench, row_of, view);
    }
    let desk = desk.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = desk.error {
        return Err(error);
    }
    let sampled = sampled?;
    let judged: Option<Vec<Judgement>> = desk.judged.into_iter().collect();
    let judged = judged.ok_or_else(|| {
        OperatorError::Internal("the policy did not tell of every completion".to_owned())
    })?;
    Ok((sampled, judged))
}

/// Puts answers on the desk as they come to an end.
struct Watch<'a> {
    desk: &'a Mutex<Desk>,
    view: &'a dyn StageView,
    tell: &'a mut dyn FnMut(GenerationProgress),
    /// Has a thread take what is waiting.
    man: &'a dyn Fn(),
}

impl GenerationWatch for Watch<'_> {
    fn progress(&mut self, progress: GenerationProgress) -> ControlFlow<()> {
        (self.tell)(progress);
        if self.view.is_cancelled() || locked(self.desk, |desk| desk.error.is_some()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn finished(&mut self, index: usize, completion: &Completion) {
        let was_manned = locked(self.desk, |desk| {
            desk.waiting.push((index, completion.token_ids.clone()));
            std::mem::replace(&mut desk.is_manned, true)
        });
        if !was_manned {
            (self.man)();
        }
    }
}

/// Takes everything that waits, judges it in one go, and looks again: the slower the verifier, the more it gets at a time.
fn work(desk: &Mutex<Desk>, bench: &Bench<'_>, row_of: &RowOf<'_>, view: &dyn StageView) {
    loop {
        let mut taken = locked(desk, |desk| {
            let taken = std::mem::take(&mut desk.waiting);
            desk.is_manned = !taken.is_empty();
            taken
        });
        if taken.is_empty() {
            return;
        }
        // Answers to one prompt, whose gold answer is then read once, side by side.
        taken.sort_unstable_by_key(|(index, _)| *index);
        let judged = judge(bench, &taken, row_of, view);
        locked(desk, |desk| match judged {
            Ok(judged) => {
                for ((index, _), judgement) in taken.into_iter().zip(judged) {
                    desk.judged[index] = Some(judgement);
                }
            }
            Err(error) => {
                desk.error.get_or_insert(error);
            }
        });
    }
}

fn judge(
    bench: &Bench<'_>,
    taken: &[(usize, Vec<u32>)],
    row_of: &RowOf<'_>,
    view: &dyn StageView,
) -> Result<Vec<Judgement>, OperatorError> {
    let read = |(index, token_ids): &(usize, Vec<u32>)| {
        let row = row_of(*index);
        let decoded = bench.processor.decode(token_ids);
        let mut text = decoded.map_err(|message| row.fault(&message))?;
        cut(&mut text, bench.stop);
        let asked = if bench.reads_question {
            row.question()
        } else {
            String::new()
        };
        let measured = bench.score.measure(&text, token_ids);
        Ok((row, text, asked, measured))
    };
    let read: Vec<(&PromptRow, String, String, Measured)> = taken
        .par_iter()
        .map(read)
        .collect::<Result<_, OperatorError>>()?;
    let questions: Vec<Question<'_>> = read
        .iter()
        .map(|(row, text, asked, _)| Question {
            prompt_id: &row.prompt_id,
            question: asked,
            gold: row.answer.as_deref(),
            text,
        })
        .collect();
    let judged = bench.verifier.judge(&questions, view)?;
    let together = read.into_iter().zip(judged);
    Ok(together
        .map(|((_, text, _, measured), judged)| Judgement {
            text,
            verdict: judged.verdict,
            measured,
        })
        .collect())
}

/// A panic of a judging thread ends the scope with it, so a poisoned lock is never looked into for long.
fn locked<T>(desk: &Mutex<Desk>, look: impl FnOnce(&mut Desk) -> T) -> T {
    look(&mut desk.lock().unwrap_or_else(PoisonError::into_inner))
}
