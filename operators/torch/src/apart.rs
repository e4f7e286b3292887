//! Sampling of runs of requests that are decoded apart, over prompts that all of them share.
//!
//! What is computed together sways the last bits of a result. Here the prompts are run in batches that depend on the prompts
//! alone, and each run of requests is then decoded by itself over their keys and values. So a run gives the same bits beside any
//! others, and a prompt is run only once.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, GenerationWatch, SamplingParams,
    TokenizedPrompt,
};
use tch::Tensor;

use crate::decoder::PREFILL_TOKENS;
use crate::generate::{News, cpu_shard, decode, shards};
use crate::model::attention::KeyValue;
use crate::model::prompt::Prefilled;
use crate::model::{Model, indices};
use crate::parallel;
use crate::team::Team;

/// Prompts that are run together at most, so that there is work for several threads.
const PROMPTS_TOGETHER: usize = 32;
/// Bytes of keys and values of prompts that are held at a time.
const HELD_BYTES: usize = 1 << 30;

/// Prompts after their pass.
#[derive(Debug)]
pub(crate) struct PreparedBatch {
    /// Their keys and values.
    pub(crate) prompts: Prefilled,
    /// What the first tokens are drawn from, `[p, v]`.
    pub(crate) logits: Tensor,
}

impl PreparedBatch {
    fn share(&self) -> Self {
        let layer = |layer: &KeyValue| KeyValue {
            keys: layer.keys.shallow_clone(),
            values: layer.values.shallow_clone(),
        };
        Self {
            prompts: Prefilled {
                hidden: self.prompts.hidden.shallow_clone(),
                padded: self.prompts.padded,
                lengths: self.prompts.lengths.clone(),
                next: self.prompts.next.clone(),
                layers: self.prompts.layers.iter().map(layer).collect(),
            },
            logits: self.logits.shallow_clone(),
        }
    }
}

/// Batches of prompts after their pass.
#[derive(Debug)]
pub(crate) struct Prepared {
    batches: Vec<PreparedBatch>,
    /// Batch and place in it of each prompt, by its address.
    places: BTreeMap<usize, (usize, usize)>,
}

impl Prepared {
    /// The batch of a prompt and its place there.
    pub(crate) fn find(&self, prompt: &Arc<TokenizedPrompt>) -> (&PreparedBatch, usize) {
        let (batch, place) = self.places[&address(prompt)];
        (&self.batches[batch], place)
    }

    /// Tokens that a prompt takes, padding included.
    pub(crate) fn padded(&self, prompt: &Arc<TokenizedPrompt>) -> usize {
        let padded = self.find(prompt).0.prompts.padded;
        usize::try_from(padded).expect("lengths are positive")
    }

    /// The same for another thread: tensors can be sent, but not shared by reference.
    fn share(&self) -> Self {
        Self {
            batches: self.batches.iter().map(PreparedBatch::share).collect(),
            places: self.places.clone(),
        }
    }
}

fn address(prompt: &Arc<TokenizedPrompt>) -> usize {
    Arc::as_ptr(prompt) as usize
}

/// As `Policy::generate`, with the runs of `params.apart`.
///
/// # Errors
/// As `Policy::generate`.
pub(crate) fn generate(
    replicas: &dyn Fn() -> Vec<Model>,
    requests: &[GenerationRequest],
    params: &SamplingParams,
    watch: &mut dyn GenerationWatch,
) -> Result<Vec<Completion>, ModelError> {
    if params.apart.iter().sum::<usize>() != requests.len() {
        return Err(ModelError::Input(format!(
            "the runs {:?} are not all of {} requests",
            params.apart,
            requests.len()
        )));
    }
    let mut completions: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
    let mut total = GenerationProgress::default();
    let bytes = {
        let model = &replicas()[0];
        let text = &model.config.text;
        let width = 2 * text.layers * usize::try_from(text.key_heads * text.head_dim).unwrap_or(1);
        width * model.kind.elt_size_in_bytes()
    };
    for wave in waves(prompt_batches(requests), bytes) {
        let prepared = prepare(replicas(), &wave, params.max_new_tokens)?;
        let jobs = jobs(requests, &params.apart, &prepared);
        let workers: Vec<_> = replicas()
            .into_iter()
            .map(|model| (model, prepared.share()))
            .collect();
        let team = (workers.len() / jobs.len()).max(1);
        parallel::run(
            workers,
            jobs.len(),
            |(model, prepared): &(Model, Prepared), job, reporter| {
                let requests: Vec<GenerationRequest> = jobs[job]
                    .iter()
                    .map(|index| requests[*index].clone())
                    .collect();
                let report = &mut |news: News| reporter.report(news.renamed(&jobs[job]));
                let decode = || decode(model, Some(prepared), &requests, params, report);
                Team::new(team).enter(|| tch::no_grad(decode))
            },
            |news: News| news.tell(&mut total, watch),
            |job, done| {
                for (index, completion) in jobs[job].iter().zip(done) {
                    completions[*index] = Some(completion);
                }
            },
        )?;
    }
    Ok(completions
        .into_iter()
        .map(|completion| completion.expect("every request is in a job"))
        .collect())
}

