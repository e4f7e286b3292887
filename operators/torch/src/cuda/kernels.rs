//! Our own kernels: compiled for a model's sizes when they are first used, and started with named arguments.

use engine_core::error::ModelError;
use tch::Tensor;

use super::compiler::compile;
use super::driver::{Argument, DeviceMemory, Function, Module, Stream};
use crate::config::TextConfig;

/// Tokens of a page of the key-value cache.
pub(super) const PAGE: usize = 64;
/// Tokens of a sequence's own that one warp attends to.
pub(super) const OWN_SPAN: usize = 128;
/// The same for prompts.
pub(super) const PROMPT_SPAN: usize = 256;
/// Rows of queries of a warp of `attend` and `attend_together`, and warps of their blocks.
const TILE_ROWS: i64 = 16;
const ATTENTION_WARPS: u32 = 4;
/// Segments of the vocabulary that are summed apart, warps of a block that sums, and threads of blocks that pick and cut.
pub(super) const SEGMENTS: usize = 128;
const SUM_WARPS: u32 = 8;
const PICK_THREADS: u32 = 128;
const CUT_THREADS: u32 = 1024;
/// Words of a segment's sums.
pub(super) const PART_WORDS: usize = 6;

const SOURCE: &str = concat!(
    include_str!("kernels/common.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/layer.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/sample.cu"),
);

/// Why a model cannot be decoded by these kernels, if so.
pub(super) fn unsupported(config: &TextConfig) -> Option<String> {
    let share = config.heads / config.key_heads;
    if ![64, 128].contains(&config.head_dim) {
        Some(format!(
            "its heads are {} wide, not 64 or 128",
            config.head_dim
        ))
    } else if share > TILE_ROWS {
        Some(format!(
            "{share} query heads share a key head, more than {TILE_ROWS}"
        ))
    } else if config.hidden % 8 != 0 || config.intermediate % 8 != 0 || config.vocab % 4 != 0 {
        Some("its widths are no multiples of 8, or its vocabulary none of 4".to_owned())
    } else {
        None
    }
}

/// Blocks of `attend` and of `attend_together` that a multiprocessor holds at a time: each goes through many spans.
fn attention_blocks(config: &TextConfig) -> [u32; 2] {
    if config.head_dim > 64 { [2, 3] } else { [3, 4] }
}

/// The kernels for one model.
#[derive(Debug)]
pub(super) struct Kernels {
    embed_norm: Function,
    add_norm: Function,
    only_norm: Function,
    rotary_table: Function,
    rotate_store: Function,
    silu_gate: Function,
    attend: Function,
    attend_together: Function,
    sum_plain: Function,
    pick_plain: Function,
    cut_any: Function,
    sum_any: Function,
    pick_any: Function,
    norm_threads: u32,
    config: TextConfig,
    processors: u32,
    /// Owns the functions.
    _module: Module,
}

/// Where `attend` finds the spans of a step.
#[derive(Debug)]
pub(super) struct SpanTables<'a> {
    pub(super) items: &'a Tensor,
    pub(super) item_heads: &'a Tensor,
    pub(super) members: &'a Tensor,
    pub(super) prompt_pages: &'a Tensor,
    pub(super) prompt_spans: &'a Tensor,
    pub(super) own_pages: &'a Tensor,
    pub(super) own_pages_each: i32,
    pub(super) spans: i32,
    /// Whether there are items of `attend_together`.
    pub(super) is_together: bool,
    /// Address of the lengths of the sequences' own tokens.
    pub(super) lengths: u64,
    /// Address of the number of items of `attend`, of the spans of the longest sequence's own tokens, and of the items of
    /// `attend_together`, which come first in the list.
    pub(super) counts: u64,
    pub(super) sums: &'a Tensor,
    pub(super) maxima: &'a Tensor,
    pub(super) arrivals: &'a Tensor,
}

/// Where draws come from and go to.
#[derive(Debug)]
pub(super) struct DrawTables<'a> {
    pub(super) logits: &'a Tensor,
    /// Address of the list of draws.
    pub(super) draws: u64,
    pub(super) params: &'a Tensor,
    pub(super) counts: &'a Option<Tensor>,
    pub(super) allowed: &'a Option<Tensor>,
    pub(super) next: &'a Tensor,
    pub(super) parts: &'a Tensor,
    pub(super) cuts: &'a Tensor,
    pub(super) results: &'a Tensor,
}

