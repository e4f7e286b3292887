//! Sequences to learn from or to score: cut into micro-batches, and laid out for a pass.
//!
//! Tokens lie one after the other without padding. A prompt that several completions share is there once; they attend to its keys
//! and values.
//!
//! Shapes: `n` completion tokens of a micro-batch, `t` tokens of its pass, `r` tokens that predict something.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{TokenizedPrompt, TrainSequence};
use tch::Tensor;

use crate::fused::Fused;
use crate::model::between::Between;
use crate::model::layer::Pass;
use crate::model::packed::{Heads, Packing, Span, Spans};
use crate::model::position::Positions;
use crate::model::prompt::PlacedImages;
use crate::model::rope::{Rope, language_rope};
use crate::model::tower::Vision;
use crate::model::{Model, indices};

/// Token positions that one micro-batch may have on a GPU unless somebody says otherwise; bounds the memory of activations.
const MICRO_BATCH_TOKENS: usize = 16_384;
/// The same on the CPU, where a micro-batch is one thread's work.
const CPU_MICRO_BATCH_TOKENS: usize = 4096;
/// A micro-batch with fewer token positions times the model's width costs more to start than another thread saves; and the fewest and
/// most token positions that this asks for: the gradients of each are added to those of others.
const CPU_SMALLEST_JOB: usize = 1 << 17;
const CPU_SMALLEST_TOKENS: [usize; 2] = [128, 512];
/// Micro-batches that a call on the CPU is cut into, if it is neither small nor large.
const CPU_JOBS: usize = 4;

/// Sequences that go through the model together, with their distinct prompts.
#[derive(Debug, Default)]
pub(crate) struct MicroBatch {
    pub(crate) prompts: Vec<Arc<TokenizedPrompt>>,
    pub(crate) positions: Vec<Positions>,
    /// Index of the sequence in the call, and of its prompt in `prompts`; those of a prompt come together.
    pub(crate) rows: Vec<(usize, usize)>,
    tokens: usize,
}

/// Most token positions of a micro-batch.
pub(crate) fn most_tokens(model: &Model, asked: Option<usize>) -> usize {
    asked.unwrap_or(if model.device.is_cuda() {
        MICRO_BATCH_TOKENS
    } else {
        CPU_MICRO_BATCH_TOKENS
    })
}

/// Most token positions of a micro-batch of calls that have some number of them, or an unknown one: 0.
pub(crate) fn most_tokens_of(model: &Model, asked: Option<usize>, call: usize) -> usize {
    let limit = most_tokens(model, asked);
    if call == 0 {
        limit
    } else if model.device.is_cuda() {
        call.min(limit)
    } else {
        // A micro-batch may be half a sequence longer than its share.
        cpu_share(model, call).min(limit)
    }
}

/// Checks sequences and packs them into micro-batches, prompts kept together. `asked` is the limit of a micro-batch in token
/// positions, which a longer sequence alone exceeds.
///
/// The result depends on the sequences and their order alone.
///
/// # Errors
/// [`ModelError::Input`] for a prompt or completion that does not fit the model, naming the sequence.
pub(crate) fn micro_batches(
    model: &Model,
    sequences: &[TrainSequence],
    asked: Option<usize>,
) -> Result<Vec<MicroBatch>, ModelError> {
    let order = order(model, sequences)?;
    let limit = most_tokens(model, asked);
    let total = order.iter().map(|item| item.own + item.fresh).sum();
    let share = if model.device.is_cuda() {
        limit
    } else {
        cpu_share(model, total).min(limit)
    };
    let mut batches = Vec::new();
    let mut batch = MicroBatch::default();
    let mut last_prompt = None;
    let mut is_whole = false;
    for (place, item) in order.iter().enumerate() {
        let sequence = &sequences[item.index];
        let is_fresh = last_prompt != Some(item.first);
        let tokens = item.own + if is_fresh { item.prompt } else { 0 };
        let mut ahead = tokens;
        if is_fresh {
            // The sequences of a prompt are kept together where that leaves micro-batches of about equal sizes.
            let group = (order[place..].iter()).take_while(|other| other.first == item.first);
            let group = item.prompt + group.map(|other| other.own).sum::<usize>();
            is_whole = group <= share;
            if is_whole {
                ahead = group;
            }
        }
        let is_due = (is_fresh || !is_whole) && batch.tokens + ahead / 2 > share;
        if !batch.rows.is_empty() && (is_due || batch.tokens + tokens > limit) {
            batches.push(std::mem::take(&mut batch));
            last_prompt = None;
        }
        let completion = sequence.completion.len();
        if last_prompt != Some(item.first) {
            batch
                .positions
                .push(model.check_prompt(&sequence.prompt, completion)?);
            batch.prompts.push(Arc::clone(&sequence.prompt));
            batch.tokens += item.prompt;
            last_prompt = Some(item.first);
        } else if item.prompt + completion > model.config.text.max_positions {
            model.check_prompt(&sequence.prompt, completion)?;
        }
        batch.rows.push((item.index, batch.prompts.len() - 1));
        batch.tokens += item.own;
    }
    if !batch.rows.is_empty() {
        batches.push(batch);
    }
    Ok(batches)
}

