//! Batched decoding with a key-value cache.
//!
//! Requests wait in a queue. Whenever enough slots are free, waiting requests enter: each distinct prompt is run once
//! and its keys and values are copied to the slots of its samples. Each step decodes one token for every sequence
//! in the batch; sequences that ended leave it at once, and the last slots move into the gaps.
//!
//! On the CPU the requests are cut into shards, each decoded by one thread.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::collections::btree_map::Entry;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, FinishReason, GenerationProgress, GenerationRequest, SamplingParams,
    TokenizedPrompt,
};
use tch::Tensor;

use crate::apart::{self, Prepared, PreparedBatch};
use crate::guard::unguarded;
use crate::model::cache::Cache;
use crate::model::position::Positions;
use crate::model::rope::{Rope, language_rope};
use crate::model::{Model, indices};
use crate::parallel;
use crate::philox::token_uniform;
use crate::sampling::{Draws, draw};

/// Prompt tokens, padding included, that are run together; bounds the memory of the pass.
pub(crate) const PREFILL_TOKENS: usize = 16_384;
/// New sequences enter when this share of the slots is free, so that prompts are run in batches.
const REFILL_SHARE: usize = 4;

/// Requests that one thread decodes together on the CPU: a quarter of a call within these bounds. It depends on the
/// requests alone, so that the number of threads changes no result.
const CPU_SHARD: RangeInclusive<usize> = 64..=256;

/// A sequence in the batch.
#[derive(Clone, Copy, Debug)]
struct Row {
    request: usize,
    /// Tokens in its slot.
    cached: i64,
    /// What to add to that number for the rotary position of the next token.
    shift: i64,
    /// The last sampled token, which is not in the slot yet.
    token: i64,
}

struct Decoder<'a> {
    model: &'a Model,
    /// Prompts that were run beforehand, which are then all that are needed.
    prepared: Option<&'a Prepared>,
    requests: &'a [GenerationRequest],
    params: &'a SamplingParams,
    positions: BTreeMap<*const TokenizedPrompt, Positions>,
    waiting: VecDeque<usize>,
    slots: usize,
    cache: Cache,
    /// Rotary tables by position.
    rope: Rope,
    rows: Vec<Row>,
    done: Vec<Completion>,
    progress: GenerationProgress,
}

/// Samples one completion for each request, in their order, with one thread for each of the models that `replicas` gives.
///
/// # Errors
/// As `Policy::generate`.
pub(crate) fn generate(
    replicas: &dyn Fn() -> Vec<Model>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    progress: &mut dyn FnMut(GenerationProgress) -> ControlFlow<()>,
) -> Result<Vec<Completion>, ModelError> {
    let models = replicas();
    let is_exact = models.iter().all(|model| !model.device.is_cuda());
    if is_exact && !params.apart.is_empty() {
        return apart::generate(replicas, requests, params, progress);
    }
    generate_together(models, requests, params, progress)
}

fn generate_together(
    models: Vec<Model>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    progress: &mut dyn FnMut(GenerationProgress) -> ControlFlow<()>,
) -> Result<Vec<Completion>, ModelError> {
    let one_shard = models.iter().any(|model| model.device.is_cuda());
    let largest = if one_shard {
        requests.len()
    } else {
        cpu_shard(requests.len())
    };
    let shards = shards(requests, largest);
    let mut completions: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
    let mut total = GenerationProgress::default();
    parallel::run(
        models,
        shards.len(),
        |model, shard, reporter| {
            let requests: Vec<GenerationRequest> = shards[shard]
                .iter()
                .map(|index| requests[*index].clone())
                .collect();
            let mut before = GenerationProgress::default();
            let report = &mut |now: GenerationProgress| {
                let fresh = GenerationProgress {
                    sequences: now.sequences - before.sequences,
                    tokens: now.tokens - before.tokens,
                };
                before = now;
                reporter.report(fresh)
            };
            tch::no_grad(|| decode(model, None, &requests, params, report))
        },
        |fresh: GenerationProgress| {
            total.sequences += fresh.sequences;
            total.tokens += fresh.tokens;
            unguarded(|| progress(total)).is_continue()
        },
        |shard, done| {
            for (index, completion) in shards[shard].iter().zip(done) {
                completions[*index] = Some(completion);
            }
        },
    )?;
    Ok(completions
        .into_iter()
        .map(|completion| completion.expect("every request is in a shard"))
        .collect())
}

/// Largest number of requests that are decoded together on the CPU, of this many.
pub(crate) fn cpu_shard(requests: usize) -> usize {
    (requests / 4).clamp(*CPU_SHARD.start(), *CPU_SHARD.end())
}

