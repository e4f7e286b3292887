//! Attention over sequences of some hundred tokens and more on a GPU: cuDNN's kernels, about twice as fast as FlashAttention-2 there, for the
//! forward and the backward pass.
//!
//! They want sequences of one length. `batches.rs` says which sequences run together, with padding and with copies of the prompts that
//! they share. What comes out for a copied token is taken from its first row; the others have no gradient there, and what reaches the
//! token's keys and values is the sum over its rows.
//!
//! Shapes: `t` tokens, `h` query heads, `k` key heads, `d` head width, `b` sequences of a batch, `l` rows of each.

use std::sync::Arc;

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::batches::{Batch, Batches, MOST_ROWS};
use super::packed::{Attended, Heads, Spans};
use crate::cuda::{Aten, device_facts};
use crate::deterministic;
use crate::fused::{Fused, Places};

/// The widest head that the kernels' backward pass takes, and what a width is a multiple of.
const WIDEST: i64 = 128;
const WIDTH_STEP: i64 = 8;
/// The first generation of devices for which this was tried.
const CAPABILITY: i32 = 9;

/// The attention of a pass.
#[derive(Debug)]
pub(super) struct Long {
    aten: Arc<Aten>,
    batches: Vec<Batch>,
    tokens: i64,
    places: Places,
    /// Whether rows are those of the pass, with padding at the end alone.
    is_plain: bool,
}

impl Long {
    /// Whether the kernels can take a model.
    pub(super) fn supports(heads: Heads, kind: Kind, device: Device) -> bool {
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
            // The backward pass adds up in any order.
            && !deterministic::is_set()
            && is_new()
    }

    /// Rows that a pass may have, in hundredths of its tokens.
    pub(super) fn most_rows(heads: Heads, kind: Kind, device: Device) -> i64 {
        if Self::supports(heads, kind, device) {
            MOST_ROWS
        } else {
            100
        }
    }

    pub(super) fn new(spans: &Spans, batches: Batches, device: Device) -> Result<Self, ModelError> {
        let tokens = spans.own.iter().map(|span| span.length).sum();
        Ok(Self {
            aten: Arc::new(Aten::find()?),
            tokens,
            places: Places::new(&batches.standing, tokens, device),
            is_plain: batches.is_plain(tokens),
            batches: batches.batches,
        })
    }

    /// Where tokens stand, unless that is the row of the pass and there are no others.
    pub(super) fn places(&self) -> Option<&Places> {
        let is_same = self.is_plain && self.places.total == self.tokens;
        (!is_same).then_some(&self.places)
    }

    /// # Shapes
    /// - `qkv`: `[.., h + 2 k, d]`, with padding and copies; the output is `[t, h, d]`
    pub(super) fn forward(
        &self,
        qkv: &Tensor,
        heads: Heads,
        fused: Option<&Fused>,
    ) -> Result<Attended, ModelError> {
        let (mut outs, mut state, mut start) = (Vec::new(), Vec::new(), 0);
        for batch in &self.batches {
            let [queries, keys, values] = batch.split(qkv, start, heads);
            start += batch.rows();
            let [out, rest @ ..] = self.aten.dense_attention([&queries, &keys, &values])?;
            outs.push(batch.flat(&out));
            state.push(out);
            state.extend(rest);
        }
        Ok(Attended {
            out: self.lifted(outs, fused)?,
            logsumexp: Tensor::new(),
            state,
        })
    }

    /// Tokens from their first rows.
    fn lifted(&self, outs: Vec<Tensor>, fused: Option<&Fused>) -> Result<Tensor, ModelError> {
        if self.is_plain {
            return Ok(joined(outs).narrow(0, 0, self.tokens));
        }
        let Some(fused) = fused else {
            return Ok(joined(outs).index_select(0, &self.places.rows));
        };
        let mut size = outs[0].size();
        size[0] = self.tokens;
        let whole = Tensor::empty(size, (outs[0].kind(), outs[0].device()));
        let mut start = 0;
        for out in outs {
            let sources = self.places.sources.narrow(0, start, out.size()[0]);
            start += out.size()[0];
            fused.lift(&out, &sources, &whole)?;
        }
        Ok(whole)
    }

