//! What a layer does between its matrix products in training: norms of heads, rotation, the gated unit. By plain operations, or by our
//! kernels where there are any (`fused/`).
//!
//! Shapes: `t` tokens, `h` query heads, `k` key heads, `d` head width, `i` width of the gated unit.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::language::Layer;
use super::norm::{self, Norm};
use super::packed::{Flows, Heads};
use super::rope::Rope;
use crate::fused::{Fused, HeadScales, Places};
use crate::sink::Sink;

/// What all layers of a pass share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between<'a> {
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
    pub(crate) rope: &'a Rope,
    pub(crate) fused: Option<&'a Fused>,
    /// Where tokens stand in the attention, if that has padding or copies.
    pub(crate) places: Option<&'a Places>,
}

impl Between<'_> {
    /// Norms, where there are, and rotates queries and keys: what is attended with, and with norms what they were before.
    ///
    /// # Shapes
    /// - `qkv`: `[t, h + 2 k, d]`, whose memory is used up; returns `[.., h + 2 k, d]`, in the rows of the attention, and `[t, h + k, d]`
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn turn(
        &self,
        layer: &Layer,
        qkv: Tensor,
    ) -> Result<(Tensor, Option<Tensor>), ModelError> {
        if let Some(fused) = self.fused {
            let table = self.rope.table();
            return fused.turn(&qkv, head_scales(layer), self.eps, table, self.places);
        }
        let mut qk = qkv.narrow(1, 0, self.heads.query + self.heads.key);
        let scales = head_scales(layer).map(|scales| self.side_by_side(scales));
        let raw = scales.is_some().then(|| qk.copy());
        let turned = match &scales {
            Some(scales) => self.rope.apply(&norm::forward(&qk, scales, self.eps)),
            None => self.rope.apply(&qk),
        };
        qk.copy_(&turned);
        Ok((qkv, raw))
    }

    /// Takes the gradients of queries and keys back through rotation and norms: the gradient of what was projected, `[t, h + 2 k, d]`.
    ///
    /// # Shapes
    /// - `raw`: as [`Between::turn`] gave it
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn turn_back(
        &self,
        layer: &Layer,
        flows: Flows,
        raw: Option<&Tensor>,
        sink: &mut Sink<'_>,
    ) -> Result<Tensor, ModelError> {
        let norms = raw.zip(head_scales(layer));
        if let Some(fused) = self.fused {
            let parts = flows.apart(self.heads);
            let table = self.rope.table();
            let (flow, d_scales) = fused.turn_back(&parts, norms, self.eps, table, self.places)?;
            if let (Some((_, [query, key])), Some(d_scales)) = (norms, d_scales) {
                sink.add(query, &d_scales.get(0));
                sink.add(key, &d_scales.get(1));
            }
            return Ok(flow);
        }
        let Heads { query, key, .. } = self.heads;
        let flow = flows.together();
        let mut d_qk = flow.narrow(1, 0, query + key);
        let turned = self.rope.undo(&d_qk);
        let before = match norms {
            Some((raw, scales)) => {
                let side = self.side_by_side(scales);
                let (before, d_scales) =
                    Norm::again(raw, &side, self.eps, None).backward(&turned, None)?;
                let sum = |start, length| {
                    let rows = d_scales.narrow(0, start, length);
                    rows.sum_dim_intlist(0, false, None::<Kind>)
                };
                sink.add(scales[0], &sum(0, query));
                sink.add(scales[1], &sum(query, key));
                before
            }
            None => turned,
        };
        d_qk.copy_(&before);
        Ok(flow)
    }

    /// Scales of the norms of queries and keys for every head, `[h + k, d]`.
    fn side_by_side(&self, [query, key]: HeadScales<'_>) -> Tensor {
        let Heads {
            query: queries,
            key: keys,
            width,
        } = self.heads;
        let each = [
            query.expand([queries, width], false),
            key.expand([keys, width], false),
        ];
        Tensor::cat(&each, 0)
    }

    /// `silu(gate) * up`: `[t, 2 i]` -> `[t, i]`.
    pub(crate) fn gated(&self, gate_up: &Tensor) -> Result<Tensor, ModelError> {
        match self.fused {
            Some(fused) => fused.gated(gate_up),
            None => {
                let parts = gate_up.chunk(2, 1);
                Ok(parts[0].silu() * &parts[1])
            }
        }
    }

    /// What came out of the gated unit, `[t, i]`, and the gradient of what it was given, `[t, 2 i]`.
    ///
    /// # Shapes
    /// - `d_inner`: gradient of what came out, `[t, i]`
    pub(crate) fn gated_backward(
        &self,
        gate_up: Tensor,
        d_inner: Tensor,
    ) -> Result<(Tensor, Tensor), ModelError> {
        if let Some(fused) = self.fused {
            fused.gated_backward(&gate_up, &d_inner)?;
            return Ok((d_inner, gate_up));
        }
        let parts = gate_up.chunk(2, 1);
        let (gate, up) = (&parts[0], &parts[1]);
        let opened = gate.silu();
        let inner = &opened * up;
        let d_gate = gate.silu_backward(&(&d_inner * up));
        Ok((inner, Tensor::cat(&[d_gate, d_inner * opened], 1)))
    }
}

/// The norms of queries and keys, where there are.
fn head_scales(layer: &Layer) -> Option<HeadScales<'_>> {
    Some([layer.q_norm.as_ref()?, layer.k_norm.as_ref()?])
}
