//! Draws the next token of each row: penalties, forbidden tokens, temperature, truncation, and a draw by inverting the
//! cumulative distribution, in the order of the tokens' numbers, at the row's own uniform number.
//!
//! What a row gets depends on its logits and its [`Choice`] only. Ties go to the lower token.
//!
//! Shapes: `n` rows, `v` vocabulary.

mod adjust;
mod invert;
#[cfg(test)]
mod tests;
mod truncate;

use engine_core::error::ModelError;
use engine_core::policy::SamplingParams;
use tch::{Device, Kind, Tensor};

pub(crate) use adjust::{Counts, check};
use truncate::{Ranked, Truncation};

use crate::team::{self, Job};

/// Values of a block of rows that are worked on together, so that they stay in the cache of a core.
const BLOCK_VALUES: usize = 1 << 18;

/// How one row is sampled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) params: &'a SamplingParams,
    /// Tokens that penalties look at; none where nothing is penalised.
    pub(crate) counts: Option<&'a Counts>,
    /// Tokens of the completion so far.
    pub(crate) position: usize,
    /// In `[0, 1)`.
    pub(crate) uniform: f64,
    /// Most likely tokens to report.
    pub(crate) top: usize,
}

/// How a row is drawn once its logits are adjusted.
#[derive(Clone, Copy, Debug)]
struct Plan {
    is_greedy: bool,
    /// The divisor of the logits. Log-probabilities of a greedy row are those at temperature 1.
    temperature: f64,
    truncation: Truncation,
    uniform: f64,
    top: usize,
}

impl Plan {
    fn new(choice: &Choice<'_>) -> Self {
        let params = choice.params;
        let is_greedy = params.temperature <= 0.0;
        Self {
            is_greedy,
            temperature: if is_greedy { 1.0 } else { params.temperature },
            // The most likely token is never left out.
            truncation: if is_greedy {
                Truncation::NONE
            } else {
                Truncation::new(params)
            },
            uniform: choice.uniform,
            top: choice.top,
        }
    }
}

/// The next token of a row; the fields are those of `SessionToken`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Draw {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) truncated_logprob: f32,
    pub(crate) entropy: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// Draws one token for each row.