    /// Tokens in their first rows, zeros in all others: what is padding or a copy has no gradient.
    fn placed(&self, gradient: &Tensor, fused: Option<&Fused>) -> Result<Tensor, ModelError> {
        let missing = self.places.total - self.tokens;
        match fused {
            _ if self.is_plain && missing == 0 => Ok(gradient.shallow_clone()),
            _ if self.is_plain => Ok(gradient.constant_pad_nd([0, 0, 0, 0, 0, missing])),
            Some(fused) => fused.place(gradient, &self.places.sources),
            None => {
                let mut size = gradient.size();
                size[0] = self.places.total;
                let rows = self.places.rows.to_kind(Kind::Int64);
                let all = Tensor::zeros(size, (gradient.kind(), gradient.device()));
                Ok(all.index_copy(0, &rows, gradient))
            }
        }
    }

    /// # Shapes
    /// - `qkv`: as above; `gradient`: `[t, h, d]`; returns those of queries, keys and values, with padding and copies
    pub(super) fn backward(
        &self,
        qkv: &Tensor,
        heads: Heads,
        attended: &Attended,
        gradient: &Tensor,
        fused: Option<&Fused>,
    ) -> Result<[Tensor; 3], ModelError> {
        let gradient = self.placed(gradient, fused)?;
        let (mut parts, mut start) = ([(); 3].map(|()| Vec::new()), 0);
        for (batch, state) in self.batches.iter().zip(attended.state.chunks(4)) {
            let [queries, keys, values] = batch.split(qkv, start, heads);
            let nothing = Tensor::new();
            let gradients = Tensor::internal_scaled_dot_product_cudnn_attention_backward(
                &batch.of(&gradient, start),
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
                batch.length,
                batch.length,
                0.0,
                true,
                None::<f64>,
            );
            start += batch.rows();
            for (parts, gradient) in parts.iter_mut().zip(<[Tensor; 3]>::from(gradients)) {
                parts.push(batch.flat(&gradient));
            }
        }
        Ok(parts.map(joined))
    }
}

impl Batch {
    fn rows(self) -> i64 {
        self.count * self.length
    }

    /// `[b, heads, l, d]` of a batch that begins at `start` of `[.., heads, d]`.
    fn of(self, x: &Tensor, start: i64) -> Tensor {
        let size = x.size();
        x.narrow(0, start, self.rows())
            .view([self.count, self.length, size[1], size[2]])
            .transpose(1, 2)
    }

    /// Queries, keys and values, `[b, heads, l, d]`, of a batch that begins at `start` of `[.., h + 2 k, d]`.
    fn split(self, qkv: &Tensor, start: i64, heads: Heads) -> [Tensor; 3] {
        let all = self.of(qkv, start);
        let Heads { query, key, .. } = heads;
        [
            all.narrow(1, 0, query),
            all.narrow(1, query, key),
            all.narrow(1, query + key, key),
        ]
    }

    /// `[b, heads, l, d]` -> `[b * l, heads, d]`
    fn flat(self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.transpose(1, 2).reshape([self.rows(), size[1], size[3]])
    }
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
    use crate::model::batches::tests::spans;
    use crate::model::packed::Packing;

    fn normal(stream: u64, size: &[i64]) -> Tensor {
        let count = usize::try_from(size.iter().product::<i64>()).unwrap();
        let mut values = vec![0.0_f32; count];
        crate::philox::fill_normal(stream, 1.0, &mut values);
        Tensor::from_slice(&values)
            .view(size)
            .to_kind(Kind::BFloat16)
    }

    fn assert_near(found: &Tensor, exact: &Tensor, tolerance: f64, what: &str) {
        let length = |x: &Tensor| x.norm().double_value(&[]);
        let error = length(&(found - exact)) / length(exact);
        assert!(error < tolerance, "{what}: {error}");
    }

