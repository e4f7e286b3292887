//! Completions through the model for training and scoring: batches, hidden states and log-probabilities.
//!
//! A prompt that several completions share is run once; each completion attends to its keys and values.
//!
//! Shapes: `n` completion tokens of the batch, `b` sequences, `p` prompts, `l` padded length, `w` model width,
//! `v` vocabulary.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{TokenizedPrompt, TrainSequence};
use tch::{Kind, Tensor};

use crate::model::attention::Continue;
use crate::model::language::Language;
use crate::model::position::Positions;
use crate::model::prompt::Prefilled;
use crate::model::rope::language_rope;
use crate::model::{Model, indices};

/// Token positions, padding included, that one micro-batch may have on a GPU; bounds the memory of activations.
const MICRO_BATCH_TOKENS: usize = 16_384;
/// The same on the CPU, where a micro-batch is one thread's work.
const CPU_MICRO_BATCH_TOKENS: usize = 4096;
/// Below this many token positions a micro-batch costs more to start than another thread saves.
const CPU_SMALLEST_JOB: usize = 512;
/// Micro-batches that a call on the CPU is cut into, if it is neither small nor large.
const CPU_JOBS: usize = 4;
/// Logits that are held at a time.
const LOGIT_CHUNK: i64 = 1 << 24;

/// Sequences that go through the model together, with their distinct prompts.
#[derive(Debug, Default)]
pub(crate) struct MicroBatch {
    pub(crate) prompts: Vec<Arc<TokenizedPrompt>>,
    pub(crate) positions: Vec<Positions>,
    /// Index of the sequence in the call, and of its prompt in `prompts`.
    pub(crate) rows: Vec<(usize, usize)>,
    longest_prompt: usize,
    longest_completion: usize,
}

impl MicroBatch {
    fn tokens_with(&self, prompts: usize, prompt: usize, completion: usize) -> usize {
        let longest_prompt = self.longest_prompt.max(prompt);
        let longest_completion = self.longest_completion.max(completion);
        // Each sequence also holds a copy of its prompt's keys and values.
        (self.prompts.len() + prompts) * longest_prompt
            + (self.rows.len() + 1) * (longest_completion + longest_prompt / 4)
    }

    fn push(&mut self, row: usize, prompt: usize, sequence: &TrainSequence) {
        self.rows.push((row, prompt));
        self.longest_prompt = self.longest_prompt.max(sequence.prompt.token_ids.len());
        self.longest_completion = self.longest_completion.max(sequence.completion.len());
    }
}

/// Checks sequences and packs them into micro-batches of similar lengths, prompts kept together.
///
/// The result depends on the sequences and their order alone.
///
/// # Errors
/// [`ModelError::Input`] for a prompt or completion that does not fit the model, naming the sequence.
pub(crate) fn micro_batches(
    model: &Model,
    sequences: &[TrainSequence],
) -> Result<Vec<MicroBatch>, ModelError> {
    let mut first_use: BTreeMap<*const TokenizedPrompt, usize> = BTreeMap::new();
    let mut order = Vec::with_capacity(sequences.len());
    for (index, sequence) in sequences.iter().enumerate() {
        if sequence.completion.is_empty() {
            return Err(ModelError::Input(format!(
                "sequence {index} has an empty completion"
            )));
        }
        model.check_tokens(&sequence.completion)?;
        let first = *first_use
            .entry(Arc::as_ptr(&sequence.prompt))
            .or_insert(index);
        order.push((
            sequence.prompt.token_ids.len(),
            first,
            sequence.completion.len(),
            index,
        ));
    }
    order.sort_unstable();
    let limit = if model.device.is_cuda() {
        MICRO_BATCH_TOKENS
    } else {
        let own = |(prompt, first, completion, index): &(usize, usize, usize, usize)| {
            completion + prompt / 4 + if first == index { *prompt } else { 0 }
        };
        cpu_limit(order.iter().map(own).sum())
    };
    let mut batches = Vec::new();
    let mut batch = MicroBatch::default();
    let mut last_prompt = None;
    for (_, first, _, index) in order {
        let sequence = &sequences[index];
        let mut fresh = last_prompt != Some(first);
        let (prompt, completion) = (sequence.prompt.token_ids.len(), sequence.completion.len());
        if !batch.rows.is_empty()
            && batch.tokens_with(usize::from(fresh), prompt, completion) > limit
        {
            batches.push(std::mem::take(&mut batch));
            fresh = true;
        }
        if fresh {
            batch
                .positions
                .push(model.check_prompt(&sequence.prompt, completion)?);
            batch.prompts.push(Arc::clone(&sequence.prompt));
            last_prompt = Some(first);
        } else if prompt + completion > model.config.text.max_positions {
            model.check_prompt(&sequence.prompt, completion)?;
        }
        let row = batch.prompts.len() - 1;
        batch.push(index, row, sequence);
    }
    if !batch.rows.is_empty() {
        batches.push(batch);
    }
    Ok(batches)
}

/// Token positions of a micro-batch on the CPU, for a call with this many. It depends on the data alone, so that the
/// number of threads changes no result.
fn cpu_limit(tokens: usize) -> usize {
    let jobs = match tokens / CPU_SMALLEST_JOB {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => CPU_JOBS,
    };
    // Padding is not in the sum, so leave room for it.
    (tokens / jobs * 5 / 4 + 1).min(CPU_MICRO_BATCH_TOKENS)
}