///
/// # Shapes
/// - `logits_nv`: `[n, v]`; one choice for each row
///
/// # Types and device
/// Log-probabilities in 32 bits; their cumulative sum in 64, so that no token of a large vocabulary is rounded away. Rows of a
/// GPU that need more than a draw are brought to the CPU.
///
/// # Errors
/// [`ModelError::NonFinite`] when a log-probability is not finite.
pub(crate) fn draw(logits_nv: &Tensor, choices: &[Choice<'_>]) -> Result<Vec<Draw>, ModelError> {
    let draws = if logits_nv.device() == Device::Cpu {
        draw_on_cpu(logits_nv, choices)
    } else {
        draw_on_device(logits_nv, choices)
    };
    if let Some(row) = draws.iter().position(|draw| !draw.logprob.is_finite()) {
        return Err(ModelError::NonFinite(format!(
            "logits of row {row} of a batch while sampling"
        )));
    }
    Ok(draws)
}

fn draw_on_cpu(logits_nv: &Tensor, choices: &[Choice<'_>]) -> Vec<Draw> {
    let vocab = usize::try_from(logits_nv.size()[1]).unwrap_or(1);
    let block = (BLOCK_VALUES / vocab).max(1);
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut jobs: Vec<Job> = Vec::new();
    for (place, choices) in choices.chunks(block).enumerate() {
        let logits = logits_nv.narrow(0, (place * block) as i64, choices.len() as i64);
        let logits = adjust::adjusted(&logits, choices, vocab);
        let plans: Vec<Plan> = choices.iter().map(Plan::new).collect();
        let sender = sender.clone();
        jobs.push(Box::new(move || {
            // The receiver outlives the jobs.
            drop(sender.send((place, draw_block(&logits, &plans, vocab))));
        }));
    }
    drop(sender);
    team::run(jobs);
    let mut blocks: Vec<(usize, Vec<Draw>)> = receiver.into_iter().collect();
    blocks.sort_unstable_by_key(|(place, _)| *place);
    blocks.into_iter().flat_map(|(_, draws)| draws).collect()
}

/// Draws the rows of a block, on any thread.
fn draw_block(logits_nv: &Tensor, plans: &[Plan], vocab: usize) -> Vec<Draw> {
    let count = plans.len() * vocab;
    let scaled = tempered(logits_nv, plans);
    let distribution = scaled.log_softmax(-1, None).to_kind(Kind::Float);
    let (mut logprobs, mut probs) = (vec![0.0; count], vec![0.0; count]);
    distribution.copy_data(&mut logprobs, count);
    distribution.exp().copy_data(&mut probs, count);
    let tokens = tokens_of(&scaled, plans, &probs, vocab);
    let rows = logprobs.chunks(vocab).zip(probs.chunks(vocab));
    rows.zip(plans.iter().zip(tokens))
        .map(|((logprobs, probs), (plan, token))| draw_row(logprobs, probs, plan, token))
        .collect()
}

/// Logits over the temperature of their rows.
fn tempered(logits_nv: &Tensor, plans: &[Plan]) -> Tensor {
    let first = plans[0].temperature;
    if plans.iter().all(|plan| plan.temperature == first) {
        return if first == 1.0 {
            logits_nv.shallow_clone()
        } else {
            logits_nv / first
        };
    }
    let column: Vec<f64> = plans.iter().map(|plan| plan.temperature).collect();
    let column = Tensor::from_slice(&column)
        .to_kind(logits_nv.kind())
        .to_device(logits_nv.device());
    logits_nv / column.unsqueeze(1)
}

/// The tokens of the rows that are not truncated: the most likely one of greedy rows, drawn ones of others. Tokens of rows that
/// are truncated mean nothing.
fn tokens_of(scaled: &Tensor, plans: &[Plan], probs: &[f32], vocab: usize) -> Vec<usize> {
    let mut tokens = vec![0; plans.len()];
    if plans.iter().any(|plan| plan.is_greedy) {
        // Rounded log-probabilities can be equal where logits are not.
        let most_likely = scaled.argmax(-1, false);
        for (row, token) in tokens.iter_mut().enumerate() {
            *token = usize::try_from(most_likely.int64_value(&[row as i64])).unwrap_or(0);
        }
    }
    let drawn = |plan: &Plan| !plan.is_greedy && !plan.truncation.truncates();
    let places: Vec<usize> = (0..plans.len()).filter(|row| drawn(&plans[*row])).collect();
    let rows: Vec<(&[f32], f64)> = places
        .iter()
        .map(|row| {
            let probs = &probs[row * vocab..(row + 1) * vocab];
            (probs, plans[*row].uniform)
        })
        .collect();
    for (row, token) in places.into_iter().zip(invert::tokens(&rows)) {
        tokens[row] = token;
    }
    tokens
}

/// What is reported of a row. `token` is used where the row is not truncated.
fn draw_row(logprobs: &[f32], probs: &[f32], plan: &Plan, token: usize) -> Draw {
    let mut draw = Draw {
        entropy: entropy(logprobs, probs),
        ..Draw::default()
    };
    let mut chosen = token;
    let mut gain = 0.0;
    let truncates = plan.truncation.truncates();
    if truncates || plan.top > 0 {
        let mut ranked = Ranked::new(logprobs);
        draw.top = ranked
            .first(plan.top)
            .iter()
            .map(|token| (*token, logprobs[*token as usize]))
            .collect();
        if truncates {
            let kept = plan.truncation.kept(&mut ranked, probs);
            let (token, mass) = invert::token_among(probs, &kept, plan.uniform);
            chosen = token;
            gain = if kept.len() == ranked.len() {
                0.0
            } else {
                mass.ln()
            };
        }
    }
    draw.token = u32::try_from(chosen).expect("a token id fits 32 bits");
    draw.logprob = logprobs[chosen];
    draw.truncated_logprob = if plan.is_greedy {
        0.0
    } else {
        // Rounding can give a sum of probabilities above 1.
        (f64::from(draw.logprob) - gain).min(0.0) as f32
    };
    draw
}

/// Entropy in nats of a row.
fn entropy(logprobs: &[f32], probs: &[f32]) -> f32 {
    const LANES: usize = 8;
    const CHUNK: usize = 32 * LANES;
    let term = |logprob: f32, prob: f32| if prob > 0.0 { prob * logprob } else { 0.0 };
    let mut total = 0.0_f64;
    for (logprobs, probs) in logprobs.chunks(CHUNK).zip(probs.chunks(CHUNK)) {
        let mut sums = [0.0_f32; LANES];
        let (logprobs, rest_l) = logprobs.as_chunks::<LANES>();
        let (probs, rest_p) = probs.as_chunks::<LANES>();
        for (logprobs, probs) in logprobs.iter().zip(probs) {
            for lane in 0..LANES {
                sums[lane] += term(logprobs[lane], probs[lane]);
            }
        }
        let rest = rest_l.iter().zip(rest_p);
        let rest: f32 = rest.map(|(logprob, prob)| term(*logprob, *prob)).sum();
        total += f64::from(sums.iter().sum::<f32>() + rest);
    }
    (0.0 - total) as f32
}

/// Plain rows are drawn where they are; others on the CPU.
fn draw_on_device(logits_nv: &Tensor, choices: &[Choice<'_>]) -> Vec<Draw> {
    let (plain, special): (Vec<usize>, Vec<usize>) =
        (0..choices.len()).partition(|row| is_plain(&choices[*row]));
    let mut draws = vec![Draw::default(); choices.len()];
    for (places, is_plain) in [(plain, true), (special, false)] {
        if places.is_empty() {
            continue;
        }
        let picked: Vec<Choice<'_>> = places.iter().map(|row| choices[*row]).collect();
        let logits = if picked.len() == choices.len() {
            logits_nv.shallow_clone()
        } else {
            let rows: Vec<i64> = places.iter().map(|row| *row as i64).collect();
            let rows = Tensor::from_slice(&rows).to_device(logits_nv.device());
            logits_nv.index_select(0, &rows)
        };
        let drawn = if is_plain {
            let plans: Vec<Plan> = picked.iter().map(Plan::new).collect();
            draw_plain(&logits, &plans)
        } else {
            draw_on_cpu(&logits.to_device(Device::Cpu), &picked)
        };
        for (row, draw) in places.into_iter().zip(drawn) {
            draws[row] = draw;
        }
    }
    draws
}

/// Whether no token can be left out or is reported beside the drawn one.
fn is_plain(choice: &Choice<'_>) -> bool {
    let truncation = Truncation::new(choice.params);
    choice.top == 0 && !truncation.truncates() && !adjust::adjusts(choice)
}

/// Draws rows without penalties or truncation with tensors.
fn draw_plain(logits_nv: &Tensor, plans: &[Plan]) -> Vec<Draw> {
    let (device, vocab) = (logits_nv.device(), logits_nv.size()[1]);
    let scaled = tempered(logits_nv, plans);
    let logprobs = scaled.log_softmax(-1, None).to_kind(Kind::Float);
    let probs = logprobs.exp();
    let uniforms: Vec<f64> = plans.iter().map(|plan| plan.uniform).collect();
    let uniforms = Tensor::from_slice(&uniforms).to_device(device).unsqueeze(1);
    let cumulative = probs.cumsum(-1, Kind::Double);
    let targets = uniforms * cumulative.narrow(1, vocab - 1, 1);
    // The first token whose cumulative sum is above the target has a probability above zero.
    let drawn = targets
        .searchsorted(&cumulative, false, true, "right", None::<&Tensor>)
        .clamp_max(vocab - 1);
    let greedy: Vec<bool> = plans.iter().map(|plan| plan.is_greedy).collect();
    let greedy = Tensor::from_slice(&greedy).to_device(device).unsqueeze(1);
    let tokens = scaled.argmax(-1, true).where_self(&greedy, &drawn);
    let picked = logprobs.gather(1, &tokens, false).squeeze_dim(1);
    let entropies =
        -(&probs * logprobs.clamp_min(f64::from(f32::MIN))).sum_dim_intlist(-1, false, Kind::Float);
    let values = Tensor::stack(&[picked, entropies], 0).to_device(Device::Cpu);
    let tokens = tokens.squeeze_dim(1).to_device(Device::Cpu);
    plans
        .iter()
        .enumerate()
        .map(|(row, plan)| {
            let row = row as i64;
            let logprob = values.double_value(&[0, row]) as f32;
            Draw {
                token: u32::try_from(tokens.int64_value(&[row])).expect("a token id fits 32 bits"),
                logprob,
                truncated_logprob: if plan.is_greedy { 0.0 } else { logprob },
                entropy: values.double_value(&[1, row]) as f32,
                top: Vec::new(),
            }
        })
        .collect()
}