/// Distinct prompts that are run together, of similar lengths.
fn prompt_batches(requests: &[GenerationRequest]) -> Vec<Vec<Arc<TokenizedPrompt>>> {
    let mut seen = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        seen.entry(address(&request.prompt)).or_insert(index);
    }
    let mut firsts: Vec<usize> = seen.into_values().collect();
    firsts.sort_unstable_by_key(|index| (requests[*index].prompt.token_ids.len(), *index));
    let mut batches: Vec<Vec<Arc<TokenizedPrompt>>> = Vec::new();
    for index in firsts {
        let prompt = Arc::clone(&requests[index].prompt);
        match batches.last_mut() {
            // They come in order of length, so this prompt is the longest so far.
            Some(batch)
                if batch.len() < PROMPTS_TOGETHER
                    && (batch.len() + 1) * prompt.token_ids.len() <= PREFILL_TOKENS =>
            {
                batch.push(prompt);
            }
            _ => batches.push(vec![prompt]),
        }
    }
    batches
}

/// Batches whose keys and values are held at the same time. `bytes` are those of one token.
fn waves(
    batches: Vec<Vec<Arc<TokenizedPrompt>>>,
    bytes: usize,
) -> Vec<Vec<Vec<Arc<TokenizedPrompt>>>> {
    let mut waves: Vec<Vec<Vec<Arc<TokenizedPrompt>>>> = Vec::new();
    let mut held = 0;
    for batch in batches {
        let longest = batch.last().map_or(0, |prompt| prompt.token_ids.len());
        let needed = batch.len() * longest * bytes;
        match waves.last_mut() {
            Some(wave) if held + needed <= HELD_BYTES => {
                held += needed;
                wave.push(batch);
            }
            _ => {
                held = needed;
                waves.push(vec![batch]);
            }
        }
    }
    waves
}

/// Runs the prompts of a wave.
fn prepare(
    models: Vec<Model>,
    wave: &[Vec<Arc<TokenizedPrompt>>],
    room: usize,
) -> Result<Prepared, ModelError> {
    let mut batches = Vec::new();
    let team = (models.len() / wave.len()).max(1);
    parallel::run(
        models,
        wave.len(),
        |model: &Model, job, _| {
            let prompts = &wave[job];
            let positions = prompts
                .iter()
                .map(|prompt| model.check_prompt(prompt, room))
                .collect::<Result<Vec<_>, _>>()?;
            let run = || {
                let prompts = model.prefill(prompts, &positions);
                let last: Vec<i64> = (0..prompts.lengths.len())
                    .map(|prompt| prompts.last_row(prompt))
                    .collect();
                let states = prompts
                    .hidden
                    .index_select(0, &indices(&last, model.device));
                let logits = model.language.logits(&states);
                // The other rows are of no more use.
                let prompts = Prefilled {
                    hidden: states,
                    ..prompts
                };
                PreparedBatch { prompts, logits }
            };
            Ok(Team::new(team).enter(|| tch::no_grad(run)))
        },
        |(): ()| true,
        |_, batch| batches.push(batch),
    )?;
    let places = wave.iter().enumerate().flat_map(|(batch, prompts)| {
        let places = prompts.iter().enumerate();
        places.map(move |(place, prompt)| (address(prompt), (batch, place)))
    });
    Ok(Prepared {
        places: places.collect(),
        batches,
    })
}

/// Indices of the requests of each job: those of one run whose prompts are prepared, in shards.
fn jobs(requests: &[GenerationRequest], apart: &[usize], prepared: &Prepared) -> Vec<Vec<usize>> {
    let mut jobs = Vec::new();
    let mut start = 0;
    for size in apart {
        let run: Vec<usize> = (start..start + size)
            .filter(|index| {
                let prompt = &requests[*index].prompt;
                prepared.places.contains_key(&address(prompt))
            })
            .collect();
        start += size;
        if run.is_empty() {
            continue;
        }
        let together: Vec<GenerationRequest> =
            run.iter().map(|index| requests[*index].clone()).collect();
        let shards = shards(&together, cpu_shard(together.len()));
        jobs.extend(
            shards
                .into_iter()
                .map(|shard| shard.into_iter().map(|place| run[place]).collect()),
        );
    }
    jobs
}
