//! Attention over long sequences on a GPU: cuDNN's kernels, twice as fast as FlashAttention-2 there, for the forward and the backward pass.
//!
//! They want sequences of one length. Sequences are padded to a few lengths, neighbours of the same length run together: every new shape
//! costs the library some time to plan, so there must not be many. What is padded comes after the sequence, where nobody sees it.
//!
//! Shapes: `t` tokens, `h` query heads, `k` key heads, `d` head width, `b` sequences of a group, `l` tokens of each with padding.

use std::sync::Arc;

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::indices;
use super::packed::{Attended, Heads, Span, Spans};
use crate::cuda::{Aten, device_facts};
use crate::deterministic;
use crate::device::upload;
use crate::fused::Places;

/// The shortest sequence that is worth it.
const SHORTEST: i64 = 1024;
/// Lengths are padded to multiples of these: up to `LONG` tokens, and beyond.
const STEP: i64 = 128;
const LONG: i64 = 4096;
const LONG_STEP: i64 = 512;
/// The widest head that the kernels' backward pass takes, and what a width is a multiple of.
const WIDEST: i64 = 128;
const WIDTH_STEP: i64 = 8;
/// The first generation of devices for which this was tried.
const CAPABILITY: i32 = 9;

/// Neighbours of equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    start: i64,
    count: i64,
    length: i64,
}

/// The attention of a pass.
#[derive(Debug)]
pub(super) struct Long {
    aten: Arc<Aten>,
    groups: Vec<Group>,
    places: Places,
}

impl Long {
    /// Whether a pass is for these kernels.
    pub(super) fn supports(spans: &Spans, heads: Heads, kind: Kind, device: Device) -> bool {
        let Device::Cuda(number) = device else {
            return false;
        };
        let is_new = || {
            device_facts(i32::try_from(number).unwrap_or(0))
                .is_ok_and(|(_, [major, _])| major >= CAPABILITY)
        };
        kind == Kind::BFloat16
            && heads.width <= WIDEST
            && heads.width % WIDTH_STEP == 0
            && spans.shared.is_empty()
            && spans.own.iter().all(|span| span.length >= SHORTEST)
            // The backward pass adds up in any order.
            && !deterministic::is_set()
            && is_new()
    }

    pub(super) fn new(spans: &Spans, device: Device) -> Result<Self, ModelError> {
        let groups = groups(&spans.own);
        let (mut rows, mut padding) = (Vec::new(), Vec::new());
        let mut total = 0;
        for group in &groups {
            for _ in 0..group.count {
                let end = total + group.length;
                rows.extend((total..end).map(|row| row as i32));
                total += group.padded();
                padding.extend(end..total);
            }
        }
        Ok(Self {
            aten: Arc::new(Aten::find()?),
            groups,
            places: Places {
                rows: upload(&rows, device),
                padding: indices(&padding, device),
                total,
            },
        })
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// # Shapes
    /// - `qkv`: `[.., h + 2 k, d]`, with padding; the output is `[t, h, d]`
    pub(super) fn forward(&self, qkv: &Tensor, heads: Heads) -> Result<Attended, ModelError> {
        let (mut outs, mut state, mut start) = (Vec::new(), Vec::new(), 0);
        for group in &self.groups {
            let [queries, keys, values] = group.split(qkv, start, heads);
            start += group.count * group.padded();
            let [out, rest @ ..] = self.aten.dense_attention([&queries, &keys, &values])?;
            outs.push(group.without_padding(&out));
            state.push(out);
            state.extend(rest);
        }
        Ok(Attended {
            out: joined(outs),
            logsumexp: Tensor::new(),
            state,
        })
    }

    /// # Shapes
    /// - `qkv`: as above; `gradient`: `[t, h, d]`; returns those of queries, keys and values, with padding
    pub(super) fn backward(
        &self,
        qkv: &Tensor,
        heads: Heads,
        attended: &Attended,
        gradient: &Tensor,
    ) -> [Tensor; 3] {
        let (mut parts, mut start) = ([(); 3].map(|()| Vec::new()), 0);
        for (group, state) in self.groups.iter().zip(attended.state.chunks(4)) {
            let [queries, keys, values] = group.split(qkv, start, heads);
            start += group.count * group.padded();
            let nothing = Tensor::new();
            let gradients = Tensor::internal_scaled_dot_product_cudnn_attention_backward(
                // Padding has no gradient.
                &group.with_padding(gradient),
                &queries,
                &keys,
                &values,
                &state[0],
                &state[1],
                &state[2],
                &state[3],
                &nothing,
                &nothing,
                &nothing,
                group.padded(),
                group.padded(),
                0.0,
                true,
                None::<f64>,
            );
            for (parts, gradient) in parts.iter_mut().zip(<[Tensor; 3]>::from(gradients)) {
                let size = gradient.size();
                let rows = [size[0] * size[2], size[1], size[3]];
                parts.push(gradient.transpose(1, 2).reshape(rows));
            }
        }
        parts.map(joined)
    }
}

impl Group {
    /// Tokens of each with padding.
    fn padded(self) -> i64 {
        let step = if self.length <= LONG { STEP } else { LONG_STEP };
        (self.length + step - 1) / step * step
    }

