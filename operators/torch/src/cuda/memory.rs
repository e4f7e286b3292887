//! The device memory of a batch, planned when it is opened.
//!
//! Shapes: `r` rows of the largest pass, `l` rows that are drawn from, `s` sequences, `w` model width, `h` query heads, `k` key
//! heads, `d` head width, `i` width of the gated unit, `v` vocabulary.

use engine_core::error::ModelError;
use engine_core::policy::SessionLimits;
use tch::{Kind, Tensor};

use super::driver::{self, DeviceMemory};
use super::kernels::{OWN_SPAN, PAGE, PART_WORDS, PROMPT_SPAN, SEGMENTS};
use super::pages::Pages;
use crate::model::Model;
use crate::model::rope::language_frequencies;

/// Rows of the largest chunk of prompts.
pub(super) const CHUNK: i64 = 2048;
/// First tokens that are drawn together.
pub(super) const FIRST_DRAWS: i64 = 64;
/// Words of one sequence's sampling parameters, as in `kernels/sample.cu`.
pub(super) const PARAM_WORDS: usize = 32;
/// Words of one draw and of its result.
pub(super) const DRAW_WORDS: usize = 4;
/// Share of the free memory that the cache takes; the rest is for attention over prompts and images.
const CACHE_SHARE: f64 = 0.92;
/// Bytes that are left free in any case.
const RESERVE: usize = 1 << 30;

/// Tensors of a batch.
#[derive(Debug)]
pub(super) struct Memory {
    /// The residual stream, `[r, w]`, 32 bits.
    pub(super) x: Tensor,
    /// `[r, w]`
    pub(super) normed: Tensor,
    /// `[r, h + 2 k, d]`
    pub(super) qkv: Tensor,
    /// `[r, h, d]`
    pub(super) attended: Tensor,
    /// Output of a block before it is added to the stream, `[r, w]`.
    pub(super) added: Tensor,
    /// `[r, 2 i]`
    pub(super) gate_up: Tensor,
    /// `[r, i]`
    pub(super) gated: Tensor,
    /// Cosines and sines, `[r, d / 2, 2]`, 32 bits.
    pub(super) turns: Tensor,
    /// Positions and places of a chunk of prompts, `[4 r]`.
    pub(super) chunk_words: Tensor,
    /// `[l, v]`, 32 bits.
    pub(super) logits: Tensor,
    /// States that first tokens are drawn from, `[FIRST_DRAWS, w]`.
    pub(super) last_states: Tensor,
    /// Everything that the host says of one step (see `decode.rs`).
    pub(super) step_words: Tensor,
    /// Draws of first tokens.
    pub(super) first_words: Tensor,
    /// Partial sums of attention, `[s, spans, h, d]`, and their maxima, `[s, spans, h, 2]`, 32 bits.
    pub(super) sums: Tensor,
    pub(super) maxima: Tensor,
    /// Spans that are done, `[s, k]`.
    pub(super) arrivals: Tensor,
    /// Sampling parameters, `[s, PARAM_WORDS]`.
    pub(super) params: Tensor,
    /// Last drawn token of each sequence, `[s]`.
    pub(super) next: Tensor,
    /// Sums of segments of the vocabulary, `[l, SEGMENTS, PART_WORDS]`, and where each distribution is cut, `[l, 2]`.
    pub(super) parts: Tensor,
    pub(super) cuts: Tensor,
    /// `[l, DRAW_WORDS]`
    pub(super) results: Tensor,
    /// Pages of each sequence's own tokens, `[s, own_pages]`.
    pub(super) own_pages: Tensor,
    /// Spans of each sequence's prompt, `[s]`.
    pub(super) prompt_spans: Tensor,
    /// The list of prompts' spans (see `kernels/attention.cu`).
    pub(super) items: Tensor,
    pub(super) item_heads: Tensor,
    pub(super) members: Tensor,
    pub(super) prompt_pages: Tensor,
    /// Times that each sequence has each token, `[s, v]` of 16 bits; when somebody asks for penalties.
    pub(super) counts: Option<Tensor>,
    /// Tokens that each sequence may have, `[s, v / 32]`; when somebody is limited.
    pub(super) allowed: Option<Tensor>,
    /// Rotary frequencies and their axes, `[d / 2]`.
    pub(super) inverse: Tensor,
    pub(super) axes: Tensor,
    /// Cache of each layer, `[pages, k, PAGE, d]` and `[pages, k, d, PAGE]`.
    pub(super) keys: Vec<DeviceMemory>,
    pub(super) values: Vec<DeviceMemory>,
    /// Most spans of a sequence.
    pub(super) spans: usize,
    /// Most pages of a sequence's own tokens.
    pub(super) own_pages_each: usize,
    /// Most items.
    pub(super) most_items: usize,
    /// The pages of the cache.
    pub(super) pages: Pages,
}