    /// The rule of copies and padding, with attention by plain operations on the CPU in 64 bits.
    #[test]
    fn copies_of_prompts_change_nothing() {
        let heads = Heads {
            query: 4,
            key: 2,
            width: 8,
        };
        let spans = spans(&[(200, &[300, 310]), (150, &[290, 100])], &[700]);
        let tokens: i64 = spans.own.iter().map(|span| span.length).sum();
        let [qkv, flow] = [normal(1, &[tokens, 8, 8]), normal(2, &[tokens, 4, 8])]
            .map(|x| x.to_kind(Kind::Double));
        let packing = Packing::new(&spans, heads, Kind::Double, Device::Cpu, true).unwrap();
        let exact = packing.forward(&qkv, None).unwrap();
        let exact_flow = packing.backward(&qkv, &exact, &flow, None).unwrap();

        let batches = Batches::new(&spans).unwrap();
        let places = Places::new(&batches.standing, tokens, Device::Cpu);
        let rows = places.spread(&qkv).set_requires_grad(true);
        let (mut outs, mut start) = (Vec::new(), 0);
        for batch in &batches.batches {
            let [queries, keys, values] = batch.split(&rows, start, heads);
            start += batch.rows();
            let out = Tensor::scaled_dot_product_attention(
                &queries,
                &keys,
                &values,
                None::<Tensor>,
                0.0,
                true,
                None::<f64>,
                true,
            );
            outs.push(batch.flat(&out));
        }
        let out = joined(outs);
        let value = (&out * places.placed(&flow)).sum(None::<Kind>);
        let rows_flow = Tensor::run_backward(&[value], &[&rows], false, false).remove(0);
        assert_near(&places.lifted(&out.detach()), &exact.out, 1e-12, "output");
        assert_near(
            &places.summed(&rows_flow),
            &exact_flow.together(),
            1e-12,
            "gradient",
        );
        // The kernels take queries from the first row alone.
        let queries = rows_flow.narrow(1, 0, heads.query);
        let (first, all) = (places.lifted(&queries), places.summed(&queries));
        assert_near(&first, &all, 1e-15, "gradient of queries");
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
        let fused = Fused::for_test(heads.query, heads.key, heads.width);
        for (spans, is_long) in [
            // Rows of the pass, with and without padding at the end; batches by length.
            (spans(&[], &[1024, 1024]), true),
            (spans(&[], &[1500]), true),
            (spans(&[], &[1100, 1100, 1280, 5000]), true),
            // Copies of two prompts, of equal and of different lengths, with sequences of their own, and with sequences of padding.
            (spans(&[(256, &[511; 4]), (256, &[511; 4])], &[]), true),
            (
                spans(&[(200, &[300, 310]), (150, &[290, 100])], &[700]),
                true,
            ),
            (spans(&[(20, &[480; 7]), (300, &[460; 7])], &[]), true),
            (spans(&[], &[1100, 70, 1, 1]), false),
            (
                spans(&[(300, &[40, 1200][..]), (20, &[5, 6, 7][..])], &[]),
                false,
            ),
        ] {
            assert!(Long::supports(heads, Kind::BFloat16, gpu));
            assert_eq!(Batches::new(&spans).is_some(), is_long, "{spans:?}");
            let tokens: i64 = spans.own.iter().map(|span| span.length).sum();
            let (qkv, flow) = (normal(1, &[tokens, 10, 64]), normal(2, &[tokens, 6, 64]));
            let run = |kind: Kind, device: Device, fused: Option<&Fused>| {
                let packing = Packing::new(&spans, heads, kind, device, true).unwrap();
                let [qkv, flow] = [&qkv, &flow].map(|x| x.to_kind(kind).to_device(device));
                let places = packing.places();
                let qkv = places.map_or(qkv.shallow_clone(), |places| places.spread(&qkv));
                let attended = packing.forward(&qkv, fused).unwrap();
                let flows = packing.backward(&qkv, &attended, &flow, fused).unwrap();
                let flows = flows.together().to_kind(Kind::Double);
                let flows = places.map_or(flows.shallow_clone(), |places| places.summed(&flows));
                [attended.out, flows].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double))
            };
            let exact = run(Kind::Double, Device::Cpu, None);
            // With our kernels, and by plain operations.
            for fused in [Some(&fused), None] {
                let found = run(Kind::BFloat16, gpu, fused);
                for (found, exact) in found.iter().zip(&exact) {
                    assert_near(found, exact, 0.01, &format!("{spans:?}"));
                }
            }
        }
    }
}