    /// Queries, keys and values, `[b, heads, l, d]`, of a group that begins at `start` of `[.., h + 2 k, d]`.
    fn split(self, qkv: &Tensor, start: i64, heads: Heads) -> [Tensor; 3] {
        let size = qkv.size();
        let all = qkv
            .narrow(0, start, self.count * self.padded())
            .view([self.count, self.padded(), size[1], size[2]])
            .transpose(1, 2);
        let Heads { query, key, .. } = heads;
        [
            all.narrow(1, 0, query),
            all.narrow(1, query, key),
            all.narrow(1, query + key, key),
        ]
    }

    /// The group's tokens of `[t, heads, d]` with zeros after each: `[b, heads, l, d]`.
    fn with_padding(self, x_thd: &Tensor) -> Tensor {
        let size = x_thd.size();
        let x = x_thd.narrow(0, self.start, self.count * self.length).view([
            self.count,
            self.length,
            size[1],
            size[2],
        ]);
        let missing = self.padded() - self.length;
        let x = if missing == 0 {
            x
        } else {
            x.constant_pad_nd([0, 0, 0, 0, 0, missing])
        };
        x.transpose(1, 2)
    }

    /// `[b, heads, l, d]` -> `[tokens of the group, heads, d]`; no copy for a single sequence.
    fn without_padding(self, x_bhld: &Tensor) -> Tensor {
        let size = x_bhld.size();
        x_bhld.transpose(1, 2).narrow(1, 0, self.length).reshape([
            self.count * self.length,
            size[1],
            size[3],
        ])
    }
}

fn groups(spans: &[Span]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for span in spans {
        match groups.last_mut() {
            Some(group)
                if group.length == span.length
                    && group.start + group.count * group.length == span.start =>
            {
                group.count += 1;
            }
            _ => groups.push(Group {
                start: span.start,
                count: 1,
                length: span.length,
            }),
        }
    }
    groups
}

fn joined(parts: Vec<Tensor>) -> Tensor {
    match <[Tensor; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => Tensor::cat(&parts, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceChoice;
    use crate::model::packed::Packing;

    fn spans(lengths: &[i64]) -> Vec<Span> {
        let mut start = 0;
        (lengths.iter())
            .map(|length| {
                let span = Span {
                    start,
                    length: *length,
                };
                start += length;
                span
            })
            .collect()
    }

    #[test]
    fn neighbours_of_equal_length_are_one_group() {
        let groups = groups(&spans(&[1100, 1100, 5000, 1100]));
        let counts: Vec<(i64, i64)> = (groups.iter())
            .map(|group| (group.count, group.padded()))
            .collect();
        assert_eq!(counts, [(2, 1152), (1, 5120), (1, 1152)]);
    }

    /// The attention of a GPU, whichever it takes, against plain pieces in 64 bits from the same 16-bit numbers.
    #[test]
    #[ignore = "needs a GPU"]
    fn attention_on_a_gpu_is_that_of_the_cpu() {
        let gpu = DeviceChoice::Cuda(0).resolve().unwrap();
        let heads = Heads {
            query: 6,
            key: 2,
            width: 64,
        };
        let normal = |stream: u64, size: &[i64]| {
            let count = usize::try_from(size.iter().product::<i64>()).unwrap();
            let mut values = vec![0.0_f32; count];
            crate::philox::fill_normal(stream, 1.0, &mut values);
            Tensor::from_slice(&values)
                .view(size)
                .to_kind(Kind::BFloat16)
        };
        let span = |start, length| Span { start, length };
        // Two prompts, the first with two completions, the second with three.
        let prompts = vec![
            (span(320, 1240), span(0, 300)),
            (span(1560, 18), span(300, 20)),
        ];
        for (lengths, shared, is_long) in [
            (vec![1100, 1100, 1280, 5000], vec![], true),
            (vec![1100, 70, 1], vec![], false),
            (vec![300, 20, 40, 1200, 5, 6, 7], prompts, false),
        ] {
            let spans = Spans {
                own: spans(&lengths),
                shared,
            };
            assert_eq!(Long::supports(&spans, heads, Kind::BFloat16, gpu), is_long);
            let tokens: i64 = lengths.iter().sum();
            let (qkv, flow) = (normal(1, &[tokens, 10, 64]), normal(2, &[tokens, 6, 64]));
            let run = |kind: Kind, device: Device| {
                let packing = Packing::new(&spans, heads, kind, device, true).unwrap();
                let [qkv, flow] = [&qkv, &flow].map(|x| x.to_kind(kind).to_device(device));
                let rows = (packing.places()).map(|places| (&places.rows, places.total));
                let qkv = rows.map_or(qkv.shallow_clone(), |(rows, total)| {
                    let all = Tensor::zeros([total, 10, 64], (kind, device));
                    all.index_copy(0, &rows.to_kind(Kind::Int64), &qkv)
                });
                let attended = packing.forward(&qkv, None).unwrap();
                let flows = packing.backward(&qkv, &attended, &flow).together();
                let flows = rows.map_or(flows.shallow_clone(), |(rows, _)| {
                    flows.index_select(0, rows)
                });
                [attended.out, flows].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double))
            };
            let exact = run(Kind::Double, Device::Cpu);
            for (found, exact) in run(Kind::BFloat16, gpu).iter().zip(exact) {
                let length = |x: &Tensor| x.norm().double_value(&[]);
                let error = length(&(found - &exact)) / length(&exact);
                assert!(error < 0.01, "{lengths:?}: {error}");
            }
        }
    }
}