/// Makes libtorch's allocator give back the blocks that it keeps for later: it does so before it refuses a request. Takes some tenths of
/// a second, in which it makes up its message.
fn give_back_kept_memory(model: &Model) -> Result<(), ModelError> {
    let (_, total) = driver::memory()?;
    let too_much = 2 * total as i64;
    let refused = Tensor::f_empty([too_much], (Kind::Uint8, model.device));
    debug_assert!(refused.is_err(), "no device has twice its memory");
    Ok(())
}

/// Bytes of a batch: with the smallest cache that takes a sequence of this length, and with all that these sequences can use.
pub(super) fn bytes(model: &Model, sequences: usize, most: usize) -> (u64, u64) {
    let text = &model.config.text;
    let count = |value: i64| usize::try_from(value).unwrap_or(0);
    let (rows, drawn) = (
        sequences.max(count(CHUNK)),
        sequences.max(count(FIRST_DRAWS)),
    );
    let [width, inner, vocab] = [text.hidden, text.intermediate, text.vocab].map(count);
    let [queries, keys] = [text.heads, text.key_heads].map(|heads| count(heads * text.head_dim));
    let (half, wide) = (2, 4);
    let stream = width * (wide + 2 * half) + (2 * queries + 2 * keys + 3 * inner) * half;
    let spans = most.div_ceil(OWN_SPAN) + 2;
    let workspace =
        rows * stream + drawn * vocab * wide + sequences * spans * queries * wide + RESERVE;
    let page = page_bytes(model);
    let least = most.div_ceil(PAGE) + 2;
    (
        (workspace + least * page) as u64,
        (workspace + sequences * least * page) as u64,
    )
}

/// Bytes of a page in all layers.
fn page_bytes(model: &Model) -> usize {
    let text = &model.config.text;
    let values = 2
        * text.layers
        * PAGE
        * usize::try_from(text.key_heads * text.head_dim).unwrap_or(usize::MAX);
    values * Kind::BFloat16.elt_size_in_bytes()
}

