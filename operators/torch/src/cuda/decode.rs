//! One token of every sequence: the tables of a step, and the work on the device, recorded as a graph for each number of rows.

use std::collections::{BTreeMap, HashMap};

use engine_core::error::ModelError;
use tch::Kind;

use super::Gpu;
use super::driver::{Graph, address};
use super::forward::head_product;
use super::kernels::{DrawTables, OWN_SPAN, PAGE, PROMPT_SPAN, SpanTables};
use super::memory::{DRAW_WORDS, Memory};
use super::sequence::{Prompt, Sequence};
use crate::model::Model;

/// Numbers of rows that steps are run with, up to which all are multiples of [`WIDE_STEP`].
const WIDTHS: [i64; 20] = [
    1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512,
];
const WIDE_STEP: i64 = 128;

/// Rows that a step with this many sequences is run with.
pub(super) fn width(sequences: usize) -> i64 {
    let sequences = sequences.max(1) as i64;
    WIDTHS
        .into_iter()
        .find(|width| *width >= sequences)
        .unwrap_or((sequences + WIDE_STEP - 1) / WIDE_STEP * WIDE_STEP)
}

/// What a recorded step depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepKind {
    pub(super) rows: i64,
    pub(super) is_plain: bool,
    /// Whether sequences share prompts in such numbers that `attend_together` is for them.
    pub(super) is_together: bool,
}

/// Recorded steps; `None` for a kind that has run once, so that everything that it needs is loaded.
pub(super) type Graphs = HashMap<StepKind, Option<Graph>>;

/// Where the parts of a step's words begin, for some number of rows.
#[derive(Clone, Copy, Debug)]
struct Layout {
    rows: usize,
}

impl Layout {
    fn lengths(self) -> usize {
        3 * self.rows
    }
    fn counts(self) -> usize {
        4 * self.rows
    }
    fn draws(self) -> usize {
        4 * self.rows + 4
    }
    fn all(self) -> usize {
        self.draws() + DRAW_WORDS * self.rows
    }
}

/// The words of a step: positions `[3, rows]`, lengths of own tokens `[rows]`, counts `[4]`, draws
/// `[rows, DRAW_WORDS]`. Sequences that go on are counted as launched. `None` when none goes on.
pub(super) fn step_words(
    rows: usize,
    slots: &mut [Option<Sequence>],
    prompts: &[Option<Prompt>],
    items: ItemCounts,
) -> Option<Vec<i32>> {
    let layout = Layout { rows };
    let mut words = vec![0; layout.all()];
    let (mut longest, mut going_on) = (0, 0);
    for (row, sequence) in slots.iter_mut().take(rows).enumerate() {
        let draw = layout.draws() + DRAW_WORDS * row;
        words[draw + 1] = -1;
        let Some(sequence) = sequence.as_mut().filter(|sequence| sequence.goes_on()) else {
            continue;
        };
        let prompt = prompts[sequence.prompt]
            .as_ref()
            .expect("a sequence has a prompt");
        // The token that is run is the one drawn last.
        let own = sequence.launched - 1;
        let position = (prompt.positions.next + own as i64) as i32;
        for axis in 0..3 {
            words[axis * rows + row] = position;
        }
        words[layout.lengths() + row] = own as i32 + 1;
        words[draw..draw + 3].copy_from_slice(&[row as i32, row as i32, sequence.launched as i32]);
        longest = longest.max(own + 1);
        sequence.launched += 1;
        going_on += 1;
    }
    words[layout.counts()] = items.alone as i32;
    words[layout.counts() + 1] = longest.div_ceil(OWN_SPAN) as i32;
    words[layout.counts() + 2] = items.together as i32;
    (going_on > 0).then_some(words)
}

/// Numbers of prompts' spans that `attend_together` takes, and `attend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ItemCounts {
    pub(super) together: usize,
    pub(super) alone: usize,
}

/// The list of prompts' spans for the sequences in the batch.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Items {
    pub(super) counts: ItemCounts,
    /// Four words each, those for `attend_together` first.
    pub(super) items: Vec<i32>,
    pub(super) heads: Vec<i32>,
    pub(super) members: Vec<i32>,
    pub(super) pages: Vec<i32>,
}

