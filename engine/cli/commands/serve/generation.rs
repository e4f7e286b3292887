//! A request from its body to its response.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use engine_core::policy::{GenerationRequest, SamplingParams, SessionRequest, TokenizedPrompt};
use engine_core::seed;
use operators_model::processor::StopStrings;

use super::answer::Answer;
use super::body::{Body, Options};
use super::engine::{Engine, Reply as FromEngine, Ticket};
use super::fault::ApiFault;
use super::http::Connection;
use super::reply::{Reply, Usage, Way, Whole};
use super::routes::{Ended, Loaded, Plain, Service};

/// How often a request that waits looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(200);
/// Tokens of a completion that says nothing of its length, as OpenAI has it.
const COMPLETION_TOKENS: usize = 16;

/// What a request asks for, handed in.
pub(super) struct Generation {
    way: Way,
    pub(super) options: Options,
    stops: StopStrings,
    prompts: Vec<Arc<TokenizedPrompt>>,
    ticket: Ticket,
    /// When it was last seen that the client is there.
    looked: Instant,
}

impl Generation {
    /// Reads a request and hands it in.
    pub(super) fn read(
        bytes: &[u8],
        way: Way,
        service: &Service,
        loaded: &Loaded,
    ) -> Result<Self, ApiFault> {
        let processor = &loaded.processor;
        let mut body = Body::read(bytes)?;
        if let Some(model) = body.text("model")?
            && model != service.name
        {
            return Err(ApiFault::no_model(&model, &service.name));
        }
        let (options, prompts) = match way {
            Way::Chat => {
                let logprobs = body.chat_logprobs()?;
                let options = body.options(&["max_completion_tokens", "max_tokens"], logprobs)?;
                (
                    options,
                    vec![super::prompt::chat_prompt(&mut body, processor)?],
                )
            }
            Way::Completion => {
                let logprobs = body.completion_logprobs()?;
                let options = body.options(&["max_tokens"], logprobs)?;
                (
                    options,
                    super::prompt::completion_prompts(&mut body, processor)?,
                )
            }
        };
        body.finish()?;
        let ticket = Engine::admit(&service.engine, prompts.len() * options.n)?;
        let mut generation = Self {
            way,
            stops: StopStrings::new(options.stop.clone()),
            options,
            prompts: prompts.into_iter().map(Arc::new).collect(),
            ticket,
            looked: Instant::now(),
        };
        generation.submit(service, loaded)?;
        Ok(generation)
    }

    fn submit(&mut self, service: &Service, loaded: &Loaded) -> Result<(), ApiFault> {
        let seed = self.options.seed.unwrap_or_else(|| service.fresh.draw());
        let mut requests = Vec::new();
        for prompt in &self.prompts {
            let params = Arc::new(self.params(prompt, seed, loaded)?);
            // What is drawn depends on the seed and the prompt, whatever else is asked.
            let ids: Vec<String> = prompt.token_ids.iter().map(u32::to_string).collect();
            let prompt_stream = seed::prompt_stream(&ids.join(" "));
            for sample in 0..self.options.n {
                let request = GenerationRequest {
                    prompt: Arc::clone(prompt),
                    prompt_stream,
                    sample: u32::try_from(sample).unwrap_or(u32::MAX),
                };
                requests.push(SessionRequest {
                    request,
                    params: Arc::clone(&params),
                    top_logprobs: self.options.logprobs.unwrap_or(0),
                });
            }
        }
        let tokens: usize = self
            .prompts
            .iter()
            .map(|prompt| prompt.token_ids.len())
            .sum();
        let counters = &service.engine.counters;
        counters
            .prompt_tokens
            .fetch_add(tokens as u64, Ordering::Relaxed);
        for request in requests {
            self.ticket.submit(request);
        }
        Ok(())
    }

