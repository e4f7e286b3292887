//! The threads of a map stage and how they end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine_core::operator::StageView as _;
use engine_core::{MapOperator, MapTask, OperatorConfig, OperatorError, PortType, StageContext};
use engine_store::{Chunk, Store};

use super::budget::{ByteBudget, Share};
use super::compute::{Computer, Request};
use super::gather::Gather;
use super::key::PartKeys;
use super::lookup::ReplayBase;
use super::progress::MapProgress;
use super::view::MapView;
use crate::failure::Failure;
use crate::io::StoreIo;
use crate::stage::{StageDone, StageJob};

/// Chunks that wait for a lane: the budget bounds their bytes, this their number.
const WAITING: usize = 64;
/// Lanes beyond the threads that compute: they look up, encode and commit meanwhile.
const SPARE_LANES: usize = 2;
/// Lanes at least, where every operation of the store is a journey.
const REMOTE_LANES: usize = 12;

/// A map stage that runs.
pub(super) struct Driver<'a> {
    pub(super) config: &'a dyn OperatorConfig,
    pub(super) operator: &'a dyn MapOperator,
    pub(super) context: &'a StageContext<'a>,
    pub(super) io: &'a StoreIo<'a>,
    pub(super) job: &'a StageJob,
    pub(super) slices: Vec<std::ops::Range<u32>>,
    /// Rows in all, where they are known beforehand.
    pub(super) rows: Option<u64>,
    pub(super) keys: &'a PartKeys,
    pub(super) base: ReplayBase<'a>,
    pub(super) progress: &'a MapProgress<'a>,
    pub(super) view: &'a MapView<'a>,
    pub(super) begun: Instant,
    pub(super) state: State<'a>,
}

/// What the threads of a stage share and change.
pub(super) struct State<'a> {
    pub(super) budget: ByteBudget,
    /// The operator, once it was needed.
    pub(super) task: Mutex<Option<Arc<dyn MapTask + 'a>>>,
    /// Chunks from this one on are not computed any more.
    stop_at: AtomicUsize,
    /// Whether the input was read to its end.
    is_read: AtomicBool,
    /// Why the stage ends early: the error of the first chunk that has one.
    error: Mutex<Option<(usize, OperatorError)>>,
    pub(super) gather: Mutex<Gather>,
}

impl State<'_> {
    pub(super) fn new(memory_budget: u64) -> Self {
        Self {
            budget: ByteBudget::new(memory_budget),
            task: Mutex::new(None),
            stop_at: AtomicUsize::new(usize::MAX),
            is_read: AtomicBool::new(false),
            error: Mutex::new(None),
            gather: Mutex::default(),
        }
    }
}

/// A chunk on its way to a lane, with its share of the budget.
pub(super) struct Work<'a> {
    index: usize,
    chunk: Chunk,
    _share: Share<'a>,
}

impl<'a> Driver<'a> {
    /// Computes and commits all parts.
    pub(super) fn run(&self) -> Result<(), OperatorError> {
        let is_one_by_one = self.context.backend.is_some();
        std::thread::scope(|scope| {
            let (sender, chunks) = sync_channel::<Work<'_>>(WAITING);
            let span = tracing::Span::current();
            let reader_span = span.clone();
            scope.spawn(move || reader_span.in_scope(|| self.read_all(&sender)));
            let (requests, inbox) = channel::<Request>();
            let chunks = Arc::new(Mutex::new(chunks));
            for lane in 0..self.lanes(is_one_by_one) {
                let computer = if is_one_by_one {
                    Computer::Caller(requests.clone())
                } else {
                    Computer::Pool
                };
                let (chunks, span) = (Arc::clone(&chunks), span.clone());
                scope.spawn(move || {
                    span.in_scope(|| self.serve_lane(lane as u32, &chunks, &computer));
                });
            }
            drop((requests, chunks));
            for request in inbox {
                self.answer(&request);
            }
        });
        // What the operator holds goes before anything is told about the end, which it may have a word on.
        *self
            .state
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        tracing::debug!(bytes = self.state.budget.most(), "most input rows held");
        let error = self
            .state
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match error {
            Some((_, error)) => Err(error),
            None if self.io.is_cancelled() && !self.is_whole() => Err(OperatorError::Interrupted),
            None => Ok(()),
        }
    }