/// A sequence in the order in which micro-batches take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    /// Tokens of the prompt.
    prompt: usize,
    /// The first sequence with the same prompt.
    first: usize,
    /// Tokens of the completion that are run: the last predicts nothing that is asked for.
    own: usize,
    index: usize,
    /// Tokens of the prompt for the first sequence that has it, else 0.
    fresh: usize,
}

fn order(model: &Model, sequences: &[TrainSequence]) -> Result<Vec<Item>, ModelError> {
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
        order.push(Item {
            prompt: sequence.prompt.token_ids.len(),
            first,
            own: sequence.completion.len() - 1,
            index,
            fresh: 0,
        });
    }
    order.sort_unstable();
    let mut last = None;
    for item in &mut order {
        if last.replace(item.first) != Some(item.first) {
            item.fresh = item.prompt;
        }
    }
    Ok(order)
}

/// Token positions of a micro-batch on the CPU, for a call with this many. It depends on data and model alone, so that the number of
/// threads changes no result.
fn cpu_share(model: &Model, tokens: usize) -> usize {
    let width = usize::try_from(model.config.text.hidden).unwrap_or(1);
    let [fewest, most] = CPU_SMALLEST_TOKENS;
    let least = (CPU_SMALLEST_JOB / width.max(1)).clamp(fewest, most);
    let jobs = match tokens / least {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => CPU_JOBS,
    };
    tokens.div_ceil(jobs).max(1)
}

/// The tokens of a pass.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// `[t]`
    pub(crate) ids: Tensor,
    pub(crate) rope: Rope,
    pub(crate) packing: Packing,
    heads: Heads,
    /// Kernels for the device, if there are.
    pub(crate) fused: Option<Arc<Fused>>,
    pub(crate) images: Option<(&'a Vision, PlacedImages)>,
    /// Tokens that predict something, in order: `[r]`.
    pub(crate) needed: Tensor,
    /// Place among `needed` of what predicts each completion token, sequence after sequence: `[n]`.
    pub(crate) expand: Tensor,
}

impl<'a> Layout<'a> {
    /// Lays out a micro-batch.
    ///
    /// # Errors
    /// When libtorch lacks a function.
    pub(crate) fn new(
        model: &'a Model,
        batch: &MicroBatch,
        sequences: &[TrainSequence],
    ) -> Result<Self, ModelError> {
        let lines = Lines::new(batch, sequences);
        let text = &model.config.text;
        let heads = Heads {
            query: text.heads,
            key: text.key_heads,
            width: text.head_dim,
        };
        let predicting = lines.predicting(batch, sequences);
        let mut needed = predicting.clone();
        needed.sort_unstable();
        needed.dedup();
        let expand: Vec<i64> = (predicting.iter())
            .map(|row| needed.partition_point(|other| other < row) as i64)
            .collect();
        let fused = Fused::of(text, model.kind, model.device)?;
        Ok(Self {
            ids: indices(&lines.ids, model.device),
            rope: language_rope(text, &lines.places, model.kind, model.device),
            packing: Packing::new(
                &lines.spans,
                heads,
                model.kind,
                model.device,
                fused.is_some(),
            )?,
            heads,
            fused,
            images: model.place_images(&batch.prompts, &lines.prompts),
            needed: indices(&needed, model.device),
            expand: indices(&expand, model.device),
        })
    }