    fn params(
        &self,
        prompt: &TokenizedPrompt,
        seed: u64,
        loaded: &Loaded,
    ) -> Result<SamplingParams, ApiFault> {
        let options = &self.options;
        let length = prompt.token_ids.len();
        let limit = loaded.max_tokens;
        let room = limit.saturating_sub(length);
        let wanted = options.max_tokens.unwrap_or(match self.way {
            Way::Chat => room.max(1),
            Way::Completion => COMPLETION_TOKENS.min(room.max(1)),
        });
        if wanted > room {
            return Err(ApiFault::too_long(format!(
                "the prompt has {length} tokens and its answer may have {wanted}; together they may have {limit}: shorten the prompt, ask for \
                 fewer tokens, or start the server with a larger --max-tokens"
            )));
        }
        if options.min_tokens > wanted {
            return Err(ApiFault::parameter(
                "min_tokens",
                format!(
                    "`min_tokens` is {} and more than the answer may have, {wanted}",
                    options.min_tokens
                ),
            ));
        }
        let unknown = (options
            .stop_token_ids
            .iter()
            .chain(&options.allowed_token_ids))
        .find(|id| !loaded.processor.knows(**id));
        if let Some(id) = unknown {
            return Err(ApiFault::invalid(format!("the model has no token {id}")));
        }
        let mut stop_token_ids = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_token_ids.extend(loaded.processor.stop_token_ids());
        }
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        Ok(SamplingParams {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            max_new_tokens: wanted,
            min_new_tokens: options.min_tokens,
            stop_token_ids,
            allowed_token_ids: options.allowed_token_ids.clone(),
            seed,
            ..SamplingParams::default()
        })
    }

    fn reply<'a>(
        way: Way,
        options: &'a Options,
        service: &'a Service,
        loaded: &'a Loaded,
    ) -> Reply<'a> {
        let start = match way {
            Way::Chat => "chatcmpl",
            Way::Completion => "cmpl",
        };
        Reply {
            way,
            id: format!("{start}-{:016x}", service.fresh.draw()),
            created: super::host::seconds_since_1970(),
            model: &service.name,
            processor: &loaded.processor,
            options,
        }
    }

    fn usage(&self, answers: &[Answer<'_>]) -> Usage {
        Usage {
            prompt: self
                .prompts
                .iter()
                .map(|prompt| prompt.token_ids.len())
                .sum(),
            completion: answers.iter().map(|answer| answer.tokens).sum(),
        }
    }

    /// The prompt of an answer.
    fn prompt(&self, choice: usize) -> &[u32] {
        &self.prompts[choice / self.options.n].token_ids
    }

    fn answers<'a>(&self, loaded: &'a Loaded) -> Vec<Answer<'a>> {
        let count = self.prompts.len() * self.options.n;
        let answer = || Answer::new(&loaded.processor, &self.stops);
        std::iter::repeat_with(answer).take(count).collect()
    }

    /// The next answer that has come further, and its text.
    fn next(
        &mut self,
        connection: &Connection,
        service: &Service,
        answers: &mut [Answer<'_>],
    ) -> Result<(usize, String), Ended> {
        loop {
            if self.looked.elapsed() >= LOOK {
                // Tokens may come without a pause.
                if connection.is_gone() {
                    return Err(Ended::Gone);
                }
                self.looked = Instant::now();
            }
            let reply = match self.ticket.replies().recv_timeout(LOOK) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) if service.engine.is_over() => {
                    let fault = ApiFault::unavailable("the server has ended");
                    return Err(Ended::Fault(fault, true));
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Ended::Fault(ApiFault::internal("the model is gone"), true));
                }
            };
            let (choice, token) = match reply {
                FromEngine::Token(choice, token) => (choice, token),
                FromEngine::Refused(message) => {
                    return Err(Ended::Fault(ApiFault::invalid(message), true));
                }
                FromEngine::Failed(message) => {
                    return Err(Ended::Fault(
                        ApiFault::internal(format!("the model failed: {message}")),
                        true,
                    ));
                }
            };
            let answer = &mut answers[choice];
            if answer.finish.is_some() {
                // Tokens that were on their way when a stop string came.
                continue;
            }
            let has_ended = token.finish.is_some();
            let text = answer
                .push(token)
                .map_err(|message| Ended::Fault(ApiFault::internal(message), true))?;
            service
                .engine
                .counters
                .completion_tokens
                .fetch_add(1, Ordering::Relaxed);
            if has_ended {
                self.ticket.ended(choice);
            } else if answer.finish.is_some() {
                self.ticket.cancel(choice);
            }
            return Ok((choice, text));
        }
    }

    /// Waits for all answers.
    pub(super) fn collect(
        mut self,
        connection: &Connection,
        service: &Service,
        loaded: &Loaded,
    ) -> Result<Option<Plain>, Ended> {
        let mut answers = self.answers(loaded);
        let mut texts = vec![String::new(); answers.len()];
        while answers.iter().any(|answer| answer.finish.is_none()) {
            let (choice, text) = self.next(connection, service, &mut answers)?;
            texts[choice].push_str(&text);
        }
        let usage = self.usage(&answers);
        let wholes = answers.iter_mut().zip(texts).enumerate();
        let wholes: Vec<Whole<'_>> = wholes
            .map(|(choice, (answer, text))| Whole {
                text,
                tokens: answer.take_fresh(),
                finish: answer.finish.unwrap_or_default(),
                prompt: self.prompt(choice),
            })
            .collect();
        let reply = Self::reply(self.way, &self.options, service, loaded);
        Ok(Some(Plain::json(&reply.whole(wholes, usage))))
    }

    /// Sends answers as they come.
    pub(super) fn stream(
        mut self,
        connection: &mut Connection,
        service: &Service,
        loaded: &Loaded,
        keep_alive: bool,
    ) -> Result<Option<Plain>, Ended> {
        let mut answers = self.answers(loaded);
        let options = self.options.clone();
        let reply = Self::reply(self.way, &options, service, loaded);
        // What the model refuses at once is an error with a status of its own.
        let mut first = Some(self.next(connection, service, &mut answers)?);
        connection.begin_events(keep_alive)?;
        for choice in 0..answers.len() {
            if let Some(piece) = reply.opening(choice, self.prompt(choice)) {
                connection.event(&piece.to_string())?;
            }
        }
        loop {
            let next = match first.take() {
                Some(next) => Ok(next),
                None => self.next(connection, service, &mut answers),
            };
            let (choice, text) = match next {
                Ok(next) => next,
                Err(Ended::Fault(fault, _)) => {
                    connection.event(&fault.body())?;
                    break;
                }
                Err(gone @ Ended::Gone) => return Err(gone),
            };
            let answer = &mut answers[choice];
            if !text.is_empty() || answer.finish.is_some() {
                let tokens = answer.take_fresh();
                let piece = reply.delta(choice, &text, &tokens, answer.finish);
                connection.event(&piece.to_string())?;
            }
            if answers.iter().all(|answer| answer.finish.is_some()) {
                if options.include_usage {
                    connection.event(&reply.usage(self.usage(&answers)).to_string())?;
                }
                break;
            }
        }
        connection.event("[DONE]")?;
        connection.end_events()?;
        Ok(None)
    }
}
