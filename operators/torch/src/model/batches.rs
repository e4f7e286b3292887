//! Sequences of a pass that are attended with together, at one length: each has a copy of the prompt that it shares, and padding at its
//! end, where nobody sees it.
//!
//! The library plans every new shape, which costs as much as many passes do. So there are few lengths, numbers of sequences are powers of
//! two, and a pass with many shapes or much padding is for others.

use std::collections::BTreeMap;

use super::packed::{Span, Spans};

/// Lengths are padded to multiples of these: up to `LONG_PADDED` tokens, and beyond.
const STEP: i64 = 256;
const LONG_PADDED: i64 = 2048;
const LONG_STEP: i64 = 512;
/// Tokens that a sequence must have on average, and those from which on attention is dear enough for any number of shapes.
const SHORTEST: i64 = 256;
const LONG: i64 = 1024;
/// Different shapes of a pass of shorter ones.
const MOST_SHAPES: usize = 4;
/// What copies and padding may cost, in hundredths of the pass without them: pairs of tokens that see each other, and rows. The kernels
/// are about twice as fast as those that need neither. One sequence of more than `LONG` tokens stays below, whatever its padding.
const MOST_PAIRS: i64 = 160;
pub(super) const MOST_ROWS: i64 = 160;
/// Most powers of two that the sequences of a length are split into, until there are few shapes; what is missing is filled with padding.
const TERMS: [u32; 3] = [u32::MAX, 2, 1];

/// Sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Batch {
    pub(super) count: i64,
    /// With padding.
    pub(super) length: i64,
}

/// A sequence: what it sees of others, and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    prompt: Span,
    own: Span,
}

/// The sequences of a pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batches {
    pub(super) batches: Vec<Batch>,
    /// The token in each row, none in padding.
    pub(super) standing: Vec<Option<i64>>,
}

impl Batches {
    /// How a pass is cut; `None` if copies and padding cost too much.
    pub(super) fn new(spans: &Spans) -> Option<Self> {
        let lines = lines(spans);
        let tokens: i64 = lines.iter().map(Line::length).sum();
        let mean = tokens / (lines.len() as i64).max(1);
        if lines.is_empty() || mean < SHORTEST {
            return None;
        }
        let mut by_length: BTreeMap<i64, Vec<Line>> = BTreeMap::new();
        for line in lines {
            by_length
                .entry(padded(line.length()))
                .or_default()
                .push(line);
        }
        let most = if mean < LONG { MOST_SHAPES } else { usize::MAX };
        let split = |terms: &u32| {
            let lengths = by_length.iter();
            lengths
                .flat_map(|(length, lines)| {
                    powers(lines.len() as i64, *terms).map(|count| Batch {
                        count,
                        length: *length,
                    })
                })
                .collect::<Vec<Batch>>()
        };
        let batches = (TERMS.iter().map(split))
            .find(|batches| batches.len() <= most && pays(spans, batches))?;
        let mut standing = Vec::new();
        for (length, lines) in &by_length {
            let rows = (batches.iter().filter(|batch| batch.length == *length))
                .map(|batch| batch.count * length)
                .sum::<i64>();
            let end = standing.len() as i64 + rows;
            for line in lines {
                let start = standing.len() as i64;
                standing.extend(line.tokens().map(Some));
                standing.resize((start + length) as usize, None);
            }
            standing.resize(end as usize, None);
        }
        Some(Self { batches, standing })
    }

    /// Whether rows are those of the pass, with padding at the end alone.
    pub(super) fn is_plain(&self, tokens: i64) -> bool {
        let (tokens, padding) = self.standing.split_at(tokens as usize);
        let is_same = |(row, token): (usize, &Option<i64>)| *token == Some(row as i64);
        tokens.iter().enumerate().all(is_same) && padding.iter().all(Option::is_none)
    }
}

impl Line {
    fn length(&self) -> i64 {
        self.prompt.length + self.own.length
    }

    fn tokens(&self) -> impl Iterator<Item = i64> {
        let range = |span: Span| span.start..span.start + span.length;
        range(self.prompt).chain(range(self.own))
    }
}

/// Sequences with their prompts, which are none by themselves where they are shared.
fn lines(spans: &Spans) -> Vec<Line> {
    let shared = &spans.shared;
    let is_shared = |span: &Span| {
        (shared.binary_search_by_key(&span.start, |(_, prompt)| prompt.start)).is_ok()
    };
    (spans.own.iter())
        .filter(|span| !is_shared(span))
        .map(|own| {
            let next =
                shared.partition_point(|(queries, _)| queries.start + queries.length <= own.start);
            let prompt = shared
                .get(next)
                .filter(|(queries, _)| queries.start <= own.start)
                .map_or(
                    Span {
                        start: own.start,
                        length: 0,
                    },
                    |(_, prompt)| *prompt,
                );
            Line { prompt, own: *own }
        })
        .collect()
}

fn padded(length: i64) -> i64 {
    let step = if length <= LONG_PADDED {
        STEP
    } else {
        LONG_STEP
    };
    (length + step - 1) / step * step
}

/// Powers of two, largest first, that make up a number, raised until there are at most so many.
fn powers(mut count: i64, terms: u32) -> impl Iterator<Item = i64> {
    while count.count_ones() > terms {
        count += 1 << count.trailing_zeros();
    }
    let powers = (0..i64::BITS - 1).rev().map(|bit| 1 << bit);
    powers.filter(move |power| count & power != 0)
}

/// Whether copies and padding cost less than the faster kernels save.
fn pays(spans: &Spans, batches: &[Batch]) -> bool {
    let triangle = |length: i64| length * (length + 1) / 2;
    let own = spans.own.iter().map(|span| triangle(span.length));
    let across = (spans.shared.iter()).map(|(queries, prompt)| queries.length * prompt.length);
    let pairs = own.chain(across).sum::<i64>();
    let tokens = spans.own.iter().map(|span| span.length).sum::<i64>();
    let all_pairs = (batches.iter())
        .map(|batch| batch.count * triangle(batch.length))
        .sum::<i64>();
    let rows = (batches.iter())
        .map(|batch| batch.count * batch.length)
        .sum::<i64>();
    100 * all_pairs <= MOST_PAIRS * pairs && 100 * rows <= MOST_ROWS * tokens
}

#[cfg(test)]
#[path = "batches_tests.rs"]
pub(super) mod tests;
