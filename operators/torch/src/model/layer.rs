//! A layer of the language model in training: forward over packed sequences, and its backward pass by hand.
//!
//! What is cheap to compute again (norms, the gated unit) is not kept. Products of gradients go straight into the buffers of the
//! step.
//!
//! Shapes: `t` tokens, `r` tokens whose output is needed, `w` model width, `h` query heads, `k` key heads, `d` head width, `i` width of
//! the gated unit.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::language::Layer;
use super::norm::{self, Norm};
use super::packed::{Attended, Packing};
use super::rope::Rope;
use crate::config::TextConfig;
use crate::sink::Sink;

/// What all layers of a pass share.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a TextConfig,
    pub(crate) rope: &'a Rope,
    pub(crate) packing: &'a Packing,
}

/// What a layer's backward pass starts from.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Queries, keys and values as they were attended with, `[t, h + 2 k, d]`.
    qkv: Tensor,
    /// Queries and keys before their norms, `[t, h + k, d]`, where there are norms.
    raw: Option<Tensor>,
    attended: Attended,
    /// After the attention, `[r, w]`.
    middle: Tensor,
    /// `[r, 2 i]`
    gate_up: Tensor,
}

impl Pass<'_> {
    /// Runs a layer. With `rows`, only these tokens are carried on after the attention.
    ///
    /// # Shapes
    /// - `x_tw`: `[t, w]`; `rows`: `[r]`; returns `[r, w]`
    ///
    /// # Errors
    /// When the device refuses the attention.
    pub(crate) fn forward(
        &self,
        layer: &Layer,
        x_tw: &Tensor,
        rows: Option<&Tensor>,
    ) -> Result<(Tensor, Kept), ModelError> {
        let (heads, keys, width) = (
            self.config.heads,
            self.config.key_heads,
            self.config.head_dim,
        );
        let eps = self.config.norm_eps;
        let qkv = norm::forward(x_tw, &layer.input_norm, eps)
            .linear(&layer.qkv_weight, layer.qkv_bias.as_ref())
            .view([-1, heads + 2 * keys, width]);
        let mut qk = qkv.narrow(1, 0, heads + keys);
        let scales = self.head_scales(layer);
        let raw = scales.is_some().then(|| qk.copy());
        let turned = match &scales {
            Some(scales) => self.rope.apply(&norm::forward(&qk, scales, eps)),
            None => self.rope.apply(&qk),
        };
        qk.copy_(&turned);
        let attended = self.packing.forward(&qkv)?;
        let middle = select(x_tw, rows).addmm(
            &select(&attended.out, rows).view([-1, heads * width]),
            &layer.out.tr(),
        );
        let gate_up =
            norm::forward(&middle, &layer.mlp_norm, eps).linear(&layer.gate_up, None::<&Tensor>);
        let parts = gate_up.chunk(2, 1);
        let y = middle.addmm(&(parts[0].silu() * &parts[1]), &layer.down.tr());
        let kept = Kept {
            qkv,
            raw,
            attended,
            middle,
            gate_up,
        };
        Ok((y, kept))
    }

    /// Adds the gradients of a layer's weights, and gives that of its input unless nothing before it learns.
    ///
    /// # Shapes
    /// - `x_tw`: what the layer was given, `[t, w]`; `d_y`: `[r, w]`; returns `[t, w]`
    pub(crate) fn backward(
        &self,
        layer: &Layer,
        (x_tw, kept): (&Tensor, Kept),
        d_y: &Tensor,
        rows: Option<&Tensor>,
        sink: &mut Sink<'_>,
        wants_input: bool,
    ) -> Option<Tensor> {
        let (heads, width) = (self.config.heads, self.config.head_dim);
        let d_middle = self.gated_unit_backward(layer, &kept, d_y, sink);
        let attended = select(&kept.attended.out, rows).view([-1, heads * width]);
        sink.product(&layer.out, layer.out_adapter.as_ref(), &attended, &d_middle);
        drop(attended);
        let d_attended = d_middle.mm(&layer.out).view([-1, heads, width]);
        let tokens = x_tw.size()[0];
        let d_attended = spread(d_attended, rows, tokens);
        let d_qkv = self
            .packing
            .backward(&kept.qkv, &kept.attended, &d_attended);
        drop(d_attended);
        self.turn_back(layer, &d_qkv, kept.raw.as_ref(), sink);
        let d_qkv = d_qkv.view([tokens, -1]);
        let norm = Norm::again(x_tw, &layer.input_norm, self.config.norm_eps);
        sink.product(
            &layer.qkv_weight,
            layer.qkv_adapter.as_ref(),
            &norm.out,
            &d_qkv,
        );
        if let Some(bias) = &layer.qkv_bias {
            sink.bias(bias, &d_qkv);
        }
        if !wants_input && !layer.input_norm.requires_grad() {
            return None;
        }
        let (d_x, d_scale) = norm.backward(&d_qkv.mm(&layer.qkv_weight));
        sink.add(&layer.input_norm, &d_scale);
        Some(match rows {
            Some(rows) => d_x.index_add(0, rows, &d_middle),
            None => d_x + d_middle,
        })
    }

    /// The gradient after the attention, `[r, w]`.
    fn gated_unit_backward(
        &self,
        layer: &Layer,
        kept: &Kept,
        d_y: &Tensor,
        sink: &mut Sink<'_>,
    ) -> Tensor {
        let d_inner = d_y.mm(&layer.down);
        let parts = kept.gate_up.chunk(2, 1);
        let (gate, up) = (&parts[0], &parts[1]);
        let opened = gate.silu();
        sink.product(
            &layer.down,
            layer.down_adapter.as_ref(),
            &(&opened * up),
            d_y,
        );
        let d_gate_up = Tensor::cat(&[gate.silu_backward(&(&d_inner * up)), d_inner * opened], 1);
        let norm = Norm::again(&kept.middle, &layer.mlp_norm, self.config.norm_eps);
        sink.product(
            &layer.gate_up,
            layer.gate_up_adapter.as_ref(),
            &norm.out,
            &d_gate_up,
        );
        let (d_middle, d_scale) = norm.backward(&d_gate_up.mm(&layer.gate_up));
        sink.add(&layer.mlp_norm, &d_scale);
        d_middle + d_y
    }

    /// Takes the gradients of queries and keys back through rotation and norms, in place.
    fn turn_back(&self, layer: &Layer, d_qkv: &Tensor, raw: Option<&Tensor>, sink: &mut Sink<'_>) {
        let (heads, keys) = (self.config.heads, self.config.key_heads);
        let mut d_qk = d_qkv.narrow(1, 0, heads + keys);
        let turned = self.rope.undo(&d_qk);
        let before = match (raw, self.head_scales(layer), &layer.q_norm, &layer.k_norm) {
            (Some(raw), Some(scales), Some(query), Some(key)) => {
                let (before, d_scales) =
                    Norm::again(raw, &scales, self.config.norm_eps).backward(&turned);
                let sum = |start, length| {
                    let rows = d_scales.narrow(0, start, length);
                    rows.sum_dim_intlist(0, false, None::<Kind>)
                };
                sink.add(query, &sum(0, heads));
                sink.add(key, &sum(heads, keys));
                before
            }
            _ => turned,
        };
        d_qk.copy_(&before);
    }

    /// Scales of the norms of queries and keys, `[h + k, d]`, where there are norms.
    fn head_scales(&self, layer: &Layer) -> Option<Tensor> {
        let (query, key) = (layer.q_norm.as_ref()?, layer.k_norm.as_ref()?);
        let width = self.config.head_dim;
        Some(Tensor::cat(
            &[
                query.expand([self.config.heads, width], false),
                key.expand([self.config.key_heads, width], false),
            ],
            0,
        ))
    }
}

fn select(x: &Tensor, rows: Option<&Tensor>) -> Tensor {
    rows.map_or_else(|| x.shallow_clone(), |rows| x.index_select(0, rows))
}

/// Puts rows that were selected back among zeros.
fn spread(x: Tensor, rows: Option<&Tensor>, tokens: i64) -> Tensor {
    let Some(rows) = rows else {
        return x;
    };
    let mut size = x.size();
    size[0] = tokens;
    let mut all = Tensor::zeros(size, (x.kind(), x.device()));
    all.index_copy_(0, rows, &x)
}
