//! The output head in training and scoring: never the full logits.
//!
//! It is the widest layer by far, so it runs in chunks of tokens.
//!
//! Shapes: `n` completion tokens, `w` model width, `v` vocabulary.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, LossReport};
use tch::{Device, Kind, Tensor};

use crate::distribution::{self, Distribution};
use crate::fused::Fused;
use crate::loss::{self, Tally, TokenTargets, weighted_loss};
use crate::model::language::Language;
use crate::sink::Sink;
use crate::wide;

/// Logits that are held at a time: some threads of a CPU have as many each.
const CPU_LOGITS: i64 = 1 << 24;
const GPU_LOGITS: i64 = 1 << 28;

/// Rows that go through the head together on a GPU at least: fewer leave it idle.
const GPU_ROWS: i64 = 512;

/// The head and how it is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) language: &'a Language,
    pub(crate) fused: Option<&'a Fused>,
}

/// Rows that go through the head together.
pub(crate) fn chunk_rows(vocab: i64, device: Device) -> i64 {
    if device.is_cuda() {
        (GPU_LOGITS / vocab).max(GPU_ROWS)
    } else {
        (CPU_LOGITS / vocab).max(1)
    }
}

impl Head<'_> {
    /// Loss of completion tokens, and the gradient of what goes into the head, `[n, w]`; that of the head goes to `sink`. `meanwhile` is
    /// called before the loss is waited for.
    ///
    /// # Shapes
    /// - `hidden_nw`: `[n, w]`, one row for each completion token, with or without loss
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] when the loss is not finite; what is in `sink` is then spoilt.
    pub(crate) fn learn(
        &self,
        hidden_nw: Tensor,
        targets: &TokenTargets,
        loss: Loss,
        sink: &mut Sink<'_>,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(LossReport, Tensor), ModelError> {
        let hidden_nw = targets.rows(hidden_nw);
        let measured = if loss::is_of_sequences(loss) {
            let logprobs = self.token_logprobs(&hidden_nw, targets.tokens())?;
            Some(targets.with_sequence_ratios(&Tensor::cat(&logprobs, 0)))
        } else {
            None
        };
        let of_tokens = measured.as_ref().unwrap_or(targets);
        let (mut tallies, mut gradients) = (Vec::new(), Vec::new());
        for (start, length) in self.chunks(&hidden_nw) {
            let states = hidden_nw.narrow(0, start, length);
            let targets = of_tokens.narrow(start, length);
            let distribution =
                Distribution::new(self.logits(&states), targets.tokens(), self.fused)?;
            let (tally, [of_logprobs, of_entropies]) =
                token_gradients(&distribution, &targets, loss);
            tallies.push(tally);
            let flow = distribution.backward(
                &of_logprobs.expect("every loss has log-probabilities"),
                of_entropies.as_ref(),
            )?;
            gradients.push(flow.mm(&self.language.head));
            sink.product(&self.language.head, None, &states, &flow);
        }
        meanwhile();
        let report = Tally::report(&tallies, usize::try_from(hidden_nw.size()[0]).unwrap_or(0));
        if !report.loss.is_finite() {
            return Err(ModelError::NonFinite(format!(
                "loss {} over {} completion tokens",
                report.loss, report.tokens
            )));
        }
        Ok((report, targets.spread(Tensor::cat(&gradients, 0))))
    }

    /// Log-probability of each token, without gradients.
    ///
    /// # Shapes
    /// - `hidden_nw`: `[n, w]`; `tokens_n`: `[n]`
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] for one that is not finite.
    pub(crate) fn logprobs(
        &self,
        hidden_nw: &Tensor,
        tokens_n: &Tensor,
    ) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        for picked in self.token_logprobs(hidden_nw, tokens_n)? {
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
    fn token_logprobs(
        &self,
        hidden_nw: &Tensor,
        tokens_n: &Tensor,
    ) -> Result<Vec<Tensor>, ModelError> {
        self.chunks(hidden_nw)
            .map(|(start, length)| {
                let states = hidden_nw.narrow(0, start, length);
                let tokens = tokens_n.narrow(0, start, length);
                distribution::logprobs(&self.logits(&states), &tokens, self.fused)
            })
            .collect()
    }

    fn logits(&self, states: &Tensor) -> Tensor {
        wide::linear(states, &self.language.head, None)
    }

    /// First row and number of rows of each chunk.
    fn chunks(&self, rows: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
        let (count, chunk) = (
            rows.size()[0],
            chunk_rows(self.language.config.vocab, rows.device()),
        );
        (0..(count + chunk - 1) / chunk)
            .map(move |index| (index * chunk, chunk.min(count - index * chunk)))
    }
}

/// The gradients of the loss by log-probabilities and by entropies, if it has any, `[n]` each.
fn token_gradients(
    distribution: &Distribution<'_>,
    targets: &TokenTargets,
    loss: Loss,
) -> (Tally, [Option<Tensor>; 2]) {
    tch::with_grad(|| {
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let logprobs = leaf(&distribution.logprobs);
        let entropies = leaf(&distribution.entropies);
        let (value, tally) = weighted_loss(&logprobs, &entropies, targets, loss);
        let mut inputs = vec![&logprobs];
        if loss::has_entropy(loss) {
            inputs.push(&entropies);
        }
        let mut parts = Tensor::run_backward(&[&value], &inputs, false, false).into_iter();
        (tally, [parts.next(), parts.next()])
    })
}
