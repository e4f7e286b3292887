//! Attention over packed sequences on a GPU: libtorch's FlashAttention-2 with the places where sequences begin, for the forward and the
//! backward pass. One call for what sequences see of themselves, one for shared prompts.
//!
//! Shapes: `t` tokens, `h` query heads, `k` key heads, `d` head width.

use std::sync::Arc;

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::packed::{Attended, Heads, Span, Spans};
use crate::cuda::{Aten, Packed};
use crate::device::upload;
use crate::fused::Fused;

/// The widest head of the kernels, and what a width is a multiple of.
const WIDEST: i64 = 256;
const STEP: i64 = 8;

/// Where sequences begin and how long the longest is.
#[derive(Debug)]
struct Starts {
    /// `[sequences + 1]`, 32 bits.
    places: Tensor,
    longest: i64,
    /// All of them.
    span: Span,
}

/// The attention of a pass.
#[derive(Debug)]
pub(super) struct Flash {
    aten: Arc<Aten>,
    own: Starts,
    /// Completions by the prompt that they share, and the prompts.
    shared: Option<(Starts, Starts)>,
}

impl Starts {
    /// Of spans without gaps between them.
    fn new(spans: &[Span], device: Device) -> Self {
        let first = spans.first().map_or(0, |span| span.start);
        let mut end = first;
        let mut places = vec![0];
        for span in spans {
            debug_assert_eq!(end, span.start, "spans have no gaps between them");
            end += span.length;
            places.push(i32::try_from(end - first).unwrap_or(i32::MAX));
        }
        Self {
            places: upload(&places, device),
            longest: spans.iter().map(|span| span.length).max().unwrap_or(0),
            span: Span {
                start: first,
                length: end - first,
            },
        }
    }

    fn of(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.span.start, self.span.length)
    }

    /// Of a log-sum-exp, `[h, t]`.
    fn of_sums(&self, x: &Tensor) -> Tensor {
        x.narrow(1, self.span.start, self.span.length)
    }
}

impl Flash {
    /// Whether the kernels can take a model.
    pub(super) fn supports(heads: Heads, kind: Kind, device: Device) -> bool {
        device.is_cuda()
            && kind == Kind::BFloat16
            && heads.width <= WIDEST
            && heads.width % STEP == 0
    }

    pub(super) fn new(spans: &Spans, device: Device) -> Result<Self, ModelError> {
        let (queries, keys): (Vec<Span>, Vec<Span>) = spans.shared.iter().copied().unzip();
        Ok(Self {
            aten: Arc::new(Aten::find()?),
            own: Starts::new(&spans.own, device),
            shared: (!queries.is_empty())
                .then(|| (Starts::new(&queries, device), Starts::new(&keys, device))),
        })
    }

    /// # Shapes
    /// - queries `[t, h, d]`, keys and values `[t, k, d]`
    pub(super) fn forward(
        &self,
        [queries, keys, values]: &[Tensor; 3],
        fused: Option<&Fused>,
    ) -> Result<Attended, ModelError> {
        let run = |from: &Starts, to: &Starts, causal: bool| {
            self.aten.flash_forward(
                &Packed {
                    queries: &from.of(queries),
                    keys: &to.of(keys),
                    values: &to.of(values),
                    query_starts: &from.places,
                    key_starts: &to.places,
                    longest_query: from.longest,
                    longest_key: to.longest,
                },
                causal,
            )
        };
        let [out, logsumexp, seed, unused] = run(&self.own, &self.own, true)?;
        let mut state = vec![seed, unused];
        if let Some((from, to)) = &self.shared {
            let [part, sums, seed, unused] = run(from, to, false)?;
            state.extend([seed, unused]);
            let (rows, old) = (from.of(&out), from.of_sums(&logsumexp));
            match fused {
                Some(fused) => {
                    fused.join([&rows, &part.contiguous()], [&old, &sums.contiguous()])?;
                }
                None => join([rows, part], [old, sums]),
            }
        }
        Ok(Attended {
            out,
            logsumexp,
            state,
        })
    }

    /// # Shapes
    /// - `gradient`: `[t, h, d]`; returns those of queries, keys and values
    pub(super) fn backward(
        &self,
        [queries, keys, values]: &[Tensor; 3],
        attended: &Attended,
        gradient: &Tensor,
    ) -> [Tensor; 3] {
        let run = |from: &Starts, to: &Starts, causal: bool, state: &[Tensor]| {
            Tensor::internal_flash_attention_backward(
                &from.of(gradient),
                &from.of(queries),
                &to.of(keys),
                &to.of(values),
                &from.of(&attended.out),
                &from.of_sums(&attended.logsumexp).contiguous(),
                &from.places,
                &to.places,
                from.longest,
                to.longest,
                0.0,
                causal,
                &state[0],
                &state[1],
                None::<f64>,
                None::<i64>,
                None::<i64>,
            )
        };
        let (d_queries, d_keys, d_values) = run(&self.own, &self.own, true, &attended.state[..2]);
        if let Some((from, to)) = &self.shared {
            let (queries, keys, values) = run(from, to, false, &attended.state[2..]);
            drop(from.of(&d_queries).g_add_(&queries));
            drop(to.of(&d_keys).g_add_(&keys));
            drop(to.of(&d_values).g_add_(&values));
        }
        [d_queries, d_keys, d_values]
    }
}

/// Joins attention to two sets of keys by their log-sum-exps, in place of the first.
///
/// # Shapes
/// - `out`, `part`: `[q, h, d]`; `old`, `sums`: `[h, q]`
pub(crate) fn join([mut out, part]: [Tensor; 2], [mut old, sums]: [Tensor; 2]) {
    let joined = old.logaddexp(&sums);
    // [h, t] -> [t, h, 1]
    let share = |sums: &Tensor| (sums - &joined).exp().tr().unsqueeze(-1);
    let mixed = &out * share(&old) + part * share(&sums);
    out.copy_(&mixed);
    old.copy_(&joined);
}
