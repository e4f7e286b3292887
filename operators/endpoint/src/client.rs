//! Asks many questions at a time: one loop that hands them out, collects answers, and watches the servers.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, future::BoxFuture};

use crate::answer::Answer;
use crate::config::Endpoint;
use crate::exchange::{Outcome, Wire};
use crate::log::AnswerLog;
use crate::pace::Pace;
use crate::question::{Dialect, Question, Sampling};
use crate::server::{Server, backoff};
use crate::{ApiKey, EndpointError};

/// How often the loop looks at the clock and at the wish to stop.
const TICK: Duration = Duration::from_millis(50);
/// Answers that are remembered.
const REMEMBERED: usize = 65_536;

/// Asks the servers of one configuration. Use one for all that a stage asks, so that it knows them.
#[derive(Debug)]
pub struct Client {
    config: Endpoint,
    wire: Wire,
    state: Mutex<State>,
}

/// What is known from one call to the next.
#[derive(Debug)]
struct State {
    servers: Vec<Server>,
    pace: Pace,
    /// Finished answers by the content of their request.
    answers: HashMap<blake3::Hash, Answer>,
    tally: Tally,
    end: Option<EndpointError>,
    /// The same answers on the disk.
    log: Option<AnswerLog>,
    /// Whether something was not answered that may be asked again.
    is_open: bool,
}

/// What was asked so far, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Answers that came.
    pub answers: u64,
    /// Answers that were known from equal questions.
    pub known: u64,
    /// Requests that were sent again.
    pub again: u64,
    /// Tokens of prompts, as the servers count them.
    pub prompt_tokens: u64,
    /// Tokens of answers, as the servers count them.
    pub completion_tokens: u64,
    /// Price of these tokens, where prices are given.
    pub cost: Option<f64>,
}

/// What came of some questions.
#[derive(Debug)]
pub struct Answers {
    /// In the order of the questions: the answer, or why there is none.
    pub answers: Vec<Result<Answer, String>>,
    /// Set when the questions could not all be asked: the servers are gone, or refuse everything.
    pub end: Option<EndpointError>,
}

/// A question on its way.
struct Job {
    index: usize,
    /// How often a server failed it.
    faults: u32,
    pauses: ExponentialBackoff,
    due: Instant,
}

/// Something that the loop waits for.
enum Event {
    Attempt(Attempt),
    Probe {
        server: usize,
        begun: Instant,
        outcome: Outcome,
    },
}

/// An attempt that is over.
struct Attempt {
    job: Job,
    server: usize,
    begun: Instant,
    /// What the question was put in.
    dialect: Dialect,
    content: blake3::Hash,
    /// Tokens that it was taken for.
    guess: f64,
    /// None when the server was given up meanwhile.
    outcome: Option<Outcome>,
}

/// One call.
struct Call<'a> {
    client: &'a Client,
    state: &'a mut State,
    questions: &'a [Question],
    sampling: &'a Sampling,
    answers: Vec<Option<Result<Answer, String>>>,
    waiting: VecDeque<Job>,
    running: FuturesUnordered<BoxFuture<'a, Event>>,
    aborts: HashMap<usize, (usize, AbortHandle)>,
}

impl Client {
    /// A client that has asked nothing yet.
    ///
    /// # Errors
    /// When the configuration is wrong or the key's variable is not set.
    pub fn new(config: &Endpoint) -> Result<Self, EndpointError> {
        let key = config
            .api_key_env
            .as_deref()
            .map(ApiKey::from_environment)
            .transpose()?;
        Self::with_key(config, key)
    }

