//! A running batch with a key-value cache, which requests enter and leave at every step.
//!
//! Requests wait in a queue. Whenever enough slots are free, waiting requests enter: each distinct prompt is run once
//! and its keys and values are copied to the slots of its samples. Each step decodes one token for every sequence
//! in the batch; sequences that ended leave it at once, and the last slots move into the gaps.

use std::collections::VecDeque;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    FinishReason, GenerationRequest, RequestId, SamplingParams, SessionToken, TokenizedPrompt,
};
use tch::Tensor;

use crate::apart::{Prepared, PreparedBatch};
use crate::guard::unguarded;
use crate::model::cache::Cache;
use crate::model::position::Positions;
use crate::model::rope::{Rope, language_rope};
use crate::model::{Model, indices};
use crate::philox::token_uniform;
use crate::sampling::{Choice, Counts, Draw, draw};

/// Prompt tokens, padding included, that are run together; bounds the memory of the pass.
pub(crate) const PREFILL_TOKENS: usize = 16_384;

/// A request that waits or is decoded.
#[derive(Debug)]
struct Job {
    id: RequestId,
    request: GenerationRequest,
    params: Arc<SamplingParams>,
    top: usize,
    /// None for a prompt that was run beforehand.
    positions: Option<Arc<Positions>>,
}

/// A sequence in the batch.
#[derive(Debug)]
struct Row {
    job: Job,
    /// Tokens in its slot.
    cached: i64,
    /// What to add to that number for the rotary position of the next token.
    shift: i64,
    /// The completion so far. The last token is not in the slot yet.
    tokens: Vec<u32>,
    counts: Option<Counts>,
    finish: Option<FinishReason>,
}

/// What a batch has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Sequences.
    pub(crate) slots: usize,
    /// Tokens of a sequence.
    pub(crate) tokens: usize,
    /// Slots that must be free before requests enter, unless fewer wait: prompts are then run in batches.
    pub(crate) refill: usize,
}

/// A running batch.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    model: &'a Model,
    /// Prompts that were run beforehand, which are then all that are needed.
    prepared: Option<&'a Prepared>,
    room: Room,
    waiting: VecDeque<Job>,
    cache: Cache,
    /// Rotary tables by position.
    rope: Rope,
    rows: Vec<Row>,
}

impl Row {
    fn new(job: Job, cached: i64, next: i64) -> Self {
        Self {
            counts: Counts::new(&job.params, &job.request.prompt.token_ids),
            job,
            cached,
            shift: next - cached,
            tokens: Vec::new(),
            finish: None,
        }
    }

    fn choice(&self) -> Choice<'_> {
        let Job {
            request, params, ..
        } = &self.job;
        let position = self.tokens.len();
        Choice {
            params,
            counts: self.counts.as_ref(),
            position,
            uniform: token_uniform(
                params.seed,
                request.prompt_stream,
                request.sample,
                position as u32,
            ),
            top: self.job.top,
        }
    }

    /// Takes up a token.
    fn push(&mut self, draw: Draw) -> SessionToken {
        self.tokens.push(draw.token);
        if let Some(counts) = &mut self.counts {
            counts.add(draw.token);
        }
        let params = &self.job.params;
        let says_stop = || {
            let check = params.stop_check.as_ref();
            check.is_some_and(|check| unguarded(|| (check.0)(&self.tokens)))
        };
        self.finish = if params.stop_token_ids.contains(&draw.token) || says_stop() {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= params.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        SessionToken {
            id: self.job.id,
            token: draw.token,
            logprob: draw.logprob,
            truncated_logprob: draw.truncated_logprob,
            entropy: draw.entropy,
            top: draw.top,
            finish: self.finish,
        }
    }
}

impl<'a> Decoder<'a> {
    /// An empty batch. With `prepared`, requests have prompts of these alone.
    pub(crate) fn new(model: &'a Model, prepared: Option<&'a Prepared>, room: Room) -> Self {
        let text = &model.config.text;
        let places: Vec<[i64; 3]> = (0..room.tokens as i64).map(|place| [place; 3]).collect();
        Self {
            model,
            prepared,
            room,
            waiting: VecDeque::new(),
            cache: Cache::new(
                text.layers,
                room.slots as i64,
                room.tokens as i64,
                text.key_heads,
                text.head_dim,
                (model.kind, model.device),
            ),
            rope: language_rope(text, &places, model.kind, model.device),
            rows: Vec::with_capacity(room.slots),
        }
    }