impl Kernels {
    /// Compiles for a model and a device of some number of multiprocessors and some capability.
    ///
    /// # Errors
    /// When the compiler is missing or refuses, with its first message.
    pub(super) fn compile(
        config: &TextConfig,
        processors: u32,
        capability: [i32; 2],
    ) -> Result<Self, ModelError> {
        let wanted = config.hidden / 8;
        let norm_threads = ((wanted + 31) / 32 * 32).min(1024);
        let [alone, together] = attention_blocks(config);
        let options = [
            format!("-DHIDDEN={}", config.hidden),
            format!("-DINTERMEDIATE={}", config.intermediate),
            format!("-DHEADS={}", config.heads),
            format!("-DKEY_HEADS={}", config.key_heads),
            format!("-DHEAD_DIM={}", config.head_dim),
            format!("-DVOCAB={}", config.vocab),
            format!("-DPAGE={PAGE}"),
            format!("-DOWN_SPAN={OWN_SPAN}"),
            format!("-DPROMPT_SPAN={PROMPT_SPAN}"),
            format!("-DALONE_BLOCKS={alone}"),
            format!("-DTOGETHER_BLOCKS={together}"),
            format!("-DNORM_THREADS={norm_threads}"),
        ];
        let module = Module::load(&compile(SOURCE, &options, capability)?)?;
        Ok(Self {
            embed_norm: module.function("embed_norm")?,
            add_norm: module.function("add_norm")?,
            only_norm: module.function("only_norm")?,
            rotary_table: module.function("rotary_table")?,
            rotate_store: module.function("rotate_store")?,
            silu_gate: module.function("silu_gate")?,
            attend: module.function("attend")?,
            attend_together: module.function("attend_together")?,
            sum_plain: module.function("sum_plain")?,
            pick_plain: module.function("pick_plain")?,
            cut_any: module.function("cut_any")?,
            sum_any: module.function("sum_any")?,
            pick_any: module.function("pick_any")?,
            norm_threads: norm_threads as u32,
            config: config.clone(),
            processors,
            _module: module,
        })
    }

    /// Sequences that share an item of `attend` and of `attend_together` at most.
    pub(super) fn item_sequences(&self) -> [usize; 2] {
        let of_warp = TILE_ROWS / (self.config.heads / self.config.key_heads);
        [of_warp, of_warp * i64::from(ATTENTION_WARPS)]
            .map(|count| usize::try_from(count).unwrap_or(1))
    }

    fn epsilon(&self) -> Argument {
        (self.config.norm_eps as f32).into()
    }

    /// `x = table[token]`, `out = norm(x)`.
    pub(super) fn embed_norm(
        &self,
        stream: &Stream,
        rows: i64,
        tokens: u64,
        [table, x, weight, out]: [&Tensor; 4],
    ) -> Result<(), ModelError> {
        let arguments = [
            tokens.into(),
            table.into(),
            x.into(),
            weight.into(),
            out.into(),
            self.epsilon(),
        ];
        self.embed_norm
            .launch(stream, ([rows as u32, 1], self.norm_threads), &arguments)
    }

    /// `x += added`, `out = norm(x)`.
    pub(super) fn add_norm(
        &self,
        stream: &Stream,
        rows: i64,
        [added, x, weight, out]: [&Tensor; 4],
    ) -> Result<(), ModelError> {
        let arguments = [
            added.into(),
            x.into(),
            weight.into(),
            out.into(),
            self.epsilon(),
        ];
        self.add_norm
            .launch(stream, ([rows as u32, 1], self.norm_threads), &arguments)
    }

    /// `out = norm(x)`.
    pub(super) fn only_norm(
        &self,
        stream: &Stream,
        rows: i64,
        [x, weight, out]: [&Tensor; 3],
    ) -> Result<(), ModelError> {
        let arguments = [x.into(), weight.into(), out.into(), self.epsilon()];
        self.only_norm
            .launch(stream, ([rows as u32, 1], self.norm_threads), &arguments)
    }

    /// The table of rotations for rows at `positions`.
    pub(super) fn rotary_table(
        &self,
        stream: &Stream,
        rows: i64,
        positions: u64,
        [inverse, axis, table]: [&Tensor; 3],
    ) -> Result<(), ModelError> {
        let blocks = (rows * self.config.head_dim / 2 + 255) / 256;
        let arguments = [
            positions.into(),
            inverse.into(),
            axis.into(),
            table.into(),
            (rows as i32).into(),
        ];
        self.rotary_table
            .launch(stream, ([blocks as u32, 1], 256), &arguments)
    }