    /// A client with this key.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub fn with_key(config: &Endpoint, key: Option<ApiKey>) -> Result<Self, EndpointError> {
        if let Some((_, message)) = config.faults().into_iter().next() {
            return Err(EndpointError::Setting(message));
        }
        let state = State {
            servers: config.urls().map(Server::new).collect(),
            pace: Pace::new(config),
            answers: HashMap::new(),
            tally: Tally {
                cost: config.price.map(|_| 0.0),
                ..Tally::default()
            },
            end: None,
            log: None,
            is_open: false,
        };
        Ok(Self {
            wire: Wire::new(config, key)?,
            config: config.clone(),
            state: Mutex::new(state),
        })
    }

    /// Keeps answers in a folder until this client is done with all that it was asked, so that another process need not ask
    /// again what this one did not come to use. Without the folder everything is as well, but for that.
    pub fn keep_answers(&self, folder: &Path) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        match AnswerLog::open(folder, &self.config, &mut state.answers, REMEMBERED) {
            Ok(log) => state.log = Some(log),
            Err(error) => tracing::warn!("answers are not kept in {}: {error}", folder.display()),
        }
    }

    /// Asks every question and waits for the answers. `watch` is told how far it is some times a second, and may break off.
    ///
    /// # Errors
    /// When the caller breaks off, or an earlier call found that no server answers.
    pub fn ask(
        &self,
        questions: &[Question],
        sampling: &Sampling,
        watch: &mut dyn FnMut(&Tally) -> ControlFlow<()>,
    ) -> Result<Answers, EndpointError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| EndpointError::Setting(format!("could not start to ask: {error}")))?;
        let now = Instant::now();
        let job = |index| Job {
            index,
            faults: 0,
            pauses: backoff(),
            due: now,
        };
        let call = Call {
            client: self,
            state: &mut state,
            questions,
            sampling,
            answers: questions.iter().map(|_| None).collect(),
            waiting: (0..questions.len()).map(job).collect(),
            running: FuturesUnordered::new(),
            aborts: HashMap::new(),
        };
        let outcome = runtime.block_on(call.run(watch));
        let is_whole = |answers: &Answers| answers.answers.iter().all(Result::is_ok);
        state.is_open |= !outcome.as_ref().is_ok_and(is_whole);
        outcome
    }

    /// What was asked so far, in all calls.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tally
    }

    /// What all calls together took, for the record of a run; none while nothing was answered.
    #[must_use]
    pub fn account(&self) -> Option<String> {
        let tally = self.tally();
        if tally.answers + tally.known == 0 {
            return None;
        }
        let known = match tally.known {
            0 => String::new(),
            known => format!(", {known} more known from equal questions"),
        };
        let name = self.config.name();
        Some(format!(
            "asked {name}: {} answers{known}, {tally}",
            tally.answers
        ))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.config.give_up_seconds))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = state.log.as_ref().filter(|_| !state.is_open) {
            log.remove();
        }
    }
}