    /// Puts a request with checked parameters behind those that wait.
    ///
    /// # Errors
    /// [`ModelError::Input`] when it does not fit the model or the batch.
    pub(crate) fn submit(
        &mut self,
        id: RequestId,
        request: GenerationRequest,
        params: Arc<SamplingParams>,
        top: usize,
    ) -> Result<(), ModelError> {
        let length = request.prompt.token_ids.len();
        if length + params.max_new_tokens > self.room.tokens {
            return Err(ModelError::Input(format!(
                "the prompt has {length} tokens and asks for {} more, above the limit of {} tokens",
                params.max_new_tokens, self.room.tokens
            )));
        }
        let positions = if self.prepared.is_some() {
            None
        } else {
            // The samples of a prompt come one after the other.
            let known = self.waiting.back().filter(|last| {
                Arc::ptr_eq(&last.request.prompt, &request.prompt)
                    && last.params.max_new_tokens >= params.max_new_tokens
            });
            let known = known.and_then(|last| last.positions.clone());
            match known {
                Some(positions) => Some(positions),
                None => {
                    let room = params.max_new_tokens;
                    Some(Arc::new(self.model.check_prompt(&request.prompt, room)?))
                }
            }
        };
        self.waiting.push_back(Job {
            id,
            request,
            params,
            top,
            positions,
        });
        Ok(())
    }