/// Indices of the requests that are decoded together, of about equal numbers. Prompts of similar length come together,
/// and so do the samples of a prompt as far as a shard holds them.
pub(crate) fn shards(requests: &[GenerationRequest], largest: usize) -> Vec<Vec<usize>> {
    let mut first_use: BTreeMap<*const TokenizedPrompt, usize> = BTreeMap::new();
    let mut order: Vec<(usize, usize, usize)> = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let first = *first_use
                .entry(Arc::as_ptr(&request.prompt))
                .or_insert(index);
            (request.prompt.token_ids.len(), first, index)
        })
        .collect();
    order.sort_unstable();
    let count = requests.len().div_ceil(largest.max(1)).max(1);
    let target = requests.len().div_ceil(count);
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut last = None;
    for (place, (_, first, index)) in order.iter().enumerate() {
        let samples = order[place..]
            .iter()
            .take_while(|other| other.1 == *first)
            .count();
        let filled = shards.last().map_or(target, Vec::len);
        if filled >= target
            || (last != Some(*first) && filled + samples > target && samples <= target)
        {
            shards.push(Vec::new());
        }
        shards
            .last_mut()
            .expect("the first request opens a shard")
            .push(*index);
        last = Some(*first);
    }
    shards
}

/// Decodes requests together on one thread; `report` gets the sums so far and returns whether to go on.
pub(crate) fn decode(
    model: &Model,
    prepared: Option<&Prepared>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    report: &mut dyn FnMut(GenerationProgress) -> bool,
) -> Result<Vec<Completion>, ModelError> {
    if params.max_new_tokens == 0 {
        return Err(ModelError::Input(
            "max_new_tokens is 0; ask for at least one token".to_owned(),
        ));
    }
    let mut decoder = Decoder::new(model, prepared, requests, params)?;
    while !(decoder.rows.is_empty() && decoder.waiting.is_empty()) {
        decoder.admit()?;
        decoder.step()?;
        if !report(decoder.progress) {
            return Err(ModelError::Interrupted);
        }
    }
    Ok(decoder.done)
}

impl<'a> Decoder<'a> {
    fn new(
        model: &'a Model,
        prepared: Option<&'a Prepared>,
        requests: &'a [GenerationRequest],
        params: &'a SamplingParams,
    ) -> Result<Self, ModelError> {
        let mut positions = BTreeMap::new();
        let mut longest = 0;
        for request in requests {
            if let Some(prepared) = prepared {
                longest = longest.max(prepared.padded(&request.prompt));
                continue;
            }
            let key = Arc::as_ptr(&request.prompt);
            if let Entry::Vacant(entry) = positions.entry(key) {
                entry.insert(model.check_prompt(&request.prompt, params.max_new_tokens)?);
            }
            longest = longest.max(request.prompt.token_ids.len());
        }
        let text = &model.config.text;
        let slots = params.max_concurrent.clamp(1, requests.len().max(1));
        let capacity = longest + params.max_new_tokens;
        let places: Vec<[i64; 3]> = (0..capacity as i64).map(|place| [place; 3]).collect();
        let options = (model.kind, model.device);
        let empty = || Completion {
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: FinishReason::Length,
        };
        Ok(Self {
            model,
            prepared,
            requests,
            params,
            positions,
            // Shards come in order of prompt length, samples of one prompt together.
            waiting: (0..requests.len()).collect(),
            slots,
            cache: Cache::new(
                text.layers,
                slots as i64,
                capacity as i64,
                text.key_heads,
                text.head_dim,
                options,
            ),
            rope: language_rope(text, &places, model.kind, model.device),
            rows: Vec::with_capacity(slots),
            done: requests.iter().map(|_| empty()).collect(),
            progress: GenerationProgress::default(),
        })
    }

    /// Lets waiting requests into free slots and samples their first tokens.
    fn admit(&mut self) -> Result<(), ModelError> {
        loop {
            let free = self.slots - self.rows.len();
            let enough = self.slots.div_ceil(REFILL_SHARE).min(self.waiting.len());
            if self.waiting.is_empty() || free < enough {
                return Ok(());
            }
            let start = self.rows.len();
            match self.prepared {
                Some(prepared) => self.admit_prepared(prepared, free)?,
                None => self.prefill_some(free)?,
            }
            self.leave(start);
        }
    }

