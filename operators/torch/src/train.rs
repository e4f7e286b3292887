//! Forward and backward pass of one micro-batch.
//!
//! The backward pass is by hand from layer to layer: each layer starts again from its input, or from what it kept, and its gradients go
//! straight into the buffers of the step.
//!
//! Shapes: `n` completion tokens, `t` tokens of the pass, `r` tokens that predict something, `w` model width.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, LossReport, TrainSequence};
use tch::{Kind, Tensor};

use crate::completion::{self, Layout, MicroBatch};
use crate::head::Head;
use crate::loss::TokenTargets;
use crate::model::language::{Additions, Layer};
use crate::model::layer::Kept;
use crate::model::norm::{self, Norm};
use crate::model::tower::Features;
use crate::model::tower_pass::TowerPass;
use crate::model::{Model, indices};
use crate::optimizer::Gradients;
use crate::parameters::{Parameters, wide_kind};
use crate::sink::Sink;

/// Names of the tower's weights.
const TOWER: &str = "visual.";

/// What a micro-batch is learnt with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learning<'a> {
    pub(crate) model: &'a Model,
    pub(crate) weights: &'a Parameters,
    pub(crate) loss: Loss,
    /// Whether the backward pass runs layers again.
    pub(crate) recompute: bool,
}

/// A micro-batch on the device, before its pass.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    layout: Layout<'a>,
    targets: TokenTargets,
    sequences: usize,
}

impl<'a> Prepared<'a> {
    /// Brings a micro-batch to the device.
    ///
    /// # Errors
    /// When libtorch lacks a function.
    pub(crate) fn new(
        model: &'a Model,
        batch: &MicroBatch,
        sequences: &[TrainSequence],
    ) -> Result<Self, ModelError> {
        let in_rows = batch.rows.iter().map(|(index, _)| &sequences[*index]);
        Ok(Self {
            layout: Layout::new(model, batch, sequences)?,
            targets: TokenTargets::new(in_rows, wide_kind(model.kind), model.device),
            sequences: batch.rows.len(),
        })
    }
}

/// Hidden states of a pass, and what its backward pass needs.
struct Forward<'a> {
    /// Before the last norm, `[r, w]`.
    last: Tensor,
    /// From the first layer that is to be kept on: inputs, and the rest unless it is computed again.
    layers: Vec<(Tensor, Option<Kept>)>,
    /// Whether the last layer carries on only the tokens that predict something.
    is_pruned: bool,
    deep: usize,
    tower: Option<TowerPass<'a>>,
}

/// What to keep of a pass.
#[derive(Clone, Copy, Debug)]
struct Keep {
    /// The first layer that is kept.
    from: usize,
    recompute: bool,
    tower: bool,
}

/// Adds the gradients of a micro-batch. `meanwhile` is called when the forward pass is under way, before its loss is waited for.
///
/// # Errors
/// [`ModelError::NonFinite`] when the loss is not finite; the gradients are then spoilt.
pub(crate) fn forward_backward(
    learning: &Learning<'_>,
    prepared: &Prepared<'_>,
    gradients: &mut Gradients,
    meanwhile: &mut dyn FnMut(),
) -> Result<LossReport, ModelError> {
    let _no_graph = tch::no_grad_guard();
    let Learning { model, weights, .. } = *learning;
    let mut sink = Sink::new(weights, gradients);
    let Prepared {
        layout, targets, ..
    } = prepared;
    let tower = !sink.below(&[TOWER]).is_empty();
    let inputs = tower || model.language.embedding.requires_grad();
    let learns: Vec<bool> = model.language.layers.iter().map(Layer::learns).collect();
    let first = learns.iter().position(|learns| *learns);
    let keep = Keep {
        from: if inputs {
            0
        } else {
            first.unwrap_or(learns.len())
        },
        recompute: learning.recompute,
        tower,
    };
    let forward = forward(model, layout, Some(keep))?;
    let fused = layout.fused.as_deref();
    let (scale, eps) = (&model.language.norm, model.config.text.norm_eps);
    let norm = Norm::again(&forward.last, scale, eps, fused);
    let hidden = norm.out.index_select(0, &layout.expand);
    let head = Head {
        language: &model.language,
        fused,
    };
    let (report, d_hidden) = head
        .learn(hidden, targets, learning.loss, &mut sink, meanwhile)
        .map_err(|error| of_sequences(error, prepared.sequences))?;
    let d_hidden = collapsed(&d_hidden, layout, model.kind);
    let (d_last, d_scale) = norm.backward(&d_hidden, None)?;
    sink.add(scale, &d_scale);
    drop((d_hidden, d_scale));
    backward(model, layout, forward, d_last, &mut sink)?;
    Ok(report)
}

/// Log-probability of each completion token, in the order of the batch's rows.
///
/// # Errors
/// [`ModelError::NonFinite`] for one that is not finite.
pub(crate) fn score(
    model: &Model,
    batch: &MicroBatch,
    sequences: &[TrainSequence],
) -> Result<Vec<f32>, ModelError> {
    let _no_graph = tch::no_grad_guard();
    let layout = Layout::new(model, batch, sequences)?;
    let last = forward(model, &layout, None)?.last;
    let (scale, eps) = (&model.language.norm, model.config.text.norm_eps);
    let hidden = norm::forward(&last, scale, eps).index_select(0, &layout.expand);
    let targets = indices(
        &completion::completion_tokens(batch, sequences),
        model.device,
    );
    let head = Head {
        language: &model.language,
        fused: layout.fused.as_deref(),
    };
    head.logprobs(&hidden, &targets)
}