    /// What the layers share.
    pub(crate) fn pass<'b>(&'b self, model: &'b Model) -> Pass<'b> {
        Pass {
            between: Between {
                heads: self.heads,
                eps: model.config.text.norm_eps,
                rope: &self.rope,
                fused: self.fused.as_deref(),
                places: self.packing.places(),
            },
            packing: &self.packing,
        }
    }
}

/// The tokens of a pass, on the host.
#[derive(Debug, Default)]
struct Lines {
    ids: Vec<i64>,
    places: Vec<[i64; 3]>,
    spans: Spans,
    /// First token of each prompt.
    prompts: Vec<i64>,
    /// First token of each row's completion.
    completions: Vec<i64>,
}

impl Lines {
    /// Prompts that are shared, the completions that share them, then prompts with their only completion as one sequence.
    fn new(batch: &MicroBatch, sequences: &[TrainSequence]) -> Self {
        let mut lines = Self {
            prompts: vec![0; batch.prompts.len()],
            completions: vec![0; batch.rows.len()],
            ..Self::default()
        };
        let runs = |row: &usize| sequences[batch.rows[*row].0].completion.len() > 1;
        let mut groups: Vec<Vec<usize>> = vec![Vec::new(); batch.prompts.len()];
        for row in (0..batch.rows.len()).filter(runs) {
            groups[batch.rows[row].1].push(row);
        }
        let is_shared = |prompt: &usize| groups[*prompt].len() > 1;
        let (shared, single): (Vec<usize>, Vec<usize>) =
            (0..batch.prompts.len()).partition(is_shared);
        let prompts: Vec<Span> = (shared.iter())
            .map(|prompt| {
                let span = lines.push_prompt(batch, *prompt);
                lines.spans.own.push(span);
                span
            })
            .collect();
        for (prompt, keys) in shared.iter().zip(prompts) {
            let start = lines.ids.len() as i64;
            for row in &groups[*prompt] {
                let span = lines.push_completion(batch, sequences, *row);
                lines.spans.own.push(span);
            }
            let length = lines.ids.len() as i64 - start;
            lines.spans.shared.push((Span { start, length }, keys));
        }
        for prompt in single {
            let mut span = lines.push_prompt(batch, prompt);
            for row in &groups[prompt] {
                span.length += lines.push_completion(batch, sequences, *row).length;
            }
            lines.spans.own.push(span);
        }
        lines
    }

    fn push_prompt(&mut self, batch: &MicroBatch, prompt: usize) -> Span {
        let start = self.ids.len() as i64;
        self.prompts[prompt] = start;
        let ids = &batch.prompts[prompt].token_ids;
        self.ids.extend(ids.iter().map(|id| i64::from(*id)));
        (self.places).extend_from_slice(&batch.positions[prompt].tokens);
        Span {
            start,
            length: ids.len() as i64,
        }
    }

    fn push_completion(
        &mut self,
        batch: &MicroBatch,
        sequences: &[TrainSequence],
        row: usize,
    ) -> Span {
        let (index, prompt) = batch.rows[row];
        let start = self.ids.len() as i64;
        self.completions[row] = start;
        let (_, ids) = (sequences[index].completion.split_last())
            .expect("a completion that is run has several tokens");
        let next = batch.positions[prompt].next;
        self.ids.extend(ids.iter().map(|id| i64::from(*id)));
        (self.places).extend((0..ids.len() as i64).map(|token| [next + token; 3]));
        Span {
            start,
            length: ids.len() as i64,
        }
    }

    /// The token that predicts each completion token, sequence after sequence.
    fn predicting(&self, batch: &MicroBatch, sequences: &[TrainSequence]) -> Vec<i64> {
        let mut rows = Vec::new();
        for ((index, prompt), start) in batch.rows.iter().zip(&self.completions) {
            let length = batch.prompts[*prompt].token_ids.len() as i64;
            rows.push(self.prompts[*prompt] + length - 1);
            rows.extend(*start..start + sequences[*index].completion.len() as i64 - 1);
        }
        rows
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
