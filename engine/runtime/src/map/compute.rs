//! Where an operator computes: on rayon's threads, or on the one thread that may enter a model library.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError};

use arrow::record_batch::RecordBatch;
use engine_core::{MapOutput, MapPart, MapTask, OperatorError};

use super::driver::Driver;
use crate::failure::Failure;

/// Where parts are computed.
pub(super) enum Computer {
    /// Side by side, on rayon's threads.
    Pool,
    /// One by one, on the thread that runs the stage.
    Caller(Sender<Request>),
}

/// A part to compute.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) rows: RecordBatch,
    pub(super) first_row: u64,
    pub(super) slices: Vec<Range<u32>>,
}

/// A part to compute and where the result goes.
pub(super) struct Request {
    job: Job,
    span: tracing::Span,
    reply: SyncSender<Result<MapOutput, OperatorError>>,
}

impl<'a> Driver<'a> {
    /// Has a part computed, wherever that may be.
    pub(super) fn apply(&self, job: Job, computer: &Computer) -> Result<MapOutput, OperatorError> {
        let span = tracing::Span::current();
        match computer {
            Computer::Pool => {
                // Started outside the pool: a thread of it that waits inside `start` may take up other parts meanwhile,
                // and these would wait for the start.
                let task = self.task()?;
                rayon::scope(|_| span.in_scope(|| task.apply(&job.part())))
            }
            Computer::Caller(requests) => {
                let (reply, answer) = sync_channel(1);
                let gone = || OperatorError::Interrupted;
                let request = Request { job, span, reply };
                requests.send(request).map_err(|_| gone())?;
                answer.recv().map_err(|_| gone())?
            }
        }
    }

    /// Computes a part on this thread.
    pub(super) fn answer(&self, request: &Request) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let task = self.task()?;
            request.span.in_scope(|| task.apply(&request.job.part()))
        }));
        let result = result.unwrap_or_else(|payload| {
            Err(OperatorError::Internal(Failure::panic_text(
                payload.as_ref(),
            )))
        });
        // The lane is gone only when the stage is.
        let _ = request.reply.send(result);
    }

    /// The operator, started when the first part is missing.
    fn task(&self) -> Result<Arc<dyn MapTask + 'a>, OperatorError> {
        let mut task = self
            .state
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.as_ref() {
            return Ok(Arc::clone(task));
        }
        if self.is_ended() {
            // It could not be started for another part.
            return Err(OperatorError::Interrupted);
        }
        let started = Arc::from(self.operator.start(self.context, self.view)?);
        Ok(Arc::clone(task.insert(started)))
    }
}

impl Job {
    fn part(&self) -> MapPart<'_> {
        MapPart {
            rows: &self.rows,
            first_row: self.first_row,
            slices: &self.slices,
        }
    }
}