impl Items {
    /// `most` sequences share an item of `attend` and of `attend_together`.
    pub(super) fn of(
        slots: &[Option<Sequence>],
        prompts: &[Option<Prompt>],
        key_heads: i64,
        [most, most_together]: [usize; 2],
    ) -> Self {
        let mut by_prompt: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for (slot, sequence) in slots.iter().enumerate() {
            if let Some(sequence) = sequence {
                by_prompt
                    .entry(sequence.prompt)
                    .or_default()
                    .push(slot as i32);
            }
        }
        let mut list = Self::default();
        let mut alone = Self::default();
        for (prompt, members) in by_prompt {
            let prompt = prompts[prompt].as_ref().expect("a sequence has a prompt");
            let (members_at, pages_at) = (list.members.len(), list.pages.len());
            list.members.extend(&members);
            list.pages.extend(&prompt.pages);
            let tokens = prompt.source.token_ids.len();
            for span in 0..tokens.div_ceil(PROMPT_SPAN) {
                let count = (tokens - span * PROMPT_SPAN).min(PROMPT_SPAN);
                let pages = pages_at + span * (PROMPT_SPAN / PAGE);
                for head in 0..key_heads as i32 {
                    for start in (0..members.len()).step_by(most_together) {
                        let sequences = (members.len() - start).min(most_together);
                        let target = if sequences > most {
                            &mut list
                        } else {
                            &mut alone
                        };
                        target.items.extend([
                            (members_at + start) as i32,
                            sequences as i32,
                            pages as i32,
                            (count | span << 16) as i32,
                        ]);
                        target.heads.push(head);
                    }
                }
            }
        }
        list.counts = ItemCounts {
            together: list.heads.len(),
            alone: alone.heads.len(),
        };
        list.items.extend(alone.items);
        list.heads.extend(alone.heads);
        list
    }
}

impl Gpu {
    /// Runs a step whose words are on the device. The first of its kind runs as it is, the others as a graph.
    ///
    /// # Errors
    /// On a device error.
    pub(super) fn decode(
        &mut self,
        model: &Model,
        memory: &Memory,
        graphs: &mut Graphs,
        kind: StepKind,
    ) -> Result<(), ModelError> {
        let text = &model.config.text;
        self.prepare(text, kind.rows)?;
        self.gemm.prepare(head_product(text, kind.rows))?;
        match graphs.get(&kind) {
            Some(Some(graph)) => graph.launch(&self.stream),
            Some(None) => {
                let graph = Graph::record(&self.stream, || self.step(model, memory, kind))?;
                graph.launch(&self.stream)?;
                graphs.insert(kind, Some(graph));
                Ok(())
            }
            None => {
                self.step(model, memory, kind)?;
                graphs.insert(kind, None);
                Ok(())
            }
        }
    }

    fn step(&self, model: &Model, memory: &Memory, kind: StepKind) -> Result<(), ModelError> {
        let (text, language) = (&model.config.text, &model.language);
        let (stream, rows) = (&self.stream, kind.rows);
        let products = super::forward::Products::of(text, rows);
        let layout = Layout {
            rows: rows as usize,
        };
        let word = |place: usize| address(&memory.step_words) + 4 * place as u64;
        let tables = SpanTables {
            items: &memory.items,
            item_heads: &memory.item_heads,
            members: &memory.members,
            prompt_pages: &memory.prompt_pages,
            prompt_spans: &memory.prompt_spans,
            own_pages: &memory.own_pages,
            own_pages_each: memory.own_pages_each as i32,
            spans: memory.spans as i32,
            is_together: kind.is_together,
            lengths: word(layout.lengths()),
            counts: word(layout.counts()),
            sums: &memory.sums,
            maxima: &memory.maxima,
            arrivals: &memory.arrivals,
        };
        self.kernels.rotary_table(
            stream,
            rows,
            word(0),
            [&memory.inverse, &memory.axes, &memory.turns],
        )?;
        for (index, layer) in language.layers.iter().enumerate() {
            if index == 0 {
                let tensors = [
                    &language.embedding,
                    &memory.x,
                    &layer.input_norm,
                    &memory.normed,
                ];
                self.kernels
                    .embed_norm(stream, rows, address(&memory.next), tensors)?;
            } else {
                let tensors = [&memory.added, &memory.x, &layer.input_norm, &memory.normed];
                self.kernels.add_norm(stream, rows, tensors)?;
            }
            self.project(&products, layer, memory)?;
            self.kernels.attend(
                stream,
                rows,
                [&memory.qkv, &memory.turns, &memory.attended],
                [&memory.keys[index], &memory.values[index]],
                [&layer.qkv_bias, &layer.q_norm, &layer.k_norm],
                &tables,
            )?;
            self.mix(&products, layer, memory)?;
        }
        let last = [&memory.added, &memory.x, &language.norm, &memory.normed];
        self.kernels.add_norm(stream, rows, last)?;
        let head = head_product(text, rows);
        self.gemm
            .run(stream, head, &language.head, &memory.normed, &memory.logits)?;
        self.draw(memory, rows, word(layout.draws()), kind.is_plain)
    }

