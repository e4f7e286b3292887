//! Memory of the work that is to come, by the shapes of the model and the way in which a pass works.
//!
//! What is counted is what `layer.rs`, `train.rs`, `head.rs` and the decoders hold at the same time at their worst moment; a change
//! there belongs here too.

use engine_core::error::ModelError;
use engine_core::policy::{MemoryDemand, MemoryPlan};
use tch::Kind;

use crate::completion::{most_tokens, most_tokens_of};
use crate::config::{TowerConfig, VisionConfig};
use crate::decoder::PREFILL_TOKENS;
use crate::fused;
use crate::head;
use crate::model::Model;
use crate::model::packed::{self, Heads};
use crate::parameters::{Parameters, wide_kind};

/// How a model is trained, as far as memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regime {
    pub(crate) recompute: bool,
    pub(crate) micro_batch_tokens: Option<usize>,
    pub(crate) lora: bool,
    /// Bytes of gradients of all trained weights.
    pub(crate) gradients: u64,
    /// Masters and moments.
    pub(crate) optimizer: u64,
    pub(crate) average: u64,
}

/// The model and the place where it works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) model: &'a Model,
    pub(crate) weights: &'a Parameters,
    /// Passes at the same time.
    pub(crate) threads: usize,
    /// Bytes that are there for everything.
    pub(crate) available: u64,
}

/// Plans.
///
/// # Errors
/// [`ModelError::Input`] when it does not fit, with the parts and what to change.
pub(crate) fn plan(
    site: Site<'_>,
    regime: Option<Regime>,
    demand: &MemoryDemand,
) -> Result<MemoryPlan, ModelError> {
    let learns = regime.filter(|_| demand.train_tokens > 0);
    let mut plan = MemoryPlan {
        weights: weight_bytes(site.weights),
        // On the CPU each thread has its own, which are added to a sum.
        gradients: learns.map_or(0, |regime| regime.gradients * (gradient_buffers(site))),
        optimizer: regime.map_or(0, |regime| regime.optimizer),
        average: regime.map_or(0, |regime| regime.average),
        activations: learns.map_or(0, |regime| {
            pass_bytes(site, regime, demand) * site.threads as u64
        }),
        generation: 0,
        available: site.available,
    };
    let (least, wanted) = generation_bytes(site.model, demand);
    // A cache takes fewer sequences at a time where there is less memory.
    let held = plan.peak() - plan.activations;
    plan.generation = wanted.min(site.available.saturating_sub(held)).max(least);
    if plan.peak() > plan.available {
        return Err(ModelError::Input(message(site, regime, demand, &plan)));
    }
    Ok(plan)
}

fn gradient_buffers(site: Site<'_>) -> u64 {
    if site.model.device.is_cuda() {
        1
    } else {
        1 + site.threads as u64
    }
}

fn weight_bytes(weights: &Parameters) -> u64 {
    let buckets = weights
        .buckets
        .iter()
        .map(|bucket| bucket.flat.numel() * bucket.flat.kind().elt_size_in_bytes());
    // Adapted weights are there a second time, without their adapters.
    let bases = weights
        .lora
        .as_ref()
        .map(|lora| lora.bases(&weights.tensors));
    let bases = bases.iter().flatten().zip(&weights.tensors);
    let bases = bases
        .filter(|(base, weight)| base.data_ptr() != weight.data_ptr())
        .map(|(base, _)| base.numel() * base.kind().elt_size_in_bytes());
    (buckets.sum::<usize>() + bases.sum::<usize>()) as u64
}

fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Bytes of a forward and backward pass beside weights and gradients.
fn pass_bytes(site: Site<'_>, regime: Regime, demand: &MemoryDemand) -> u64 {
    let model = site.model;
    let most = most_tokens_of(model, regime.micro_batch_tokens, demand.call_tokens);
    let tokens = most.max(demand.train_tokens) as u64;
    let text = &model.config.text;
    let element = model.kind.elt_size_in_bytes() as u64;
    let wide = wide_kind(model.kind).elt_size_in_bytes() as u64;
    let [width, inner] = [text.hidden, text.intermediate].map(positive);
    let [queries, keys] = [text.heads, text.key_heads].map(|heads| positive(heads * text.head_dim));
    let raw = if text.qk_norm { queries + keys } else { 0 };
    let input = width * element;
    let has_kernels = fused::covers(text, model.kind, model.device);
    // Queries, keys and values, the attention's output, the stream after it, gate and up; log-sum-exps. A GPU keeps the output among
    // padding too. What stands in the rows of the attention may be there more than once for a token.
    let rows = |each: u64| {
        if has_kernels {
            most_rows(model, each)
        } else {
            each
        }
    };
    let padded = if has_kernels { queries } else { 0 };
    let kept = (rows(queries + 2 * keys + padded) + raw + queries + width + 2 * inner) * element
        + rows(positive(text.heads) * wide);
    let backward = if has_kernels {
        // The gated unit and the rotation work in place.
        let attention = rows(4 * queries + 4 * keys) + queries;
        (inner.max(attention) + 2 * width) * element
    } else {
        let gated_unit = (4 * inner + 2 * width) * element;
        let norms = (2 * inner + 3 * width) * element + 4 * width * wide;
        let attention = (2 * width + 5 * queries + 2 * keys) * element;
        gated_unit.max(norms).max(attention)
    };
    let layers = text.layers as u64;
    let (all, one) = if regime.recompute {
        (layers * input, kept)
    } else {
        (layers * (input + kept), 0)
    };
    let at_head = 3 * width * element + 3 * width * wide;
    let tables = 2 * positive(text.head_dim) * element + 32;
    // In 16 bits on the CPU the gradient of a matrix is made before it is added to the sum.
    let product = if element < wide && !model.device.is_cuda() {
        site.weights
            .list
            .iter()
            .map(|weight| positive(weight.numel()))
            .max()
            .unwrap_or(0)
            * element
    } else {
        0
    };
    let layers = tokens * (all + tables + input);
    let backward = tokens * (one + backward) + product;
    let at_head = tokens * at_head + head_bytes(model, tokens);
    let passing = if model.device.is_cuda() {
        backward.max(at_head)
    } else {
        // The C library keeps what either has freed: their tensors are of different sizes.
        backward + at_head
    };
    layers + passing + tower_bytes(site, regime, tokens)
}

