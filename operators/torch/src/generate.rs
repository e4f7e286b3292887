//! Sampling of completions for a list of requests.
//!
//! On the CPU the requests are cut into shards, each decoded by one thread.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, GenerationWatch, SamplingParams,
    TokenizedPrompt,
};

use crate::apart::{self, Prepared};
use crate::decoder::{Decoder, Room};
use crate::guard::unguarded;
use crate::model::Model;
use crate::team::Team;
use crate::{memory, parallel, sampling};

/// New sequences enter when this share of the slots is free, so that prompts are run in batches.
const REFILL_SHARE: usize = 4;

/// Requests that one thread decodes together on the CPU: a quarter of a call within these bounds. It depends on the
/// requests alone, so that the number of threads changes no result.
const CPU_SHARD: RangeInclusive<usize> = 64..=256;

/// What a decoding step brought.
#[derive(Debug, Default)]
pub(crate) struct News {
    tokens: usize,
    /// Completions that came to their end, with the places of their requests.
    finished: Vec<(usize, Completion)>,
}

impl News {
    /// The same with places among all requests; `places` are those of the requests that were decoded together.
    pub(crate) fn renamed(mut self, places: &[usize]) -> Self {
        for (index, _) in &mut self.finished {
            *index = places[*index];
        }
        self
    }

    /// Passes it on; false asks to break off.
    pub(crate) fn tell(
        self,
        total: &mut GenerationProgress,
        watch: &mut dyn GenerationWatch,
    ) -> bool {
        total.tokens += self.tokens;
        total.sequences += self.finished.len();
        unguarded(|| {
            for (index, completion) in &self.finished {
                watch.finished(*index, completion);
            }
            watch.progress(*total).is_continue()
        })
    }
}

/// Samples one completion for each request, in their order, with one thread for each of the models that `replicas` gives.
///
/// # Errors
/// As `Policy::generate`.
pub(crate) fn generate(
    replicas: &dyn Fn() -> Vec<Model>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    watch: &mut dyn GenerationWatch,
) -> Result<Vec<Completion>, ModelError> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let models = replicas();
    let is_exact = models.iter().all(|model| !model.device.is_cuda());
    if is_exact && !params.apart.is_empty() {
        return apart::generate(replicas, requests, params, watch);
    }
    generate_together(models, requests, params, watch)
}

fn generate_together(
    models: Vec<Model>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    watch: &mut dyn GenerationWatch,
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
    let team = (models.len() / shards.len()).max(1);
    parallel::run(
        models,
        shards.len(),
        |model, shard, reporter| {
            let requests: Vec<GenerationRequest> = shards[shard]
                .iter()
                .map(|index| requests[*index].clone())
                .collect();
            let report = &mut |news: News| reporter.report(news.renamed(&shards[shard]));
            let decode = || decode(model, None, &requests, params, report);
            Team::new(team).enter(|| tch::no_grad(decode))
        },
        |news: News| news.tell(&mut total, watch),
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

/// Decodes requests together on one thread; `report` gets what each step brought and returns whether to go on. Requests come in order
/// of prompt length, samples of one prompt together.
pub(crate) fn decode(
    model: &Model,
    prepared: Option<&Prepared>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    report: &mut dyn FnMut(News) -> bool,
) -> Result<Vec<Completion>, ModelError> {
    let length = |request: &GenerationRequest| match prepared {
        Some(prepared) => prepared.padded(&request.prompt),
        None => request.prompt.token_ids.len(),
    };
    let longest = requests.iter().map(length).max().unwrap_or(0);
    let slots = params.max_concurrent.clamp(1, requests.len().max(1));
    let mut room = Room {
        slots,
        tokens: longest + params.max_new_tokens,
        refill: 1,
    };
    room.slots = memory::sequences_that_fit(model, room)?;
    room.refill = room.slots.div_ceil(REFILL_SHARE);
    sampling::check(params, model.config.text.vocab)?;
    if prepared.is_none() {
        // Before the memory of a prompt that the model cannot take.
        let prompts = requests.chunk_by(|one, other| Arc::ptr_eq(&one.prompt, &other.prompt));
        for request in prompts.filter_map(<[_]>::first) {
            model.check_prompt(&request.prompt, params.max_new_tokens)?;
        }
    }
    let mut decoder = Decoder::new(model, prepared, room);
    let params = Arc::new(params.clone());
    for (index, request) in requests.iter().enumerate() {
        decoder.submit(index as u64, request.clone(), Arc::clone(&params), 0)?;
    }
    let mut done = vec![Completion::default(); requests.len()];
    let mut tokens = Vec::new();
    while decoder.pending() > 0 {
        decoder.step(&mut tokens)?;
        let mut news = News {
            tokens: tokens.len(),
            finished: Vec::new(),
        };
        for token in tokens.drain(..) {
            let index = usize::try_from(token.id).expect("ids are indices");
            let completion = &mut done[index];
            completion.token_ids.push(token.token);
            completion.logprobs.push(token.logprob);
            completion.truncated_logprobs.push(token.truncated_logprob);
            completion.entropies.push(token.entropy);
            if let Some(reason) = token.finish {
                completion.finish_reason = reason;
                news.finished.push((index, completion.clone()));
            }
        }
        if !report(news) {
            return Err(ModelError::Interrupted);
        }
    }
    Ok(done)
}