    /// Draws tokens from `memory.logits`.
    ///
    /// # Errors
    /// On a device error.
    pub(super) fn draw(
        &self,
        memory: &Memory,
        draws: i64,
        list: u64,
        is_plain: bool,
    ) -> Result<(), ModelError> {
        debug_assert_eq!(memory.results.kind(), Kind::Int);
        let tables = DrawTables {
            logits: &memory.logits,
            draws: list,
            params: &memory.params,
            counts: &memory.counts,
            allowed: &memory.allowed,
            next: &memory.next,
            parts: &memory.parts,
            cuts: &memory.cuts,
            results: &memory.results,
        };
        self.kernels.draw(&self.stream, draws, is_plain, &tables)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine_core::policy::{GenerationRequest, SamplingParams, SessionRequest, TokenizedPrompt};

    use super::*;
    use crate::model::position::plain;

    fn prompt(tokens: usize, pages: &[i32]) -> Option<Prompt> {
        let source = TokenizedPrompt {
            token_ids: vec![1; tokens],
            images: Vec::new(),
        };
        Some(Prompt {
            source: Arc::new(source),
            positions: plain(tokens),
            pages: pages.to_vec(),
            state: None,
            users: 1,
        })
    }

    fn sequence(prompt: usize, launched: usize, own_pages: &[i32]) -> Option<Sequence> {
        let params = SamplingParams {
            max_new_tokens: 100,
            ..SamplingParams::default()
        };
        Some(Sequence {
            id: 0,
            prompt,
            request: SessionRequest {
                request: GenerationRequest {
                    prompt: Arc::new(TokenizedPrompt::default()),
                    prompt_stream: 0,
                    sample: 0,
                },
                params: Arc::new(params),
                top_logprobs: 0,
            },
            own_pages: own_pages.to_vec(),
            launched,
            tokens: Vec::new(),
            finish: None,
        })
    }

    #[test]
    fn widths_hold_what_they_are_asked_for() {
        assert_eq!([width(0), width(1), width(3), width(65)], [1, 1, 4, 80]);
        assert_eq!([width(512), width(513), width(1024)], [512, 640, 1024]);
    }

    #[test]
    fn a_step_runs_the_last_token_of_each_sequence_at_its_place() {
        let prompts = [prompt(10, &[0]), prompt(3, &[1])];
        let mut slots = [sequence(0, 1, &[5]), None, sequence(1, 66, &[7, 9])];
        let items = ItemCounts {
            together: 2,
            alone: 6,
        };
        let words = step_words(4, &mut slots, &prompts, items).unwrap();
        assert_eq!(words[..4], [10, 0, 3 + 65, 0]);
        assert_eq!(words[12..16], [1, 0, 66, 0]);
        assert_eq!(words[16..19], [6, 1, 2]);
        assert_eq!(words[20..24], [0, 0, 1, 0]);
        assert_eq!((words[25], words[28], words[30]), (-1, 2, 66));
        assert_eq!(slots[2].as_ref().unwrap().launched, 67);
        assert!(step_words(2, &mut [None, None], &prompts, items).is_none());
    }

    #[test]
    fn sequences_of_a_prompt_share_the_reads_of_its_pages() {
        let prompts = [prompt(300, &[3, 4, 5, 6, 7]), prompt(5, &[9])];
        let slots = [
            sequence(0, 1, &[]),
            sequence(1, 1, &[]),
            sequence(0, 1, &[]),
            sequence(0, 1, &[]),
        ];
        let list = Items::of(&slots, &prompts, 2, [1, 2]);
        assert_eq!(list.members, [0, 2, 3, 1]);
        assert_eq!(list.pages, [3, 4, 5, 6, 7, 9]);
        let counts = ItemCounts {
            together: 4,
            alone: 6,
        };
        assert_eq!(list.counts, counts);
        // Two of the first prompt's sequences, head 0 and head 1 of its first span; its second has 44 tokens from the fifth page on.
        assert_eq!(list.items[..8], [0, 2, 0, 256, 0, 2, 0, 256]);
        assert_eq!(list.items[8..12], [0, 2, 4, 0x1_0000 + 44]);
        // Its third sequence, and that of the other prompt.
        assert_eq!(list.items[16..20], [2, 1, 0, 256]);
        assert_eq!(list.items[32..36], [3, 1, 5, 5]);
        assert_eq!(list.heads, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
    }
}
