//! The tower in training, part by part: each part starts from its input alone, so that its graph can be built again in the backward
//! pass instead of being kept.
//!
//! Shapes: `n` patches, `m` merged patches, `w` tower width.

use std::sync::Arc;

use engine_core::policy::PatchedImage;
use tch::{Device, Kind, Tensor};

use super::tower::{Features, Plan, Vision, image_batches};
use crate::layout::{qwen3_vl::deep_merger, vision_block};
use crate::sink::Sink;

/// Names of the weights of the first part and of the last.
const FIRST: [&str; 2] = ["visual.patch_embed.", "visual.pos_embed."];
const LAST: [&str; 1] = ["visual.merger."];

/// Part of a tower.
#[derive(Clone, Copy, Debug)]
enum Part {
    Embed,
    Block(usize),
    /// Features that leave the tower after a block, with their number.
    Deep(usize, usize),
    Merge,
}

/// A part that was run.
#[derive(Debug)]
struct Run {
    part: Part,
    input: Tensor,
    /// Input and output of its graph, if that is kept.
    graph: Option<(Tensor, Tensor)>,
}

/// A batch of images that was run.
#[derive(Debug)]
struct Batch {
    plan: Plan,
    runs: Vec<Run>,
    /// Merged patches.
    count: i64,
}

/// Images after their pass through a tower that learns.
#[derive(Debug)]
pub(crate) struct TowerPass<'a> {
    vision: &'a Vision,
    batches: Vec<Batch>,
}

impl<'a> TowerPass<'a> {
    /// Encodes images, one after the other. With `recompute`, graphs are built in the backward pass.
    pub(crate) fn forward(
        vision: &'a Vision,
        images: &[Arc<PatchedImage>],
        recompute: bool,
        kind: Kind,
        device: Device,
    ) -> (Self, Features) {
        let (mut batches, mut features) = (Vec::new(), Vec::new());
        for images in image_batches(images) {
            let (pixels, plan) = vision.prepare(images, kind, device);
            let mut runs = Vec::new();
            let mut deep = Vec::new();
            let mut run = |part: Part, input: &Tensor| {
                let run = Run {
                    part,
                    input: input.shallow_clone(),
                    graph: None,
                };
                if recompute {
                    let output = apply(vision, part, input, &plan);
                    runs.push(run);
                    return output;
                }
                let graph = build(vision, &run, &plan);
                let output = graph.1.detach();
                runs.push(Run {
                    graph: Some(graph),
                    ..run
                });
                output
            };
            let mut x = run(Part::Embed, &pixels);
            for block in 0..vision.config.depth {
                x = run(Part::Block(block), &x);
                if let Some(number) = vision.blocks.tap(block) {
                    deep.push(run(Part::Deep(block, number), &x));
                }
            }
            let embeddings = run(Part::Merge, &x);
            batches.push(Batch {
                plan,
                runs,
                count: embeddings.size()[0],
            });
            features.push(Features { embeddings, deep });
        }
        (Self { vision, batches }, Features::cat(&features))
    }

    /// Adds the gradients of the tower's weights for those of its features.
    pub(crate) fn backward(self, gradient: &Features, sink: &mut Sink<'_>) {
        let mut start = 0;
        for batch in self.batches {
            let part = |x: &Tensor| x.narrow(0, start, batch.count);
            let d_embeddings = part(&gradient.embeddings);
            let d_deep: Vec<Tensor> = gradient.deep.iter().map(part).collect();
            start += batch.count;
            // Nothing before the first part that learns needs a gradient.
            let first = (batch.runs.iter()).position(|run| !weights(run.part, sink).is_empty());
            let runs = batch.runs.into_iter().skip(first.unwrap_or(usize::MAX));
            let runs: Vec<Run> = runs.collect();
            // The gradient of what the part at hand gave.
            let mut d_x: Option<Tensor> = None;
            for run in runs.into_iter().rev() {
                let d_output = match run.part {
                    Part::Merge => Some(d_embeddings.shallow_clone()),
                    Part::Deep(_, number) => Some(d_deep[number].shallow_clone()),
                    Part::Block(_) | Part::Embed => d_x.take(),
                };
                let Some(d_output) = d_output else {
                    continue;
                };
                let d_input = backward(self.vision, run, &batch.plan, &d_output, sink);
                d_x = match (d_x, d_input) {
                    (Some(sum), Some(part)) => Some(sum + part),
                    (one, other) => one.or(other),
                };
            }
        }
    }
}

/// Runs a part.
fn apply(vision: &Vision, part: Part, input: &Tensor, plan: &Plan) -> Tensor {
    match part {
        Part::Embed => vision.blocks.embed(input, plan),
        Part::Block(index) => vision.blocks.block(index, input, plan),
        Part::Deep(index, _) => vision.blocks.deep(index, input),
        Part::Merge => vision.blocks.merge(input, plan),
    }
}

/// The graph of a part: its input and its output. Pixels need no gradient.
fn build(vision: &Vision, run: &Run, plan: &Plan) -> (Tensor, Tensor) {
    let is_inner = !matches!(run.part, Part::Embed);
    let input = run.input.detach().set_requires_grad(is_inner);
    let output = tch::with_grad(|| apply(vision, run.part, &input, plan));
    (input, output)
}

/// Weights of a part that learn.
fn weights(part: Part, sink: &Sink<'_>) -> Vec<Tensor> {
    match part {
        Part::Embed => sink.below(&FIRST),
        Part::Block(index) => sink.below(&[&vision_block(index)]),
        Part::Deep(_, number) => sink.below(&[&deep_merger(number)]),
        Part::Merge => sink.below(&LAST),
    }
}

fn backward(
    vision: &Vision,
    mut run: Run,
    plan: &Plan,
    d_output: &Tensor,
    sink: &mut Sink<'_>,
) -> Option<Tensor> {
    let graph = run.graph.take();
    let (input, output) = graph.unwrap_or_else(|| build(vision, &run, plan));
    let weights = weights(run.part, sink);
    let mut inputs: Vec<&Tensor> = weights.iter().collect();
    if input.requires_grad() {
        inputs.push(&input);
    }
    if inputs.is_empty() || !output.requires_grad() {
        return None;
    }
    // The derivative of this sum by the output is the gradient, as a constant.
    let carrier = tch::with_grad(|| (&output * d_output).sum(None::<Kind>));
    let mut parts = Tensor::run_backward(&[carrier], &inputs, false, false);
    let d_input = input.requires_grad().then(|| parts.pop()).flatten();
    for (weight, part) in weights.iter().zip(parts) {
        if part.defined() {
            sink.add(weight, &part);
        }
    }
    d_input
}