    /// Whether every chunk was computed.
    pub(super) fn is_whole(&self) -> bool {
        self.state.is_read.load(Ordering::SeqCst)
            && self.state.stop_at.load(Ordering::SeqCst) == usize::MAX
    }

    fn lanes(&self, is_one_by_one: bool) -> usize {
        let computing = if is_one_by_one { 1 } else { self.job.threads };
        let lanes = computing + SPARE_LANES;
        if self.store().local_root().is_some() || !self.store().is_shared() {
            lanes
        } else {
            lanes.max(REMOTE_LANES)
        }
    }

    fn read_all<'s>(&'s self, sender: &SyncSender<Work<'s>>) {
        let mut index = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.read_chunks(|chunk| {
                let has_ended = || self.is_ended();
                let Some(share) = self.state.budget.take(chunk.bytes, has_ended) else {
                    return false;
                };
                let work = Work {
                    index,
                    chunk,
                    _share: share,
                };
                index += 1;
                // The lanes are gone only when the stage is.
                sender.send(work).is_ok()
            })
        }));
        match result {
            Ok(Ok(is_whole)) => self.state.is_read.store(is_whole, Ordering::SeqCst),
            Ok(Err(error)) => self.fail(index, error),
            Err(payload) => self.fail(index, panicked(payload.as_ref())),
        }
    }

    fn serve_lane(&self, lane: u32, chunks: &Mutex<Receiver<Work<'_>>>, computer: &Computer) {
        loop {
            let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(work) = next else { return };
            if self.io.is_cancelled() {
                self.fail(work.index, OperatorError::Interrupted);
            }
            if work.index >= self.state.stop_at.load(Ordering::SeqCst) {
                continue;
            }
            let result = catch_unwind(AssertUnwindSafe(|| {
                self.do_chunk(work.index, &work.chunk, lane, computer)
            }));
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.fail(work.index, error),
                Err(payload) => self.fail(work.index, panicked(payload.as_ref())),
            }
        }
    }

    /// The stage ends with an error; parts that are being computed are broken off.
    pub(super) fn fail(&self, index: usize, error: OperatorError) {
        self.stop(index);
        self.view.is_given_up.store(true, Ordering::SeqCst);
        let mut first = self
            .state
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_interruption = matches!(error, OperatorError::Interrupted);
        let is_first = first.as_ref().is_none_or(|(other, known)| {
            // An interruption explains nothing where there is an error.
            match (matches!(known, OperatorError::Interrupted), is_interruption) {
                (true, _) => true,
                (false, is_interruption) => !is_interruption && index < *other,
            }
        });
        if is_first {
            *first = Some((index, error));
        }
    }

    /// Chunks from this one on are of no use any more.
    pub(super) fn stop(&self, index: usize) {
        self.state.stop_at.fetch_min(index, Ordering::SeqCst);
    }

    /// Whether it is of no use to read on.
    pub(super) fn is_ended(&self) -> bool {
        self.state.stop_at.load(Ordering::SeqCst) != usize::MAX || self.io.is_cancelled()
    }

    pub(super) fn store(&self) -> &'a Store {
        self.io.store()
    }

    /// Output tables of the operator.
    pub(super) fn ports(&self) -> &'a [(String, PortType)] {
        let ports = self.io.ports();
        match ports.split_last() {
            Some(((name, _), own)) if self.has_quarantine() && name == super::quarantine::PORT => {
                own
            }
            _ => ports,
        }
    }

    pub(super) fn has_quarantine(&self) -> bool {
        self.job.quarantine.is_some()
    }

    /// Puts the datasets together.
    pub(super) fn finish(self) -> Result<StageDone, OperatorError> {
        let gather = std::mem::take(
            &mut *self
                .state
                .gather
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        gather.finish(&self)
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> OperatorError {
    OperatorError::Internal(Failure::panic_text(payload))
}
