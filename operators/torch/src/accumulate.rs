//! Micro-batches of a call, and the sum of their gradients.
//!
//! On the CPU several threads run micro-batches at the same time, each with a buffer of its own, which are added in the order of the
//! micro-batches: the number of threads changes no result. On a GPU, and where there is nothing to be spoilt, gradients go straight to those
//! of the step.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use engine_core::error::ModelError;
use engine_core::policy::{Loss, LossReport, TrainSequence};

use crate::completion::MicroBatch;
use crate::model::Model;
use crate::optimizer::Gradients;
use crate::parallel;
use crate::parameters::Parameters;
use crate::train::{self, Learning, Prepared};

/// What is learnt in a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lesson<'a> {
    pub(crate) batches: &'a [MicroBatch],
    pub(crate) sequences: &'a [TrainSequence],
    pub(crate) loss: Loss,
    pub(crate) recompute: bool,
}

impl<'a> Lesson<'a> {
    fn learning(self, model: &'a Model, weights: &'a Parameters) -> Learning<'a> {
        Learning {
            model,
            weights,
            loss: self.loss,
            recompute: self.recompute,
        }
    }
}

/// Adds the gradients of a call's micro-batches to those of the step.
///
/// # Errors
/// [`ModelError::NonFinite`] for a loss that is not finite. The gradients are then as before the call; on a GPU those of the step are
/// lost.
pub(crate) fn learn(
    workers: Vec<(Model, Parameters)>,
    lesson: Lesson<'_>,
    gradients: &mut Gradients,
) -> Result<LossReport, ModelError> {
    let on_gpu = workers.iter().any(|(model, _)| model.device.is_cuda());
    if on_gpu || lesson.batches.len() == 1 && gradients.is_empty() {
        return straight(&workers, lesson, gradients);
    }
    let turns = Turns::default();
    let mut total = LossReport::default();
    parallel::run(
        workers,
        lesson.batches.len(),
        |worker, job, _| {
            let turn = Turn {
                turns: &turns,
                is_done: false,
            };
            let mut own = Gradients::new(&worker.1);
            let report = one(worker, lesson, job, &mut own)?;
            own.settle(&worker.1);
            turn.add(job, own)?;
            Ok(report)
        },
        |(): ()| true,
        |_, report| total.add(&report),
    )?;
    // The step's gradients change only when every micro-batch has a finite loss.
    let sum = turns.state.into_inner();
    gradients.merge(sum.unwrap_or_else(PoisonError::into_inner).total);
    Ok(total)
}

fn one(
    (model, weights): &(Model, Parameters),
    lesson: Lesson<'_>,
    job: usize,
    gradients: &mut Gradients,
) -> Result<LossReport, ModelError> {
    let prepared = Prepared::new(model, &lesson.batches[job], lesson.sequences)?;
    let learning = lesson.learning(model, weights);
    train::forward_backward(&learning, &prepared, gradients, &mut || {})
}

/// One micro-batch after the other. While one is under way the next is brought to the device, which then never waits for the host.
fn straight(
    workers: &[(Model, Parameters)],
    lesson: Lesson<'_>,
    gradients: &mut Gradients,
) -> Result<LossReport, ModelError> {
    let (model, weights) = workers.first().expect("there is a worker");
    if gradients.is_empty() {
        *gradients = Gradients::new(weights);
    }
    let learning = lesson.learning(model, weights);
    let mut batches = lesson.batches.iter();
    let mut prepare = || {
        let batch = batches.next()?;
        Some(Prepared::new(model, batch, lesson.sequences))
    };
    let mut next = prepare();
    let mut total = LossReport::default();
    while let Some(prepared) = next.take() {
        let done = prepared.and_then(|prepared| {
            let mut meanwhile = || next = prepare();
            train::forward_backward(&learning, &prepared, gradients, &mut meanwhile)
        });
        match done {
            Ok(report) => total.add(&report),
            Err(error) => {
                *gradients = Gradients::default();
                return Err(error);
            }
        }
    }
    gradients.settle(weights);
    Ok(total)
}

/// The sum, to which jobs add in their order.
#[derive(Debug, Default)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    total: Gradients,
    failed: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job that will add. One that ends without it lets those that wait for it go.
struct Turn<'a> {
    turns: &'a Turns,
    is_done: bool,
}

impl Turn<'_> {
    /// Adds when all jobs before have added.
    fn add(mut self, job: usize, own: Gradients) -> Result<(), ModelError> {
        let waits = |state: &mut State| state.next != job && !state.failed;
        let mut state = (self.turns.changed)
            .wait_while(self.turns.lock(), waits)
            .unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            return Err(ModelError::Interrupted);
        }
        state.total.merge(own);
        state.next += 1;
        self.is_done = true;
        drop(state);
        self.turns.changed.notify_all();
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.turns.lock().failed = true;
            self.turns.changed.notify_all();
        }
    }
}
