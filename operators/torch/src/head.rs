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
/// The same in training where the gradient takes the place of the logits: each chunk's product is added to the gradient of the whole
/// head, which is as much to read and write for few rows as for many.
const GPU_LEARNT_LOGITS: i64 = 1 << 29;

/// Rows that go through the head together on a GPU at least: fewer leave it idle.
const GPU_ROWS: i64 = 512;
/// Rows of a chunk on a GPU are a multiple of this, but for the last: products of odd sizes are slower.
const GPU_STEP: i64 = 128;

/// The head and how it is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) language: &'a Language,
    pub(crate) fused: Option<&'a Fused>,
}

/// What the head is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Scoring,
    Learning,
}

/// Rows that go through the head together in training at most; `has_kernels` as in `fused/`.
pub(crate) fn chunk_rows(vocab: i64, device: Device, has_kernels: bool) -> i64 {
    most_rows(Use::Learning, vocab, device, has_kernels)
}

fn most_rows(what: Use, vocab: i64, device: Device, has_kernels: bool) -> i64 {
    if !device.is_cuda() {
        return (CPU_LOGITS / vocab).max(1);
    }
    let logits = if has_kernels && what == Use::Learning {
        GPU_LEARNT_LOGITS
    } else {
        GPU_LOGITS
    };
    (logits / vocab / GPU_STEP * GPU_STEP).max(GPU_ROWS)
}

/// Rows of each chunk of `count` rows, none with more than `most`. On the CPU all but the last have as many; on a GPU they are as equal
/// as multiples of `GPU_STEP` can be, the largest first, so that memory of a chunk serves those after it.
fn shares(count: i64, most: i64, device: Device) -> Vec<i64> {
    let chunks = (count + most - 1) / most;
    let full = |index: i64| {
        if !device.is_cuda() {
            return most;
        }
        let steps = (count + GPU_STEP - 1) / GPU_STEP;
        (steps / chunks + i64::from(index < steps % chunks)) * GPU_STEP
    };
    let mut left = count;
    (0..chunks)
        .map(|index| {
            let rows = full(index).min(left);
            left -= rows;
            rows
        })
        .collect()
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
        for (start, length) in self.chunks(&hidden_nw, Use::Learning) {
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
        self.chunks(hidden_nw, Use::Scoring)
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
    fn chunks(&self, rows: &Tensor, what: Use) -> impl Iterator<Item = (i64, i64)> + use<> {
        let (device, vocab) = (rows.device(), self.language.config.vocab);
        let most = most_rows(what, vocab, device, self.fused.is_some());
        let mut next = 0;
        shares(rows.size()[0], most, device)
            .into_iter()
            .map(move |length| {
                let start = next;
                next += length;
                (start, length)
            })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_a_gpu_are_about_equal_and_have_all_rows() {
        let gpu = Device::Cuda(0);
        let most = chunk_rows(151_936, gpu, true);
        assert_eq!([most, chunk_rows(151_936, gpu, false)], [3456, 1664]);
        assert_eq!(
            shares(16_098, most, gpu),
            [26 * 128, 25 * 128, 25 * 128, 25 * 128, 16_098 - 101 * 128]
        );
        for count in [0, 1, 127, 128, 3456, 3457, 3500, 6912, 6913, 50_001] {
            let shares = shares(count, most, gpu);
            assert_eq!(shares.iter().sum::<i64>(), count);
            assert_eq!(shares.len() as i64, (count + most - 1) / most);
            assert!(shares.iter().all(|rows| (1..=most).contains(rows)));
            assert!(shares.is_sorted_by(|one, two| one >= two), "{shares:?}");
        }
        assert_eq!(shares(1000, 512, Device::Cpu), [512, 488]);
        assert_eq!(chunk_rows(1 << 30, gpu, true), GPU_ROWS);
    }
}