    /// Bias, norms and rotation of queries and keys; keys and values go to their pages.
    pub(super) fn rotate_store(
        &self,
        stream: &Stream,
        rows: i64,
        [qkv, table]: [&Tensor; 2],
        [keys, values]: [&DeviceMemory; 2],
        [bias, query_norm, key_norm]: [&Option<Tensor>; 3],
        places: u64,
    ) -> Result<(), ModelError> {
        let heads = self.config.heads + 2 * self.config.key_heads;
        let arguments = [
            qkv.into(),
            bias.into(),
            query_norm.into(),
            key_norm.into(),
            self.epsilon(),
            table.into(),
            places.into(),
            keys.into(),
            values.into(),
        ];
        let grid = [rows as u32, (heads as u32).div_ceil(4)];
        self.rotate_store.launch(stream, (grid, 128), &arguments)
    }

    /// `out = silu(gate) * up`.
    pub(super) fn silu_gate(
        &self,
        stream: &Stream,
        rows: i64,
        gate_up: &Tensor,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let grid = [
            (self.config.intermediate as u32 / 8).div_ceil(256),
            rows as u32,
        ];
        let arguments = [gate_up.into(), out.into()];
        self.silu_gate.launch(stream, (grid, 256), &arguments)
    }

    /// Attention of one token of each sequence over its pages, from `qkv` as projected to `out`; the new keys and values go to
    /// their pages.
    pub(super) fn attend(
        &self,
        stream: &Stream,
        rows: i64,
        [qkv, table, out]: [&Tensor; 3],
        [keys, values]: [&DeviceMemory; 2],
        [bias, query_norm, key_norm]: [&Option<Tensor>; 3],
        tables: &SpanTables<'_>,
    ) -> Result<(), ModelError> {
        // The softmax is taken in base 2.
        let scale = std::f64::consts::LOG2_E / (self.config.head_dim as f64).sqrt();
        let arguments = [
            qkv.into(),
            bias.into(),
            query_norm.into(),
            key_norm.into(),
            self.epsilon(),
            table.into(),
            keys.into(),
            values.into(),
            tables.sums.into(),
            tables.maxima.into(),
            tables.arrivals.into(),
            out.into(),
            (scale as f32).into(),
            tables.spans.into(),
            tables.items.into(),
            tables.item_heads.into(),
            tables.members.into(),
            tables.prompt_pages.into(),
            tables.lengths.into(),
            tables.prompt_spans.into(),
            tables.own_pages.into(),
            tables.own_pages_each.into(),
            (rows as i32).into(),
            tables.counts.into(),
        ];
        let [alone, together] = attention_blocks(&self.config);
        let size = |blocks| ([blocks * self.processors, 1], 32 * ATTENTION_WARPS);
        if tables.is_together {
            self.attend_together
                .launch(stream, size(together), &arguments)?;
        }
        self.attend.launch(stream, size(alone), &arguments)
    }

    /// Draws tokens; `is_plain` when no sequence has penalties, forbidden tokens or truncation.
    pub(super) fn draw(
        &self,
        stream: &Stream,
        draws: i64,
        is_plain: bool,
        tables: &DrawTables<'_>,
    ) -> Result<(), ModelError> {
        let sums = ([SEGMENTS as u32 / SUM_WARPS, draws as u32], 32 * SUM_WARPS);
        let each = |threads| ([draws as u32, 1], threads);
        let (logits, list, params) = (
            tables.logits.into(),
            tables.draws.into(),
            tables.params.into(),
        );
        let (parts, next, results) = (
            tables.parts.into(),
            tables.next.into(),
            tables.results.into(),
        );
        if is_plain {
            self.sum_plain
                .launch(stream, sums, &[logits, list, params, parts])?;
            let arguments = [logits, list, params, parts, next, results];
            return self
                .pick_plain
                .launch(stream, each(PICK_THREADS), &arguments);
        }
        let (counts, allowed, cuts) = (
            tables.counts.into(),
            tables.allowed.into(),
            tables.cuts.into(),
        );
        let arguments = [logits, list, params, counts, allowed, cuts];
        self.cut_any.launch(stream, each(CUT_THREADS), &arguments)?;
        let arguments = [logits, list, params, counts, allowed, cuts, parts];
        self.sum_any.launch(stream, sums, &arguments)?;
        let arguments = [
            logits, list, params, counts, allowed, cuts, parts, next, results,
        ];
        self.pick_any.launch(stream, each(PICK_THREADS), &arguments)
    }
}