/// An error of the loss with the number of sequences it is of.
fn of_sequences(error: ModelError, count: usize) -> ModelError {
    match error {
        ModelError::NonFinite(what) => {
            ModelError::NonFinite(format!("{what} of {count} sequences"))
        }
        other => other,
    }
}

/// Runs embeddings, tower and layers.
fn forward<'a>(
    model: &Model,
    layout: &Layout<'a>,
    keep: Option<Keep>,
) -> Result<Forward<'a>, ModelError> {
    let language = &model.language;
    let (mut x, additions, tower) = embed(model, layout, keep);
    let deep = additions.as_ref().map_or(0, |all| all.layers.len());
    let count = language.layers.len();
    let is_pruned = deep < count;
    let mut layers = Vec::new();
    let pass = layout.pass(model);
    for (index, layer) in language.layers.iter().enumerate() {
        let rows = (is_pruned && index + 1 == count).then_some(&layout.needed);
        let keep = keep.filter(|keep| index >= keep.from);
        let (mut y, kept) = if keep.is_some_and(|keep| !keep.recompute) {
            let (y, kept) = pass.forward(layer, &x, rows)?;
            (y, Some(kept))
        } else {
            (pass.run(layer, &x, rows, keep.is_none())?, None)
        };
        if let Some(features) =
            (additions.as_ref()).and_then(|all| Some((&all.rows, all.layers.get(index)?)))
        {
            y = y.index_add_(0, features.0, features.1);
        }
        let input = std::mem::replace(&mut x, y);
        if keep.is_some() {
            layers.push((input, kept));
        }
    }
    if !is_pruned {
        x = x.index_select(0, &layout.needed);
    }
    Ok(Forward {
        last: x,
        layers,
        is_pruned,
        deep,
        tower,
    })
}

/// Embeddings with image features in them.
fn embed<'a>(
    model: &Model,
    layout: &Layout<'a>,
    keep: Option<Keep>,
) -> (Tensor, Option<Additions>, Option<TowerPass<'a>>) {
    let x = model.language.embed(&layout.ids);
    let Some((vision, placed)) = &layout.images else {
        return (x, None, None);
    };
    let (kind, device) = (model.kind, model.device);
    let (tower, features) = match keep.filter(|keep| keep.tower) {
        Some(keep) => {
            let (tower, features) =
                TowerPass::forward(vision, &placed.images, keep.recompute, kind, device);
            (Some(tower), features)
        }
        None => (None, vision.encode_all(&placed.images, kind, device)),
    };
    let (x, additions) = placed.splice(&x, &features);
    (x, additions, tower)
}

/// Takes the gradient of the last layer's output through layers, tower and embeddings.
fn backward(
    model: &Model,
    layout: &Layout<'_>,
    forward: Forward<'_>,
    d_last: Tensor,
    sink: &mut Sink<'_>,
) -> Result<(), ModelError> {
    let language = &model.language;
    let pass = layout.pass(model);
    let mut layers = forward.layers;
    let (count, first) = (language.layers.len(), language.layers.len() - layers.len());
    let inputs = forward.tower.is_some() || language.embedding.requires_grad();
    drop(forward.last);
    let mut d_x = if forward.is_pruned {
        d_last
    } else {
        let mut zeros = Tensor::zeros(
            [layout.ids.size()[0], d_last.size()[1]],
            (d_last.kind(), d_last.device()),
        );
        zeros.index_copy_(0, &layout.needed, &d_last)
    };
    let mut d_deep = Vec::new();
    for index in (first..count).rev() {
        let layer = &language.layers[index];
        let (input, kept) = layers.pop().expect("a layer was kept");
        if let (true, Some((_, placed)), true) = (
            index < forward.deep,
            &layout.images,
            forward.tower.is_some(),
        ) {
            d_deep.push(placed.gathered(&d_x));
        }
        let rows = (forward.is_pruned && index + 1 == count).then_some(&layout.needed);
        let kept = match kept {
            Some(kept) => kept,
            None => pass.keep(layer, &input, rows)?,
        };
        let wants_input = inputs || index > first;
        match pass.backward(layer, (&input, kept), &d_x, rows, sink, wants_input)? {
            Some(d_input) => d_x = d_input,
            None => return Ok(()),
        }
    }
    if !inputs {
        return Ok(());
    }
    if let Some((_, placed)) = &layout.images {
        let embeddings = placed.gathered(&d_x);
        d_x = placed.clear(d_x);
        if let Some(tower) = forward.tower {
            d_deep.reverse();
            let gradient = Features {
                embeddings,
                deep: d_deep,
            };
            tower.backward(&gradient, sink);
        }
    }
    sink.rows(&language.embedding, &layout.ids, &d_x);
    Ok(())
}

/// The gradient by what predicts, `[r, w]`, for that by predicted tokens, `[n, w]`: completions that share a prompt share the token
/// that predicts their first one.
fn collapsed(d_hidden: &Tensor, layout: &Layout<'_>, kind: Kind) -> Tensor {
    let size = [layout.needed.size()[0], d_hidden.size()[1]];
    let wide = d_hidden.to_kind(wide_kind(kind));
    Tensor::zeros(size, (wide.kind(), wide.device()))
        .index_add_(0, &layout.expand, &wide)
        .to_kind(kind)
}