/// Hidden states that predict each completion token: `[n, w]`, sequence after sequence.
pub(crate) fn completion_states(
    model: &Model,
    batch: &MicroBatch,
    sequences: &[TrainSequence],
) -> Tensor {
    let prefilled = model.prefill(&batch.prompts, &batch.positions);
    // The last token of a completion predicts nothing that is asked for, so it is not run.
    let mut next_row = batch.prompts.len() as i64 * prefilled.padded;
    let mut rows = Vec::new();
    for (index, prompt) in &batch.rows {
        rows.push(prefilled.last_row(*prompt));
        let count = sequences[*index].completion.len() as i64 - 1;
        rows.extend(next_row..next_row + count);
        next_row += count;
    }
    let rows = indices(&rows, model.device);
    if batch.longest_completion == 1 {
        return prefilled.hidden.index_select(0, &rows);
    }
    let continued = run_completions(model, batch, sequences, &prefilled);
    Tensor::cat(&[&prefilled.hidden, &continued], 0).index_select(0, &rows)
}

/// Runs completions without their last tokens, one after the other: `[t, w]`.
fn run_completions(
    model: &Model,
    batch: &MicroBatch,
    sequences: &[TrainSequence],
    prefilled: &Prefilled,
) -> Tensor {
    let longest = batch.longest_completion - 1;
    let (mut ids, mut places) = (Vec::new(), Vec::new());
    let (mut pad, mut unpad) = (Vec::new(), Vec::new());
    for (row, (index, prompt)) in batch.rows.iter().enumerate() {
        let completion = &sequences[*index].completion;
        let count = completion.len() - 1;
        pad.extend((ids.len()..ids.len() + count).map(|token| token as i64));
        pad.resize((row + 1) * longest, 0);
        unpad.extend((row * longest..row * longest + count).map(|place| place as i64));
        ids.extend(completion[..count].iter().map(|id| i64::from(*id)));
        places.extend((0..count as i64).map(|token| [prefilled.next[*prompt] + token; 3]));
    }
    let rows: Vec<i64> = batch
        .rows
        .iter()
        .map(|(_, prompt)| *prompt as i64)
        .collect();
    let lengths: Vec<i64> = batch
        .rows
        .iter()
        .map(|(_, prompt)| prefilled.lengths[*prompt])
        .collect();
    let mut attend = Continue {
        prompts: &prefilled.layers,
        rows: indices(&rows, model.device),
        pad: indices(&pad, model.device),
        unpad: indices(&unpad, model.device),
        mask: continuation_mask(model, &lengths, prefilled.padded, longest as i64),
    };
    let rope = language_rope(&model.config.text, &places, model.kind, model.device);
    model.language.run(
        model.language.embed(&indices(&ids, model.device)),
        &rope,
        &mut attend,
    )
}

/// What each completion token sees: the prompt without its padding, and the completion up to itself. Repeated for
/// the query heads that share a key head.
///
/// # Shapes
/// - `lengths`: of the prompts, one for each sequence; returns `[b, 1, g * l, prompt + l]`
fn continuation_mask(model: &Model, lengths: &[i64], prompt: i64, padded: i64) -> Tensor {
    let batch = lengths.len() as i64;
    let share = model.config.text.heads / model.config.text.key_heads;
    let options = (Kind::Int64, model.device);
    let lengths = indices(lengths, model.device).view([batch, 1, 1, 1]);
    let hidden_prompt = Tensor::arange(prompt, options)
        .view([1, 1, 1, prompt])
        .greater_equal_tensor(&lengths);
    let places = Tensor::arange(padded, options);
    let hidden_own = places
        .view([1, 1, 1, padded])
        .greater_tensor(&places.view([1, 1, padded, 1]));
    let hidden = Tensor::cat(
        &[
            hidden_prompt.expand([batch, 1, padded, prompt], false),
            hidden_own.expand([batch, 1, padded, padded], false),
        ],
        -1,
    );
    let hidden = hidden.repeat([1, 1, share, 1]);
    Tensor::zeros(hidden.size(), (model.kind, model.device)).masked_fill(&hidden, f64::NEG_INFINITY)
}

/// Rows that may go through the output head together.
pub(crate) fn head_chunk(vocab: i64) -> i64 {
    (LOGIT_CHUNK / vocab).max(1)
}

/// Log-probabilities of the whole vocabulary, `[n, v]`, in 32 bits.
pub(crate) fn log_distribution(language: &Language, hidden_nw: &Tensor) -> Tensor {
    language.logits(hidden_nw).log_softmax(-1, None)
}

/// Log-probability of each completion token, in the order of the batch's rows.
pub(crate) fn score(
    model: &Model,
    batch: &MicroBatch,
    sequences: &[TrainSequence],
) -> Result<Vec<f32>, ModelError> {
    let hidden = completion_states(model, batch, sequences);
    let targets = indices(&completion_tokens(batch, sequences), model.device);
    let (count, chunk) = (hidden.size()[0], head_chunk(model.config.text.vocab));
    let mut values = Vec::new();
    let mut start = 0;
    while start < count {
        let length = chunk.min(count - start);
        let distribution = log_distribution(&model.language, &hidden.narrow(0, start, length));
        let picked = distribution
            .gather(1, &targets.narrow(0, start, length).unsqueeze(1), false)
            .squeeze_dim(1);
        values.extend(
            Vec::<f32>::try_from(picked.to_kind(Kind::Float))
                .map_err(|error| ModelError::Backend(error.to_string()))?,
        );
        start += length;
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(token) => Err(ModelError::NonFinite(format!(
            "log-probability of completion token {token} of a batch"
        ))),
        None => Ok(values),
    }
}

/// Completion tokens, sequence after sequence.
pub(crate) fn completion_tokens(batch: &MicroBatch, sequences: &[TrainSequence]) -> Vec<i64> {
    batch
        .rows
        .iter()
        .flat_map(|(index, _)| sequences[*index].completion.iter().map(|id| i64::from(*id)))
        .collect()
}
