//! Key-value cache of sequences that are decoded together, and one decoding step over it.
//!
//! Keys and values lie head by head, `[s, k, c, d]`, so that a head's attention reads consecutive memory.
//!
//! Shapes: `s` slots, `c` tokens that a slot holds, `n` sequences in use (slots `0..n`), `k` key heads, `g` query heads
//! for each, `d` head width.

use tch::{Device, Kind, Tensor};

use super::attention::{Attend, KeyValue};
use super::indices;
use crate::wide;

/// Width of all query heads from which rows are shared out to a team of threads.
const TEAM_WIDTH: i64 = 512;

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<KeyValue>,
    heads: i64,
    capacity: i64,
    device: Device,
    kind: Kind,
}

impl Cache {
    /// Room for `slots` sequences of `capacity` tokens.
    pub(crate) fn new(
        layers: usize,
        slots: i64,
        capacity: i64,
        heads: i64,
        width: i64,
        options: (Kind, Device),
    ) -> Self {
        let (kind, device) = options;
        let empty = || Tensor::zeros([slots, heads, capacity, width], (kind, device));
        let layers = (0..layers)
            .map(|_| KeyValue {
                keys: empty(),
                values: empty(),
            })
            .collect();
        Self {
            layers,
            heads,
            capacity,
            device,
            kind,
        }
    }

    /// Copies prompts into the slots from `start` on: slot `start + i` gets prompt `rows[i]`.
    pub(crate) fn insert(&mut self, start: i64, prompts: &[KeyValue], rows: &[i64]) {
        let (count, rows) = (rows.len() as i64, indices(rows, self.device));
        for (own, prompt) in self.layers.iter().zip(prompts) {
            for (own, prompt) in [(&own.keys, &prompt.keys), (&own.values, &prompt.values)] {
                let length = prompt.size()[1];
                // [n, l, k, d] -> [n, k, l, d]
                let copies = prompt.index_select(0, &rows).transpose(1, 2);
                own.narrow(0, start, count)
                    .narrow(2, 0, length)
                    .copy_(&copies);
            }
        }
    }

    /// Copies the first `length` tokens of slots `from` to slots `to`.
    pub(crate) fn relocate(&mut self, from: &[i64], to: &[i64], length: i64) {
        if from.is_empty() {
            return;
        }
        let (from, to) = (indices(from, self.device), indices(to, self.device));
        for layer in &self.layers {
            for x in [&layer.keys, &layer.values] {
                let mut used = x.narrow(2, 0, length);
                let moved = used.index_select(0, &from);
                drop(used.index_copy_(0, &to, &moved));
            }
        }
    }

    /// A step that appends one token to each of the first sequences. `lengths` are their tokens so far.
    pub(crate) fn step(&mut self, lengths: &[i64]) -> Step<'_> {
        let longest = lengths.iter().max().map_or(1, |longest| longest + 1);
        let (heads, capacity) = (self.heads, self.capacity);
        let places: Vec<i64> = lengths
            .iter()
            .enumerate()
            .flat_map(|(slot, length)| {
                (0..heads).map(move |head| (slot as i64 * heads + head) * capacity + length)
            })
            .collect();
        let count = lengths.len() as i64;
        let lengths = indices(lengths, self.device).view([count, 1, 1, 1]);
        let hidden = Tensor::arange(longest, (Kind::Int64, self.device))
            .view([1, 1, 1, longest])
            .greater_tensor(&lengths);
        let mask = Tensor::zeros([count, 1, 1, longest], (self.kind, self.device));
        let mask = mask.masked_fill(&hidden, f64::NEG_INFINITY);
        Step {
            places: indices(&places, self.device),
            mask,
            longest,
            count,
            cache: self,
        }
    }
}

/// Attention of one new token of each sequence over its slot.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    cache: &'a mut Cache,
    /// Where each head of the new tokens goes, as a row of `[s * k * c, d]`.
    places: Tensor,
    /// `[n, 1, 1, longest]`
    mask: Tensor,
    longest: i64,
    count: i64,
}

impl Attend for Step<'_> {
    fn attend(&mut self, layer: usize, q_thd: &Tensor, k_tkd: &Tensor, v_tkd: &Tensor) -> Tensor {
        let layer = &self.cache.layers[layer];
        let [_, heads, width] = q_thd.size()[..] else {
            unreachable!("queries have three axes")
        };
        let key_heads = k_tkd.size()[1];
        let seen = |cache: &Tensor, new: &Tensor| {
            let new = new.reshape([-1, width]);
            drop(cache.view([-1, width]).index_copy_(0, &self.places, &new));
            cache.narrow(0, 0, self.count).narrow(2, 0, self.longest)
        };
        let (keys, values) = (seen(&layer.keys, k_tkd), seen(&layer.values, v_tkd));
        // The query heads that share a key head stand where several query tokens would.
        let queries = q_thd.reshape([self.count, key_heads, heads / key_heads, width]);
        // Elements that a row reads; a small model is done sooner than the others of the team are told.
        let read = if heads * width < TEAM_WIDTH {
            0
        } else {
            usize::try_from(2 * key_heads * self.longest * width).unwrap_or(0)
        };
        let parts = |start, length| {
            [&queries, &keys, &values, &self.mask].map(|x| x.narrow(0, start, length))
        };
        let out = wide::by_rows(self.count, read, parts, |[queries, keys, values, mask]| {
            Tensor::scaled_dot_product_attention(
                &queries,
                &keys,
                &values,
                Some(&mask),
                0.0,
                false,
                None,
                false,
            )
        });
        out.reshape([self.count, heads * width])
    }
}
