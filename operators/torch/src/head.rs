//! The output head in training and scoring: never the full logits.
//!
//! It is the widest layer by far, so it runs in chunks of tokens.
//!
//! Shapes: `n` completion tokens, `w` model width, `v` vocabulary.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, LossReport};
use tch::{Kind, Tensor};

use crate::loss::{self, Tally, TokenTargets, weighted_loss};
use crate::model::language::Language;

/// Logits that are held at a time.
const LOGIT_CHUNK: i64 = 1 << 24;

/// What the head gives for the hidden states of some completion tokens.
#[derive(Debug)]
pub(crate) struct HeadPass {
    /// Sums over the tokens.
    pub(crate) report: LossReport,
    /// Gradient of the hidden states, `[n, w]`.
    pub(crate) hidden: Tensor,
    /// Gradient of the head, `[v, w]`; None where it is frozen.
    pub(crate) head: Option<Tensor>,
}

/// Loss of completion tokens, and its gradients by what goes into the head.
///
/// # Shapes
/// - `hidden_nw`: `[n, w]`, one row for each completion token, with or without loss; its graph is not followed
pub(crate) fn loss_and_gradients(
    language: &Language,
    hidden_nw: &Tensor,
    targets: &TokenTargets,
    loss: Loss,
) -> HeadPass {
    let head = &language.head;
    let hidden_nw = targets.rows(hidden_nw.detach());
    let (count, chunk) = (hidden_nw.size()[0], chunk_rows(language.config.vocab));
    let measured = loss::is_of_sequences(loss).then(|| {
        let logprobs = tch::no_grad(|| token_logprobs(language, &hidden_nw, targets.tokens()));
        targets.with_sequence_ratios(&Tensor::cat(&logprobs, 0))
    });
    let of_tokens = measured.as_ref().unwrap_or(targets);
    let mut tallies = Vec::new();
    let mut hidden_gradients = Vec::new();
    let mut head_gradient: Option<Tensor> = None;
    let mut start = 0;
    while start < count {
        let length = chunk.min(count - start);
        let states = hidden_nw.narrow(0, start, length).set_requires_grad(true);
        let distribution = log_distribution(language, &states);
        let (value, tally) = weighted_loss(&distribution, &of_tokens.narrow(start, length), loss);
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
    HeadPass {
        report: Tally::report(&tallies, usize::try_from(count).unwrap_or(0)),
        hidden: targets.spread(Tensor::cat(&hidden_gradients, 0)),
        head: head_gradient,
    }
}

/// Log-probability of each token, without gradients.
///
/// # Shapes
/// - `hidden_nw`: `[n, w]`; `tokens_n`: `[n]`
///
/// # Errors
/// [`ModelError::NonFinite`] for one that is not finite.
pub(crate) fn logprobs(
    language: &Language,
    hidden_nw: &Tensor,
    tokens_n: &Tensor,
) -> Result<Vec<f32>, ModelError> {
    let mut values = Vec::new();
    for picked in token_logprobs(language, hidden_nw, tokens_n) {
        values.extend(
            Vec::<f32>::try_from(picked.to_kind(Kind::Float))
                .map_err(|error| ModelError::Backend(error.to_string()))?,
        );
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(token) => Err(ModelError::NonFinite(format!(
            "log-probability of completion token {token} of a batch"
        ))),
        None => Ok(values),
    }
}

/// Log-probabilities of tokens, chunk by chunk.
fn token_logprobs(language: &Language, hidden_nw: &Tensor, tokens_n: &Tensor) -> Vec<Tensor> {
    let (count, chunk) = (hidden_nw.size()[0], chunk_rows(language.config.vocab));
    let mut picked = Vec::new();
    let mut start = 0;
    while start < count {
        let length = chunk.min(count - start);
        let distribution = log_distribution(language, &hidden_nw.narrow(0, start, length));
        let tokens = tokens_n.narrow(0, start, length).unsqueeze(1);
        picked.push(distribution.gather(1, &tokens, false).squeeze_dim(1));
        start += length;
    }
    picked
}

/// Rows that go through the head together.
pub(crate) fn chunk_rows(vocab: i64) -> i64 {
    (LOGIT_CHUNK / vocab).max(1)
}

/// Log-probabilities of the whole vocabulary, `[n, v]`, in 32 bits.
fn log_distribution(language: &Language, hidden_nw: &Tensor) -> Tensor {
    language.logits(hidden_nw).log_softmax(-1, None)
}