impl Call<'_> {
    async fn run(
        mut self,
        watch: &mut dyn FnMut(&Tally) -> ControlFlow<()>,
    ) -> Result<Answers, EndpointError> {
        for server in &mut self.state.servers {
            // Between two calls nobody listened.
            server.lives();
        }
        let mut told = Instant::now();
        while self.answers.iter().any(Option::is_none) {
            if told.elapsed() >= TICK {
                told = Instant::now();
                if watch(&self.state.tally).is_break() {
                    return Err(EndpointError::Interrupted);
                }
            }
            if let Some(end) = self.watch_servers() {
                return Ok(self.finish(Some(end)));
            }
            self.hand_out();
            let tick = tokio::time::sleep(TICK);
            let event = if self.running.is_empty() {
                tick.await;
                None
            } else {
                tokio::select! {
                    event = self.running.next() => event,
                    () = tick => None,
                }
            };
            if let Some(event) = event
                && let Err(end) = self.take(event)
            {
                return Ok(self.finish(Some(end)));
            }
        }
        let _ = watch(&self.state.tally);
        Ok(self.finish(None))
    }

    fn finish(self, end: Option<EndpointError>) -> Answers {
        for server in &mut self.state.servers {
            (server.open, server.is_probed) = (0, false);
        }
        self.state.end.clone_from(&end);
        let why = end.as_ref().map(ToString::to_string).unwrap_or_default();
        let answers = self.answers.into_iter();
        Answers {
            answers: answers
                .map(|answer| answer.unwrap_or_else(|| Err(why.clone())))
                .collect(),
            end,
        }
    }

    /// Asks servers whether they live, and gives up those that do not; an error when none is left.
    fn watch_servers(&mut self) -> Option<EndpointError> {
        let patience = self.client.patience();
        for (index, server) in self.state.servers.iter_mut().enumerate() {
            if server.give_up(patience) {
                tracing::warn!("gave up a server: {}", server.obituary());
                // Its questions go back to the queue, for the others.
                for (_, abort) in self.aborts.values().filter(|(at, _)| *at == index) {
                    abort.abort();
                }
            }
            if server.wants_probe() {
                server.is_probed = true;
                let (url, begun) = (server.url.clone(), Instant::now());
                let wire = &self.client.wire;
                let probe = async move {
                    Event::Probe {
                        server: index,
                        begun,
                        outcome: wire.models(&url).await,
                    }
                };
                self.running.push(probe.boxed());
            }
        }
        let servers = &self.state.servers;
        servers.iter().all(|server| server.is_dead).then(|| {
            let said: Vec<String> = servers.iter().map(Server::obituary).collect();
            let seconds = patience.as_secs();
            EndpointError::Gone(format!(
                "no server has answered for {seconds} s; {}; see whether it runs, then run the same command again: it goes on with \
                 what is missing",
                said.join("; ")
            ))
        })
    }

    /// Gives questions that are due to servers that have room.
    fn hand_out(&mut self) {
        let now = Instant::now();
        for _ in 0..self.waiting.len() {
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            if job.due > now {
                self.waiting.push_back(job);
                continue;
            }
            let room = self.client.config.concurrency as usize;
            let servers = self.state.servers.iter().enumerate();
            let free = servers
                .filter(|(_, server)| server.has_room(room))
                .min_by_key(|(_, server)| server.open);
            let Some((index, _)) = free else {
                self.waiting.push_front(job);
                return;
            };
            if let Err(job) = self.attempt(job, index) {
                self.waiting.push_front(job);
                return;
            }
        }
    }

    /// Sends a question to a server; gives it back when no request may begin yet.
    fn attempt(&mut self, job: Job, index: usize) -> Result<(), Job> {
        let server = &mut self.state.servers[index];
        let question = &self.questions[job.index];
        let dialect = server.dialect;
        let body = dialect.body(&self.client.config.model, question, self.sampling);
        let content = blake3::hash(body.as_bytes());
        if let Some(answer) = self.state.answers.get(&content) {
            self.answers[job.index] = Some(Ok(answer.clone()));
            self.state.tally.known += 1;
            return Ok(());
        }
        let Some(guess) = self.state.pace.take(body.len(), self.sampling.max_tokens) else {
            return Err(job);
        };
        server.open += 1;
        let (url, begun) = (server.url.clone(), Instant::now());
        let wire = &self.client.wire;
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.insert(job.index, (index, abort));
        let exchange = Abortable::new(async move { wire.chat(&url, body).await }, registration);
        let attempt = exchange.map(move |outcome| {
            Event::Attempt(Attempt {
                job,
                server: index,
                begun,
                dialect,
                content,
                guess,
                outcome: outcome.ok(),
            })
        });
        self.running.push(attempt.boxed());
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), EndpointError> {
        match event {
            Event::Probe {
                server,
                begun,
                outcome,
            } => {
                let server = &mut self.state.servers[server];
                server.is_probed = false;
                match outcome {
                    Outcome::Fatal(message) => return Err(EndpointError::Refused(message)),
                    Outcome::Fault { message, .. } => {
                        server.failed(begun, message);
                        server.pause(Duration::from_millis(500));
                    }
                    _ => {
                        server.is_checked = true;
                        server.lives();
                    }
                }
                Ok(())
            }
            Event::Attempt(attempt) => {
                self.aborts.remove(&attempt.job.index);
                self.state.servers[attempt.server].open -= 1;
                self.settle(attempt)
            }
        }
    }

    fn settle(&mut self, attempt: Attempt) -> Result<(), EndpointError> {
        let mut job = attempt.job;
        let had = match &attempt.outcome {
            Some(Outcome::Answer(answer)) => {
                Some(u64::from(answer.prompt_tokens) + u64::from(answer.completion_tokens))
            }
            _ => None,
        };
        self.state.pace.settle(attempt.guess, had);
        let Some(outcome) = attempt.outcome else {
            self.waiting.push_front(job);
            return Ok(());
        };
        let server = &mut self.state.servers[attempt.server];
        match outcome {
            Outcome::Answer(answer) => {
                server.lives();
                self.state.tally.count(&answer, &self.client.config);
                self.remember(attempt.content, &answer);
                self.answers[job.index] = Some(Ok(answer));
                return Ok(());
            }
            Outcome::Fatal(message) => return Err(EndpointError::Refused(message)),
            Outcome::Refused(message) => {
                server.lives();
                let is_news = server.dialect.learn(&message);
                if !is_news && server.dialect == attempt.dialect {
                    self.answers[job.index] = Some(Err(message));
                    return Ok(());
                }
                // Asked again in other words, at once.
            }
            Outcome::Busy { message, pause } => {
                server.lives();
                if let Some(pause) = pause {
                    server.pause(pause);
                }
                self.again(&mut job, &message, pause.unwrap_or_default());
            }
            Outcome::Lie(message) => {
                server.lives();
                self.again(&mut job, &message, Duration::ZERO);
            }
            Outcome::Fault {
                message,
                pause,
                is_unreachable,
            } => {
                server.failed(attempt.begun, message.clone());
                if let Some(pause) = pause {
                    server.pause(pause);
                }
                if is_unreachable {
                    // Nobody was there to fail it: that is counted for the server, not for the question.
                    job.due = Instant::now() + job.pauses.next().unwrap_or_default();
                } else {
                    self.again(&mut job, &message, pause.unwrap_or_default());
                }
            }
            Outcome::Models => {}
        }
        if self.answers[job.index].is_none() {
            self.waiting.push_back(job);
        }
        Ok(())
    }

    fn remember(&mut self, content: blake3::Hash, answer: &Answer) {
        if self.state.answers.len() >= REMEMBERED {
            return;
        }
        self.state.answers.insert(content, answer.clone());
        if let Some(log) = &mut self.state.log
            && let Err(error) = log.add(&content, answer)
        {
            tracing::warn!("answers are not kept any more: {error}");
            self.state.log = None;
        }
    }

    /// Lets a question wait for another attempt, or gives it up.
    fn again(&mut self, job: &mut Job, message: &str, pause: Duration) {
        job.faults += 1;
        let retries = self.client.config.retries;
        if job.faults > retries {
            let message = format!("asked {} times, the last time: {message}", job.faults);
            self.answers[job.index] = Some(Err(message));
            return;
        }
        self.state.tally.again += 1;
        job.due = Instant::now() + pause + job.pauses.next().unwrap_or_default();
    }
}

/// Tokens and costs, in one line.
impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} tokens in, {} out",
            self.prompt_tokens, self.completion_tokens
        )?;
        if let Some(cost) = self.cost {
            // A few questions cost little.
            let decimals = if cost < 1.0 { 4 } else { 2 };
            write!(formatter, ", cost {cost:.decimals$}")?;
        }
        if self.again > 0 {
            write!(formatter, ", {} sent again", self.again)?;
        }
        Ok(())
    }
}

impl Tally {
    fn count(&mut self, answer: &Answer, config: &Endpoint) {
        self.answers += 1;
        self.prompt_tokens += u64::from(answer.prompt_tokens);
        self.completion_tokens += u64::from(answer.completion_tokens);
        self.cost = config.price.map(|price| {
            const MILLION: f64 = 1e6;
            (self.prompt_tokens as f64 * price.input + self.completion_tokens as f64 * price.output)
                / MILLION
        });
    }
}