    /// Appends the rows of up to `free` requests whose prompts were run together beforehand, first tokens sampled.
    fn admit_prepared(&mut self, prepared: &Prepared, free: usize) -> Result<(), ModelError> {
        let start = self.rows.len();
        let mut sources = Vec::new();
        let mut together: Option<&PreparedBatch> = None;
        while let Some(index) = self
            .waiting
            .front()
            .copied()
            .filter(|_| sources.len() < free)
        {
            let (batch, source) = prepared.find(&self.requests[index].prompt);
            if together.is_some_and(|together| !std::ptr::eq(together, batch)) {
                break;
            }
            together = Some(batch);
            let cached = batch.prompts.lengths[source];
            self.rows.push(Row {
                request: index,
                cached,
                shift: batch.prompts.next[source] - cached,
                token: 0,
            });
            sources.push(source as i64);
            self.waiting.pop_front();
        }
        let Some(batch) = together else {
            return Ok(());
        };
        self.cache
            .insert(start as i64, &batch.prompts.layers, &sources);
        let logits = batch
            .logits
            .index_select(0, &indices(&sources, self.model.device));
        self.sample(start, &logits)
    }

    /// Runs the prompts of up to `free` requests and appends their rows, first tokens sampled.
    fn prefill_some(&mut self, free: usize) -> Result<(), ModelError> {
        let mut prompts: Vec<Arc<TokenizedPrompt>> = Vec::new();
        let mut sources = Vec::new();
        let mut requests = Vec::new();
        while let Some(index) = self
            .waiting
            .front()
            .copied()
            .filter(|_| requests.len() < free)
        {
            let prompt = &self.requests[index].prompt;
            if !prompts.last().is_some_and(|last| Arc::ptr_eq(last, prompt)) {
                // Requests come in order of length, so this prompt is the longest so far.
                if !prompts.is_empty()
                    && (prompts.len() + 1) * prompt.token_ids.len() > PREFILL_TOKENS
                {
                    break;
                }
                prompts.push(Arc::clone(prompt));
            }
            sources.push(prompts.len() as i64 - 1);
            requests.push(index);
            self.waiting.pop_front();
        }
        let positions: Vec<Positions> = prompts
            .iter()
            .map(|prompt| self.positions[&Arc::as_ptr(prompt)].clone())
            .collect();
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
        for (request, source) in requests.into_iter().zip(sources) {
            let prompt = usize::try_from(source).expect("a prompt has an index");
            let cached = prefilled.lengths[prompt];
            self.rows.push(Row {
                request,
                cached,
                shift: prefilled.next[prompt] - cached,
                token: 0,
            });
        }
        self.sample(start, &logits)
    }

    /// Decodes one token for every sequence in the batch.
    fn step(&mut self) -> Result<(), ModelError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let device = self.model.device;
        let column = |value: fn(&Row) -> i64| self.rows.iter().map(value).collect::<Vec<i64>>();
        let tokens = indices(&column(|row| row.token), device);
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
        self.sample(0, &logits)?;
        self.leave(0);
        Ok(())
    }

    /// Samples a token for each row from `start` on and records it.
    fn sample(&mut self, start: usize, logits: &Tensor) -> Result<(), ModelError> {
        let uniforms: Vec<f64> = self.rows[start..]
            .iter()
            .map(|row| {
                let request = &self.requests[row.request];
                let position = self.done[row.request].token_ids.len() as u32;
                token_uniform(
                    self.params.seed,
                    request.prompt_stream,
                    request.sample,
                    position,
                )
            })
            .collect();
        let Draws { tokens, logprobs } = draw(logits, self.params.temperature, &uniforms)?;
        self.progress.tokens += tokens.len();
        for ((row, token), logprob) in self.rows[start..].iter_mut().zip(tokens).zip(logprobs) {
            row.token = i64::from(token);
            let completion = &mut self.done[row.request];
            completion.token_ids.push(token);
            completion.logprobs.push(logprob);
        }
        Ok(())
    }

    /// Takes rows from `start` on that ended out of the batch and closes the gaps with the last rows.
    fn leave(&mut self, start: usize) {
        let mut slots: Vec<i64> = (0..self.rows.len() as i64).collect();
        let mut place = start;
        while place < self.rows.len() {
            let row = self.rows[place];
            let completion = &mut self.done[row.request];
            let last = completion.token_ids.last();
            let stopped = last.is_some_and(|token| self.params.stop_token_ids.contains(token));
            if stopped || completion.token_ids.len() >= self.params.max_new_tokens {
                completion.finish_reason = if stopped {
                    FinishReason::Stop
                } else {
                    FinishReason::Length
                };
                self.progress.sequences += 1;
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