/// The rows of the attention of something that each token has.
fn most_rows(model: &Model, each: u64) -> u64 {
    let text = &model.config.text;
    let heads = Heads {
        query: text.heads,
        key: text.key_heads,
        width: text.head_dim,
    };
    (each * positive(packed::most_rows(heads, model.kind, model.device))).div_ceil(100)
}

/// Bytes of the head's chunks.
fn head_bytes(model: &Model, tokens: u64) -> u64 {
    let text = &model.config.text;
    let has_kernels = fused::covers(text, model.kind, model.device);
    let rows = positive(head::chunk_rows(text.vocab, model.device, has_kernels)).min(tokens);
    let element = model.kind.elt_size_in_bytes() as u64;
    let each = if has_kernels {
        // The gradient takes the place of the logits.
        element
    } else {
        // Logarithms of shares, the shares, and a product of the two or the gradient.
        3 * wide_kind(model.kind).elt_size_in_bytes() as u64
    };
    rows * positive(text.vocab) * each
}

/// Bytes of a tower that learns, half of the tokens being images.
fn tower_bytes(site: Site<'_>, regime: Regime, tokens: u64) -> u64 {
    let learns = (site.weights.trained().into_iter())
        .any(|index| site.weights.list[index].name.starts_with("visual."));
    let Some(VisionConfig {
        hidden,
        intermediate,
        depth,
        tower,
        merge,
        ..
    }) = site.model.config.vision.as_ref().filter(|_| learns)
    else {
        return 0;
    };
    let [width, inner] = [*hidden, *intermediate].map(positive);
    let inner = match tower {
        // Gate, up, what is opened and the product; up and its activation.
        TowerConfig::Windowed { .. } => 4 * inner,
        TowerConfig::Deepstack { .. } => 2 * inner,
    };
    let block = 12 * width + inner;
    let all = if regime.recompute {
        *depth as u64 * width + block
    } else {
        *depth as u64 * block
    };
    let patches = tokens / 2 * positive(merge * merge);
    patches * all * site.model.kind.elt_size_in_bytes() as u64
}

/// Bytes of the cache and of the workspace of decoding: for one sequence at a time, and for as many as are asked for.
fn generation_bytes(model: &Model, demand: &MemoryDemand) -> (u64, u64) {
    let (sequences, longest) = (
        demand.generate_concurrent as u64,
        demand.generate_tokens as u64,
    );
    if sequences * longest == 0 {
        return (0, 0);
    }
    if crate::cuda::supports(model).is_ok() {
        return crate::cuda::generation_bytes(model, sequences, longest);
    }
    let text = &model.config.text;
    let element = model.kind.elt_size_in_bytes() as u64;
    let keys = positive(text.key_heads * text.head_dim);
    let token = 2 * keys * text.layers as u64 * element;
    // What a layer holds for a token of a prompt, workspace of the products included (measured on the CPU).
    let stream = (8 * positive(text.hidden) + 9 * positive(text.intermediate)) * element;
    // Logits as they come, in 32 bits, and what sampling makes of them.
    let logits = 4 * positive(text.vocab) * Kind::Float.elt_size_in_bytes() as u64;
    let bytes = |sequences: u64| {
        let prompts = (sequences * longest).min(PREFILL_TOKENS as u64);
        sequences * (longest * token + logits) + prompts * (token + stream)
    };
    (bytes(1), bytes(sequences))
}

fn message(
    site: Site<'_>,
    regime: Option<Regime>,
    demand: &MemoryDemand,
    plan: &MemoryPlan,
) -> String {
    let parts = [
        ("weights", plan.weights),
        ("gradients", plan.gradients),
        ("optimizer", plan.optimizer),
        ("average", plan.average),
        ("activations", plan.activations),
        ("generation", plan.generation),
    ];
    let parts: Vec<String> = (parts.into_iter())
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", mebibytes(bytes)))
        .collect();
    let advice = advice(site, regime, demand, plan);
    format!(
        "{} of memory are needed and {} are there: {} (activations and generation are not there at the same time); {}",
        mebibytes(plan.peak()),
        mebibytes(plan.available),
        parts.join(", "),
        if advice.is_empty() {
            "a larger device or a smaller model is needed".to_owned()
        } else {
            format!("try {}", advice.join(", or "))
        }
    )
}

/// Settings that lower the peak.
fn advice(
    site: Site<'_>,
    regime: Option<Regime>,
    demand: &MemoryDemand,
    plan: &MemoryPlan,
) -> Vec<&'static str> {
    let mut advice = Vec::new();
    if plan.generation > plan.activations {
        advice.push("a smaller `max-concurrent`");
    } else if let Some(regime) = regime {
        if !regime.recompute {
            advice.push("`recompute: true`");
        }
        if most_tokens(site.model, regime.micro_batch_tokens) > demand.train_tokens {
            advice.push("smaller `micro-batch-tokens`");
        }
    }
    if regime.is_some_and(|regime| !regime.lora) {
        advice.push("`lora`");
    }
    if site.model.kind == Kind::Float {
        advice.push("`precision: bfloat16`");
    }
    advice
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
