//! The one thread that owns the model: takes requests over a channel, steps the running batch, sends tokens back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

use engine_core::policy::{
    GenerationSession, RequestId, SessionLimits, SessionRequest, SessionToken,
};
use engine_core::{ModelError, Policy};

use super::fault::ApiFault;

/// Faults of the device in a row after which there is no use in going on.
const FAULTS: u32 = 3;

/// Something to do for the thread.
pub(super) enum Command {
    Submit {
        key: u64,
        choice: usize,
        request: SessionRequest,
        replies: Sender<Reply>,
    },
    Cancel(u64),
    Stop,
}

/// Something that the thread says about a request.
#[derive(Debug)]
pub(super) enum Reply {
    Token(usize, SessionToken),
    /// The request does not fit the model.
    Refused(String),
    /// The model failed.
    Failed(String),
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) completion_tokens: AtomicU64,
    pub(super) cancelled: AtomicU64,
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Engine {
    commands: Mutex<Sender<Command>>,
    next: AtomicU64,
    /// Sequences that were let in and have not ended.
    load: AtomicUsize,
    limit: usize,
    is_over: AtomicBool,
    pub(super) counters: Counters,
}

/// Room for some sequences. It goes back when dropped, and then what is left of them is cancelled.
#[derive(Debug)]
pub(super) struct Ticket {
    engine: Arc<Engine>,
    size: usize,
    keys: Vec<Option<u64>>,
    replies: (Sender<Reply>, Receiver<Reply>),
}

impl Engine {
    /// A way to a thread that is yet to run, and what that thread takes. At most `limit` sequences are let in.
    pub(super) fn new(limit: usize) -> (Arc<Self>, Receiver<Command>) {
        let (commands, receiver) = channel();
        let engine = Self {
            commands: Mutex::new(commands),
            next: AtomicU64::new(0),
            load: AtomicUsize::new(0),
            limit,
            is_over: AtomicBool::new(false),
            counters: Counters::default(),
        };
        (Arc::new(engine), receiver)
    }

    /// Sequences that wait or are decoded.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::SeqCst)
    }

    /// Makes room for so many sequences.
    ///
    /// # Errors
    /// When too many are there already.
    pub(super) fn admit(engine: &Arc<Self>, size: usize) -> Result<Ticket, ApiFault> {
        if size > engine.limit {
            return Err(ApiFault::invalid(format!(
                "the request asks for {size} answers, and this server takes {} at a time",
                engine.limit
            )));
        }
        let is_free = |load: usize| (load + size <= engine.limit).then_some(load + size);
        let taken = engine
            .load
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_free);
        taken.map_err(|_| ApiFault::busy())?;
        Ok(Ticket {
            engine: Arc::clone(engine),
            size,
            keys: Vec::new(),
            replies: channel(),
        })
    }

    /// The thread has ended.
    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// Whether nothing will be answered any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Asks the thread to end.
    pub(super) fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that has ended has dropped all that it had; who waits sees that.
        let _ = commands.send(command);
    }
}

impl Ticket {
    /// Hands in the next sequence; its tokens come with its number, from 0.
    pub(super) fn submit(&mut self, request: SessionRequest) {
        let key = self.engine.next.fetch_add(1, Ordering::Relaxed);
        let choice = self.keys.len();
        self.keys.push(Some(key));
        self.engine.send(Command::Submit {
            key,
            choice,
            request,
            replies: self.replies.0.clone(),
        });
    }

    /// What the thread says.
    pub(super) fn replies(&self) -> &Receiver<Reply> {
        &self.replies.1
    }

    /// The sequence has ended by itself.
    pub(super) fn ended(&mut self, choice: usize) {
        self.keys[choice] = None;
    }

    /// Ends a sequence.
    pub(super) fn cancel(&mut self, choice: usize) {
        if let Some(key) = self.keys[choice].take() {
            self.engine.send(Command::Cancel(key));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let open: Vec<usize> = (0..self.keys.len())
            .filter(|choice| self.keys[*choice].is_some())
            .collect();
        let counters = &self.engine.counters;
        (counters.cancelled).fetch_add(open.len() as u64, Ordering::Relaxed);
        for choice in open {
            self.cancel(choice);
        }
        self.engine.load.fetch_sub(self.size, Ordering::SeqCst);
    }
}

/// Sequences of the running batch.
#[derive(Default)]
struct Live {
    by_id: BTreeMap<RequestId, Entry>,
    ids: BTreeMap<u64, RequestId>,
}

struct Entry {
    key: u64,
    choice: usize,
    replies: Sender<Reply>,
}

/// Runs the batch until it is told to stop.
///
/// # Errors
/// When the model fails again and again.
pub(super) fn run(
    policy: &mut dyn Policy,
    limits: SessionLimits,
    commands: &Receiver<Command>,
) -> Result<(), ModelError> {
    let mut faults = 0;
    loop {
        let mut session = policy.session(limits)?;
        let mut live = Live::default();
        let fault = loop {
            if live.take_commands(&mut *session, commands).is_break() {
                return Ok(());
            }
            match session.step() {
                Ok(tokens) => {
                    if !tokens.is_empty() {
                        faults = 0;
                    }
                    live.pass_on(&mut *session, tokens);
                }
                Err(error) => break error,
            }
        };
        tracing::error!("the model failed: {fault}");
        for (_, entry) in std::mem::take(&mut live.by_id) {
            let _ = entry.replies.send(Reply::Failed(fault.to_string()));
        }
        faults += 1;
        if faults >= FAULTS {
            return Err(fault);
        }
    }
}

impl Live {
    /// Does what was asked for; waits when there is nothing else to do. Breaks when the end was asked for.
    fn take_commands(
        &mut self,
        session: &mut dyn GenerationSession,
        commands: &Receiver<Command>,
    ) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        loop {
            let command = if self.by_id.is_empty() && session.pending() == 0 {
                commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                commands.try_recv()
            };
            match command {
                Ok(Command::Submit {
                    key,
                    choice,
                    request,
                    replies,
                }) => match session.submit(request) {
                    Ok(id) => {
                        self.ids.insert(key, id);
                        let entry = Entry {
                            key,
                            choice,
                            replies,
                        };
                        self.by_id.insert(id, entry);
                    }
                    Err(error) => {
                        // Whoever asked may have gone.
                        let _ = replies.send(Reply::Refused(error.to_string()));
                    }
                },
                Ok(Command::Cancel(key)) => self.cancel(session, key),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Break(()),
                Err(TryRecvError::Empty) => return Continue(()),
            }
        }
    }

    fn cancel(&mut self, session: &mut dyn GenerationSession, key: u64) {
        if let Some(id) = self.ids.remove(&key) {
            self.by_id.remove(&id);
            session.cancel(id);
        }
    }

    fn pass_on(&mut self, session: &mut dyn GenerationSession, tokens: Vec<SessionToken>) {
        for token in tokens {
            let (id, is_last) = (token.id, token.finish.is_some());
            // What was cancelled may still have a token on its way.
            let Some(entry) = self.by_id.get(&id) else {
                continue;
            };
            let key = entry.key;
            let is_heard = entry
                .replies
                .send(Reply::Token(entry.choice, token))
                .is_ok();
            if is_last {
                self.ids.remove(&key);
                self.by_id.remove(&id);
            } else if !is_heard {
                self.cancel(session, key);
            }
        }
    }
}