impl Memory {
    /// Allocates everything for `sequences` sequences, a multiple of what a step is run with; the cache takes what is free then.
    ///
    /// # Errors
    /// [`ModelError::Input`] when not even one sequence of the largest size fits.
    pub(super) fn plan(
        model: &Model,
        sequences: i64,
        limits: SessionLimits,
    ) -> Result<Self, ModelError> {
        let text = &model.config.text;
        let device = model.device;
        let half = |shape: &[i64]| Tensor::empty(shape, (Kind::BFloat16, device));
        let wide = |shape: &[i64]| Tensor::empty(shape, (Kind::Float, device));
        let words = |count: usize| Tensor::zeros([count.max(1) as i64], (Kind::Int, device));
        let (rows, drawn) = (sequences.max(CHUNK), sequences.max(FIRST_DRAWS));
        let (heads, key_heads, width) = (text.heads, text.key_heads, text.head_dim);
        let most = limits.max_tokens;
        let slots = usize::try_from(sequences).unwrap_or(1);
        let spans = most.div_ceil(OWN_SPAN) + 2;
        let own_pages_each = most.div_ceil(PAGE) + 1;
        let own_pages_each = own_pages_each.next_multiple_of(OWN_SPAN / PAGE);
        let most_items =
            slots * most.div_ceil(PROMPT_SPAN) * usize::try_from(key_heads).unwrap_or(1);
        let frequencies = language_frequencies(text);
        let axes: Vec<i32> = frequencies.axes.iter().map(|axis| *axis as i32).collect();
        let mut memory = Self {
            x: wide(&[rows, text.hidden]),
            normed: half(&[rows, text.hidden]),
            qkv: half(&[rows, heads + 2 * key_heads, width]),
            attended: half(&[rows, heads, width]),
            added: half(&[rows, text.hidden]),
            gate_up: half(&[rows, 2 * text.intermediate]),
            gated: half(&[rows, text.intermediate]),
            turns: wide(&[rows, width / 2, 2]),
            chunk_words: words(4 * CHUNK as usize),
            logits: wide(&[drawn, text.vocab]),
            last_states: half(&[FIRST_DRAWS, text.hidden]),
            step_words: words((4 + DRAW_WORDS) * slots + 4),
            first_words: words(FIRST_DRAWS as usize * DRAW_WORDS),
            sums: wide(&[sequences, spans as i64, heads, width]),
            maxima: wide(&[sequences, spans as i64, heads, 2]),
            arrivals: words(slots * usize::try_from(key_heads).unwrap_or(1)),
            params: words(slots * PARAM_WORDS),
            next: words(slots),
            parts: words(slots.max(FIRST_DRAWS as usize) * SEGMENTS * PART_WORDS),
            cuts: words(slots.max(FIRST_DRAWS as usize) * 2),
            results: words(usize::try_from(drawn).unwrap_or(1) * DRAW_WORDS),
            own_pages: words(slots * own_pages_each),
            prompt_spans: words(slots),
            items: words(4 * most_items),
            item_heads: words(most_items),
            members: words(slots),
            prompt_pages: words(slots * most.div_ceil(PAGE)),
            counts: None,
            allowed: None,
            inverse: Tensor::from_slice(&frequencies.inverse).to_device(device),
            axes: Tensor::from_slice(&axes).to_device(device),
            keys: Vec::new(),
            values: Vec::new(),
            spans,
            own_pages_each,
            most_items,
            pages: Pages::new(0),
        };
        memory.plan_cache(model, most)?;
        Ok(memory)
    }

    fn plan_cache(&mut self, model: &Model, most: usize) -> Result<(), ModelError> {
        let text = &model.config.text;
        let measure = || {
            let (free, _) = driver::memory()?;
            Ok::<usize, ModelError>((free.saturating_sub(RESERVE) as f64 * CACHE_SHARE) as usize)
        };
        let slots = self.next.numel();
        // More than every sequence can ever use is of no use.
        let wanted = slots * (most.div_ceil(PAGE) + 2);
        let mut usable = measure()?;
        if usable < wanted * page_bytes(model) {
            give_back_kept_memory(model)?;
            usable = measure()?;
        }
        let count = (usable / page_bytes(model)).min(wanted);
        let least = most.div_ceil(PAGE) + 2;
        if count < least {
            return Err(ModelError::Input(format!(
                "{} MiB of GPU memory are free for keys and values, too little for one sequence of {most} tokens ({} MiB); \
                 allow fewer tokens or fewer sequences at the same time",
                usable >> 20,
                (least * page_bytes(model)) >> 20
            )));
        }
        let bytes = count * page_bytes(model) / (2 * text.layers);
        for _ in 0..text.layers {
            self.keys.push(DeviceMemory::new(bytes)?);
            self.values.push(DeviceMemory::new(bytes)?);
        }
        self.pages = Pages::new(count);
        tracing::debug!(
            pages = count,
            of_tokens = PAGE,
            "planned the key-value cache"
        );
        Ok(())
    }
}
