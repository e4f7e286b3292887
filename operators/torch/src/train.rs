//! Forward and backward pass of one micro-batch.
//!
//! The output head is the widest layer by far, so its forward and backward pass run in chunks of tokens against a
//! detached copy of the hidden states; the gradient that they leave there then goes through the layers in one piece.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, LossReport, TrainSequence};
use tch::{Kind, Tensor};

use crate::completion::{self, MicroBatch};
use crate::loss::{Tally, TokenTargets, weighted_loss};
use crate::model::Model;
use crate::optimizer::Gradients;
use crate::parameters::Parameters;

/// Loss and gradients of a micro-batch.
///
/// # Errors
/// [`ModelError::NonFinite`] when the loss is not finite.
pub(crate) fn forward_backward(
    model: &Model,
    weights: &Parameters,
    batch: &MicroBatch,
    sequences: &[TrainSequence],
    loss: Loss,
) -> Result<(LossReport, Gradients), ModelError> {
    let hidden = completion::completion_states(model, batch, sequences);
    let kind = if model.kind == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let targets = TokenTargets::new(batch, sequences, kind, model.device);
    let head = &model.language.head;
    let count = hidden.size()[0];
    let chunk = completion::head_chunk(model.config.text.vocab);

    let mut tallies = Vec::new();
    let mut hidden_gradients = Vec::new();
    let mut head_gradient: Option<Tensor> = None;
    let mut start = 0;
    while start < count {
        let length = chunk.min(count - start);
        let states = hidden
            .detach()
            .narrow(0, start, length)
            .set_requires_grad(true);
        let distribution = completion::log_distribution(&model.language, &states);
        let (value, tally) = weighted_loss(&distribution, &targets.narrow(start, length), loss);
        tallies.push(tally);
        let mut inputs = vec![&states];
        if head.requires_grad() {
            inputs.push(head);
        }
        let mut parts = Tensor::run_backward(&[&value], &inputs, false, false).into_iter();
        hidden_gradients.extend(parts.next());
        head_gradient = match (head_gradient, parts.next()) {
            (Some(sum), Some(part)) => Some(sum + part),
            (sum, part) => sum.or(part),
        };
        start += length;
    }
    let report = Tally::report(&tallies, usize::try_from(count).unwrap_or(0));
    if !report.loss.is_finite() {
        return Err(ModelError::NonFinite(format!(
            "loss {} over {count} completion tokens of {} sequences",
            report.loss,
            batch.rows.len()
        )));
    }
    let mut list = through_layers(weights, &hidden, &Tensor::cat(&hidden_gradients, 0));
    if let Some(part) = head_gradient {
        add_to_head(weights, &mut list, head, &part);
    }
    Ok((report, Gradients::collect(weights, &list)))
}

/// Gradients of the trained weights for a gradient of the hidden states; undefined where there is no dependence.
fn through_layers(weights: &Parameters, hidden: &Tensor, gradient: &Tensor) -> Vec<Tensor> {
    let trained: Vec<&Tensor> = weights
        .trained()
        .into_iter()
        .map(|index| &weights.tensors[index])
        .collect();
    if !hidden.requires_grad() {
        return trained.iter().map(|_| Tensor::new()).collect();
    }
    // The derivative of this sum by the hidden states is the gradient, as a constant.
    let carrier = (hidden * gradient).sum(None::<Kind>);
    Tensor::run_backward(&[&carrier], &trained, false, false)
}

fn add_to_head(weights: &Parameters, list: &mut [Tensor], head: &Tensor, part: &Tensor) {
    let trained = weights.trained();
    let place = trained
        .iter()
        .position(|index| weights.tensors[*index].data_ptr() == head.data_ptr())
        .expect("a head with a gradient is a trained weight");
    list[place] = if list[place].defined() {
        &list[place] + part
    } else {
        part.shallow_clone()
    };
}
