//! A layer of the language model in training: forward over packed sequences, and its backward pass by hand.
//!
//! What is cheap to compute again (norms, the gated unit) is not kept. Products of gradients go straight into the buffers of the
//! step.
//!
//! Shapes: `t` tokens, `r` tokens whose output is needed, `w` model width, `h` query heads, `k` key heads, `d` head width, `i` width of
//! the gated unit.

use engine_core::error::ModelError;
use tch::Tensor;

use super::between::Between;
use super::language::Layer;
use super::norm::{self, Norm};
use super::packed::{Attended, Packing};
use crate::sink::Sink;

/// What all layers of a pass share.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) between: Between<'a>,
    pub(crate) packing: &'a Packing,
}

/// What a layer's backward pass starts from.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Queries, keys and values as they were attended with, `[.., h + 2 k, d]`.
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
    /// Runs a layer for its backward pass. With `rows`, only these tokens are carried on after the attention.
    ///
    /// # Shapes
    /// - `x_tw`: `[t, w]`; `rows`: `[r]`; returns `[r, w]`
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn forward(
        &self,
        layer: &Layer,
        x_tw: &Tensor,
        rows: Option<&Tensor>,
    ) -> Result<(Tensor, Kept), ModelError> {
        let kept = self.keep(layer, x_tw, rows)?;
        let inner = self.between.gated(&kept.gate_up)?;
        Ok((kept.middle.addmm(&inner, &layer.down.tr()), kept))
    }

    /// As [`Pass::forward`], and keeps nothing: sums go to the memory of what was added to. That of `x_tw` is used up if the caller is done
    /// with it.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn run(
        &self,
        layer: &Layer,
        x_tw: &Tensor,
        rows: Option<&Tensor>,
        is_done_with: bool,
    ) -> Result<Tensor, ModelError> {
        let Kept {
            mut middle,
            gate_up,
            ..
        } = self.through(layer, x_tw, rows, is_done_with)?;
        let inner = self.between.gated(&gate_up)?;
        Ok(middle.addmm_(&inner, &layer.down.tr()))
    }

    /// What [`Pass::forward`] keeps, without the output.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn keep(
        &self,
        layer: &Layer,
        x_tw: &Tensor,
        rows: Option<&Tensor>,
    ) -> Result<Kept, ModelError> {
        self.through(layer, x_tw, rows, false)
    }

    /// Runs a layer up to gate and up.
    fn through(
        &self,
        layer: &Layer,
        x_tw: &Tensor,
        rows: Option<&Tensor>,
        is_done_with: bool,
    ) -> Result<Kept, ModelError> {
        let Between { heads, eps, .. } = self.between;
        let qkv = norm::forward(x_tw, &layer.input_norm, eps)
            .linear(&layer.qkv_weight, layer.qkv_bias.as_ref())
            .view([-1, heads.query + 2 * heads.key, heads.width]);
        let (qkv, raw) = self.between.turn(layer, qkv)?;
        let attended = self.packing.forward(&qkv, self.between.fused)?;
        let out = select(&attended.out, rows).view([-1, heads.query * heads.width]);
        let mut stream = select(x_tw, rows);
        // In place there is one copy less. What was selected is a copy already.
        let middle = if is_done_with || rows.is_some() {
            stream.addmm_(&out, &layer.out.tr())
        } else {
            stream.addmm(&out, &layer.out.tr())
        };
        let gate_up =
            norm::forward(&middle, &layer.mlp_norm, eps).linear(&layer.gate_up, None::<&Tensor>);
        Ok(Kept {
            qkv,
            raw,
            attended,
            middle,
            gate_up,
        })
    }

    /// Adds the gradients of a layer's weights, and gives that of its input unless nothing before it learns.
    ///
    /// # Shapes
    /// - `x_tw`: what the layer was given, `[t, w]`; `d_y`: `[r, w]`; returns `[t, w]`
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn backward(
        &self,
        layer: &Layer,
        (x_tw, kept): (&Tensor, Kept),
        d_y: &Tensor,
        rows: Option<&Tensor>,
        sink: &mut Sink<'_>,
        wants_input: bool,
    ) -> Result<Option<Tensor>, ModelError> {
        let Between {
            heads, eps, fused, ..
        } = self.between;
        let Kept {
            qkv,
            raw,
            attended,
            middle,
            gate_up,
        } = kept;
        let d_middle = self.gated_unit_backward(layer, (&middle, gate_up), d_y, sink)?;
        let out = select(&attended.out, rows).view([-1, heads.query * heads.width]);
        sink.product(&layer.out, layer.out_adapter.as_ref(), &out, &d_middle);
        drop(out);
        let d_attended = d_middle.mm(&layer.out).view([-1, heads.query, heads.width]);
        let tokens = x_tw.size()[0];
        let d_attended = spread(d_attended, rows, tokens);
        let flows = self.packing.backward(&qkv, &attended, &d_attended, fused)?;
        drop((d_attended, attended, qkv));
        let d_qkv = self
            .between
            .turn_back(layer, flows, raw.as_ref(), sink)?
            .view([tokens, -1]);
        let norm = Norm::again(x_tw, &layer.input_norm, eps, fused);
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
            return Ok(None);
        }
        let residual = rows.is_none().then_some(&d_middle);
        let (mut d_x, d_scale) = norm.backward(&d_qkv.mm(&layer.qkv_weight), residual)?;
        sink.add(&layer.input_norm, &d_scale);
        Ok(Some(match rows {
            Some(rows) => d_x.index_add_(0, rows, &d_middle),
            None => d_x,
        }))
    }

    /// The gradient after the attention, `[r, w]`.
    fn gated_unit_backward(
        &self,
        layer: &Layer,
        (middle, gate_up): (&Tensor, Tensor),
        d_y: &Tensor,
        sink: &mut Sink<'_>,
    ) -> Result<Tensor, ModelError> {
        let (inner, d_gate_up) = self.between.gated_backward(gate_up, d_y.mm(&layer.down))?;
        sink.product(&layer.down, layer.down_adapter.as_ref(), &inner, d_y);
        drop(inner);
        let Between { eps, fused, .. } = self.between;
        let norm = Norm::again(middle, &layer.mlp_norm, eps, fused);
        sink.product(
            &layer.gate_up,
            layer.gate_up_adapter.as_ref(),
            &norm.out,
            &d_gate_up,
        );
        let (d_middle, d_scale) = norm.backward(&d_gate_up.mm(&layer.gate_up), Some(d_y))?;
        sink.add(&layer.mlp_norm, &d_scale);
        Ok(d_middle)
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