    /// Takes a request out, if it is there.
    pub(crate) fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|job| job.id != id);
        if let Some(row) = self.rows.iter_mut().find(|row| row.job.id == id) {
            row.finish = Some(FinishReason::Stop);
            self.leave();
        }
    }

    /// Requests that wait or are decoded.
    pub(crate) fn pending(&self) -> usize {
        self.waiting.len() + self.rows.len()
    }

    /// Lets waiting requests in and decodes a token for every sequence of the batch; appends all tokens to `out`.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] for logits that are not finite.
    pub(crate) fn step(&mut self, out: &mut Vec<SessionToken>) -> Result<(), ModelError> {
        self.admit(out)?;
        if self.rows.is_empty() {
            return Ok(());
        }
        let device = self.model.device;
        let column = |value: fn(&Row) -> i64| self.rows.iter().map(value).collect::<Vec<i64>>();
        let last = |row: &Row| row.tokens.last().map_or(0, |token| i64::from(*token));
        let tokens = indices(&column(last), device);
        let rope = self
            .rope
            .select(&indices(&column(|row| row.cached + row.shift), device));
        let lengths = column(|row| row.cached);
        let x = self.model.language.embed(&tokens);
        let hidden = self
            .model
            .language
            .run(x, &rope, &mut self.cache.step(&lengths));
        for row in &mut self.rows {
            row.cached += 1;
        }
        let logits = self.model.language.logits(&hidden);
        self.sample(0, &logits, out)?;
        self.leave();
        Ok(())
    }

    /// Lets waiting requests into free slots and samples their first tokens.
    fn admit(&mut self, out: &mut Vec<SessionToken>) -> Result<(), ModelError> {
        loop {
            let free = self.room.slots - self.rows.len();
            let enough = self.room.refill.min(self.waiting.len());
            if self.waiting.is_empty() || free < enough {
                return Ok(());
            }
            match self.prepared {
                Some(prepared) => self.admit_prepared(prepared, free, out)?,
                None => self.prefill_some(free, out)?,
            }
            self.leave();
        }
    }

    /// Appends the rows of up to `free` requests whose prompts were run together beforehand, first tokens sampled.
    fn admit_prepared(
        &mut self,
        prepared: &Prepared,
        free: usize,
        out: &mut Vec<SessionToken>,
    ) -> Result<(), ModelError> {
        let start = self.rows.len();
        let mut sources = Vec::new();
        let mut together: Option<&PreparedBatch> = None;
        while sources.len() < free {
            let Some(job) = self.waiting.front() else {
                break;
            };
            let (batch, source) = prepared.find(&job.request.prompt);
            if together.is_some_and(|together| !std::ptr::eq(together, batch)) {
                break;
            }
            together = Some(batch);
            let (cached, next) = (batch.prompts.lengths[source], batch.prompts.next[source]);
            let job = self.waiting.pop_front();
            self.rows.extend(job.map(|job| Row::new(job, cached, next)));
            sources.push(source as i64);
        }
        let Some(batch) = together else {
            return Ok(());
        };
        self.cache
            .insert(start as i64, &batch.prompts.layers, &sources);
        let logits = batch
            .logits
            .index_select(0, &indices(&sources, self.model.device));
        self.sample(start, &logits, out)
    }

    /// Runs the prompts of up to `free` requests and appends their rows, first tokens sampled.
    fn prefill_some(&mut self, free: usize, out: &mut Vec<SessionToken>) -> Result<(), ModelError> {
        let mut prompts: Vec<Arc<TokenizedPrompt>> = Vec::new();
        let mut positions: Vec<Positions> = Vec::new();
        let (mut sources, mut jobs) = (Vec::new(), Vec::new());
        let mut longest = 0;
        while jobs.len() < free {
            let Some(job) = self.waiting.front() else {
                break;
            };
            let prompt = &job.request.prompt;
            if !prompts.last().is_some_and(|last| Arc::ptr_eq(last, prompt)) {
                let padded = prompt.token_ids.len().max(longest);
                if !prompts.is_empty() && (prompts.len() + 1) * padded > PREFILL_TOKENS {
                    break;
                }
                longest = padded;
                prompts.push(Arc::clone(prompt));
                let known = job.positions.as_ref();
                positions.push(known.expect("a prompt that is to be run").as_ref().clone());
            }
            sources.push(prompts.len() as i64 - 1);
            jobs.extend(self.waiting.pop_front());
        }
        let prefilled = self.model.prefill(&prompts, &positions);
        self.cache
            .insert(self.rows.len() as i64, &prefilled.layers, &sources);
        let last: Vec<i64> = (0..prompts.len())
            .map(|prompt| prefilled.last_row(prompt))
            .collect();
        let states = prefilled
            .hidden
            .index_select(0, &indices(&last, self.model.device));
        let logits = self
            .model
            .language
            .logits(&states)
            .index_select(0, &indices(&sources, self.model.device));
        let start = self.rows.len();
        for (job, source) in jobs.into_iter().zip(sources) {
            let prompt = usize::try_from(source).expect("a prompt has an index");
            let (cached, next) = (prefilled.lengths[prompt], prefilled.next[prompt]);
            self.rows.push(Row::new(job, cached, next));
        }
        self.sample(start, &logits, out)
    }

    /// Samples a token for each row from `start` on and records it.
    fn sample(
        &mut self,
        start: usize,
        logits: &Tensor,
        out: &mut Vec<SessionToken>,
    ) -> Result<(), ModelError> {
        let choices: Vec<Choice<'_>> = self.rows[start..].iter().map(Row::choice).collect();
        let draws = draw(logits, &choices)?;
        let rows = self.rows[start..].iter_mut().zip(draws);
        out.extend(rows.map(|(row, draw)| row.push(draw)));
        Ok(())
    }

    /// Takes rows that ended out of the batch and closes the gaps with the last rows.
    fn leave(&mut self) {
        let mut slots: Vec<i64> = (0..self.rows.len() as i64).collect();
        let mut place = 0;
        while place < self.rows.len() {
            if self.rows[place].finish.is_some() {
                self.rows.swap_remove(place);
                slots.swap_remove(place);
            } else {
                place += 1;
            }
        }
        let moved = slots
            .iter()
            .enumerate()
            .filter(|(to, from)| *to as i64 != **from);
        let (to, from): (Vec<i64>, Vec<i64>) = moved.map(|(to, from)| (to as i64, *from)).unzip();
        let longest = self.rows.iter().map(|row| row.cached).max().unwrap_or(0);
        self.cache.relocate(&from, &to, longest);
    }
}
