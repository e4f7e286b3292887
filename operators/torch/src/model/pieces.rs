//! Pieces of packed sequences: which tokens are attended with together, and how they are brought into the shape of a kernel.
//!
//! Shapes: `t` tokens, `k` key heads, `g` query heads for each, `d` head width, `b` sequences of a piece, `l` tokens of each.

use std::collections::BTreeMap;

use tch::{Device, Tensor};

use super::indices;
use super::packed::{Heads, Span};
use crate::device::upload;

/// Sequences up to this length are padded to a common one and run together.
const PADDED: i64 = 64;
/// The shortest length that they are padded to.
const SHORTEST: i64 = 16;

/// Tokens of a piece.
#[derive(Debug)]
pub(super) enum Take {
    /// As many sequences of equal length as the number says, one after the other.
    Range(Span, i64),
    /// Sequences of similar lengths.
    Padded {
        count: i64,
        /// Token that stands at each place, `[b * l]`: padding repeats the last token, whose exponentials are bounded.
        pad: Tensor,
        /// Place of each token, and the tokens themselves.
        unpad: Tensor,
        tokens: Tensor,
        /// Where there is padding, `[b * l]`.
        is_padding: Tensor,
    },
}

impl Take {
    fn count(&self) -> i64 {
        match self {
            Self::Range(_, count) | Self::Padded { count, .. } => *count,
        }
    }

    /// The tokens of a piece without padding, in place.
    pub(super) fn rows(&self, x_thd: &Tensor) -> Tensor {
        match self {
            Self::Range(span, _) => x_thd.narrow(0, span.start, span.length),
            Self::Padded { .. } => unreachable!("what is shared has no padding"),
        }
    }

    /// `[t, k * g, d]` -> `[k * b, g, l, d]`
    pub(super) fn fold(&self, x_thd: &Tensor, key_heads: i64) -> Tensor {
        let size = x_thd.size();
        let (share, width) = (size[1] / key_heads, size[2]);
        let x = by_key_head(x_thd, key_heads);
        let taken = match self {
            Self::Range(span, _) => x.narrow(1, span.start, span.length),
            Self::Padded { pad, .. } => x.index_select(1, pad),
        };
        let length = taken.size()[1] / self.count();
        taken
            .reshape([key_heads * self.count(), length, share, width])
            .transpose(1, 2)
    }

    /// As [`Take::fold`], zero in the padding: it gives no gradient to the keys.
    pub(super) fn fold_gradient(&self, x_thd: &Tensor, key_heads: i64) -> Tensor {
        let x = self.fold(x_thd, key_heads);
        let Self::Padded {
            count, is_padding, ..
        } = self
        else {
            return x;
        };
        let size = x.size();
        // The mask of a sequence is the same for all key heads: [b, l] beside [k, b, g, l, d].
        let mask = is_padding.view([1, *count, 1, size[2], 1]);
        x.view([key_heads, *count, size[1], size[2], size[3]])
            .masked_fill(&mask, 0.0)
            .view(size.as_slice())
    }

    /// `[t, k, d]` -> `[k * b, g, l, d]`, the same for all query heads of a key head.
    pub(super) fn fold_shared(&self, x_tkd: &Tensor, heads: Heads) -> Tensor {
        self.fold(x_tkd, heads.key)
            .expand([-1, heads.query / heads.key, -1, -1], false)
    }

    /// Writes what [`Take::fold`] would read.
    pub(super) fn put(&self, target_thd: &Tensor, source: &Tensor, key_heads: i64) {
        let size = source.size();
        let source = source
            .transpose(1, 2)
            .reshape([key_heads, -1, size[1] * size[3]]);
        let mut target = by_key_head(target_thd, key_heads);
        match self {
            Self::Range(span, _) => target.narrow(1, span.start, span.length).copy_(&source),
            Self::Padded { unpad, tokens, .. } => {
                drop(target.index_copy_(1, tokens, &source.index_select(1, unpad)));
            }
        }
    }
}

/// `[k * b, g, l, d]` -> `[tokens of the piece, k * g, d]`, padding included.
pub(super) fn unfold(x: &Tensor, key_heads: i64) -> Tensor {
    let size = x.size();
    let (share, width) = (size[1], size[3]);
    x.transpose(1, 2)
        .reshape([key_heads, -1, share * width])
        .transpose(0, 1)
        .reshape([-1, key_heads * share, width])
}

/// `[t, k * g, d]` -> `[k, t, g * d]`, without a copy.
fn by_key_head(x_thd: &Tensor, key_heads: i64) -> Tensor {
    let size = x_thd.size();
    x_thd
        .view([size[0], key_heads, size[1] / key_heads * size[2]])
        .transpose(0, 1)
}

/// Sequences that are run together: short ones of similar lengths, and neighbours of equal length.
pub(super) fn pieces(spans: &[Span], device: Device) -> Vec<Take> {
    let mut short: BTreeMap<i64, Vec<Span>> = BTreeMap::new();
    let mut pieces: Vec<Take> = Vec::new();
    for span in spans {
        if span.length <= PADDED {
            let longest = span.length.max(SHORTEST);
            let bucket = (longest.unsigned_abs().next_power_of_two()) as i64;
            short.entry(bucket).or_default().push(*span);
            continue;
        }
        match pieces.last_mut() {
            Some(Take::Range(range, count))
                if range.start + range.length == span.start
                    && range.length == *count * span.length =>
            {
                range.length += span.length;
                *count += 1;
            }
            _ => pieces.push(Take::Range(*span, 1)),
        }
    }
    pieces.extend(short.into_values().map(|spans| padded(&spans, device)));
    pieces
}

fn padded(spans: &[Span], device: Device) -> Take {
    let longest = spans.iter().map(|span| span.length).max().unwrap_or(0);
    if let [span] = spans {
        return Take::Range(*span, 1);
    }
    let (mut pad, mut unpad, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_padding = Vec::new();
    for span in spans {
        let last = span.start + span.length - 1;
        unpad.extend((0..span.length).map(|place| pad.len() as i64 + place));
        tokens.extend(span.start..=last);
        pad.extend((0..longest).map(|place| (span.start + place).min(last)));
        is_padding.extend((0..longest).map(|place| place >= span.length));
    }
    Take::Padded {
        count: spans.len() as i64,
        pad: indices(&pad, device),
        unpad: indices(&unpad, device),
        tokens: indices(&tokens, device),
        is_padding: upload(&is_padding, device),
    }
}
