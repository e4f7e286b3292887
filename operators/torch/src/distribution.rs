//! The distribution over the vocabulary at some tokens: what a loss needs of it, and the gradient of the logits.
//!
//! Shapes: `n` tokens, `v` vocabulary.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use crate::fused::Fused;
use crate::parameters::wide_kind;

/// What a loss needs of each distribution, `[n]` each, in 32 bits at least.
#[derive(Debug)]
pub(crate) struct Distribution<'a> {
    /// Log-probability of the token.
    pub(crate) logprobs: Tensor,
    /// Entropy in nats.
    pub(crate) entropies: Tensor,
    tokens: Tensor,
    way: Way<'a>,
}

#[derive(Debug)]
enum Way<'a> {
    /// Log-probabilities of the whole vocabulary and their exponentials, `[n, v]`.
    Plain {
        log_shares: Tensor,
        shares: Tensor,
        kind: Kind,
    },
    /// Our kernels, the logits, and the log-sum-exp of each row.
    Fused {
        fused: &'a Fused,
        logits: Tensor,
        logsumexp: Tensor,
    },
}

/// Log-probabilities of tokens alone.
///
/// # Shapes
/// - `logits`: `[n, v]`; `tokens` and the result: `[n]`
///
/// # Errors
/// When a GPU refuses.
pub(crate) fn logprobs(
    logits: &Tensor,
    tokens: &Tensor,
    fused: Option<&Fused>,
) -> Result<Tensor, ModelError> {
    if let Some(fused) = fused {
        let [_, logprobs, _] = fused.distribution(logits, tokens)?;
        return Ok(logprobs);
    }
    let log_shares = logits
        .to_kind(wide_kind(logits.kind()))
        .log_softmax(-1, None);
    Ok(picked(&log_shares, tokens))
}

/// `[n, v]`, `[n]` -> `[n]`
fn picked(log_shares: &Tensor, tokens: &Tensor) -> Tensor {
    log_shares
        .gather(1, &tokens.unsqueeze(1), false)
        .squeeze_dim(1)
}

impl<'a> Distribution<'a> {
    /// # Shapes
    /// - `logits`: `[n, v]`, whose memory is used up; `tokens`: `[n]`
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn new(
        logits: Tensor,
        tokens: &Tensor,
        fused: Option<&'a Fused>,
    ) -> Result<Self, ModelError> {
        let tokens = tokens.shallow_clone();
        if let Some(fused) = fused {
            let [logsumexp, logprobs, entropies] = fused.distribution(&logits, &tokens)?;
            return Ok(Self {
                logprobs,
                entropies,
                tokens,
                way: Way::Fused {
                    fused,
                    logits,
                    logsumexp,
                },
            });
        }
        let kind = logits.kind();
        let log_shares = logits.to_kind(wide_kind(kind)).log_softmax(-1, None);
        drop(logits);
        let shares = log_shares.exp();
        Ok(Self {
            logprobs: picked(&log_shares, &tokens),
            entropies: (&shares * &log_shares)
                .sum_dim_intlist(-1_i64, false, None::<Kind>)
                .neg(),
            tokens,
            way: Way::Plain {
                log_shares,
                shares,
                kind,
            },
        })
    }

    /// The gradient of the logits, `[n, v]` in their type, for those of log-probabilities and, where there is one, of entropies.
    ///
    /// With `g` and `h` these and `H` the entropy: `g (1[j = token] - p_j) - h p_j (log p_j + H)`.
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn backward(
        self,
        of_logprobs: &Tensor,
        of_entropies: Option<&Tensor>,
    ) -> Result<Tensor, ModelError> {
        match self.way {
            Way::Fused {
                fused,
                logits,
                logsumexp,
            } => {
                let of_entropies =
                    of_entropies.map_or_else(|| of_logprobs.zeros_like(), Tensor::shallow_clone);
                fused.distribution_backward(
                    &logits,
                    &self.tokens,
                    [&logsumexp, &self.entropies],
                    [of_logprobs, &of_entropies],
                )?;
                Ok(logits)
            }
            Way::Plain {
                log_shares,
                mut shares,
                kind,
            } => {
                let column = |x: &Tensor| x.unsqueeze(1);
                let flow = match of_entropies {
                    Some(of_entropies) => {
                        let mut flow = log_shares;
                        flow += column(&self.entropies);
                        flow *= column(of_entropies);
                        flow += column(of_logprobs);
                        shares *= flow;
                        shares.neg_()
                    }
                    None => {
                        drop(log_shares);
                        shares *= column(&of_logprobs.neg());
                        shares
                    }
                };
                let mut flow = flow;
                Ok(flow
                    .scatter_add_(1, &column(&self.tokens), &column(of_logprobs))
                    .to_kind(kind))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_what_the_graph_gives() {
        let normal = |stream: u64, size: &[i64]| {
            let count = usize::try_from(size.iter().product::<i64>()).unwrap();
            let mut values = vec![0.0_f32; count];
            crate::philox::fill_normal(stream, 1.0, &mut values);
            Tensor::from_slice(&values).view(size).to_kind(Kind::Double)
        };
        let tokens = Tensor::from_slice(&[3_i64, 0, 6, 3]);
        let (g, h) = (normal(2, &[4]), normal(3, &[4]));
        let leaf = (normal(1, &[4, 7]) * 3.0).set_requires_grad(true);
        let log_shares = leaf.log_softmax(-1, None);
        let logprobs = log_shares
            .gather(1, &tokens.unsqueeze(1), false)
            .squeeze_dim(1);
        let entropies =
            -(log_shares.exp() * &log_shares).sum_dim_intlist(-1_i64, false, None::<Kind>);
        for of_entropies in [None, Some(&h)] {
            let mut value = (&logprobs * &g).sum(None::<Kind>);
            if let Some(h) = of_entropies {
                value += (&entropies * h).sum(None::<Kind>);
            }
            let graph = Tensor::run_backward(&[&value], &[&leaf], true, false).remove(0);
            let found = Distribution::new(leaf.detach(), &tokens, None).unwrap();
            let alone = super::logprobs(&leaf.detach(), &tokens, None).unwrap();
            assert_eq!(found.logprobs, alone);
            for (one, two) in [(&found.logprobs, &logprobs), (&found.entropies, &entropies)] {
                assert!((one - two).abs().max().double_value(&[]) < 1e-12);
            }
            let flow = found.backward(&g, of_entropies).unwrap();
            assert!((flow - graph).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
