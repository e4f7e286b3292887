//! Draws the next token of each row.
//!
//! Shapes: `n` rows, `v` vocabulary.

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

/// Tokens of all rows and their log-probabilities.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Draws {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
}

/// Draws one token for each row by inverting the cumulative distribution at the row's own uniform number.
///
/// What a row gets depends on its logits and its number only. At temperature 0 it is the most likely token, with
/// its log-probability at temperature 1.
///
/// # Shapes
/// - `logits_nv`: `[n, v]`; `uniforms`: one for each row, in `[0, 1)`
///
/// # Types and device
/// Log-probabilities in 32 bits; their cumulative sum in 64, so that no token of a large vocabulary is rounded away.
///
/// # Errors
/// [`ModelError::NonFinite`] when a log-probability is not finite.
pub(crate) fn draw(
    logits_nv: &Tensor,
    temperature: f64,
    uniforms: &[f64],
) -> Result<Draws, ModelError> {
    let device = logits_nv.device();
    let vocab = logits_nv.size()[1];
    let greedy = temperature <= 0.0;
    let scaled = if greedy {
        logits_nv.shallow_clone()
    } else {
        logits_nv / temperature
    };
    let logprobs = scaled.log_softmax(-1, None).to_kind(Kind::Float);
    let tokens = if greedy {
        logprobs.argmax(-1, true)
    } else {
        let cumulative = logprobs.exp().cumsum(-1, Kind::Double);
        let uniforms = Tensor::from_slice(uniforms).to_device(device).unsqueeze(1);
        let targets = uniforms * cumulative.narrow(1, vocab - 1, 1);
        // The first token whose cumulative sum is above the target has a probability above zero.
        targets
            .searchsorted(&cumulative, false, true, "right", None::<&Tensor>)
            .clamp_max(vocab - 1)
    };
    let picked = logprobs
        .gather(1, &tokens, false)
        .squeeze_dim(1)
        .to_device(Device::Cpu);
    let count = uniforms.len();
    let mut ids = vec![0_i64; count];
    tokens
        .squeeze_dim(1)
        .to_device(Device::Cpu)
        .copy_data(&mut ids, count);
    let mut values = vec![0.0_f32; count];
    picked.copy_data(&mut values, count);
    if let Some(row) = values.iter().position(|value| !value.is_finite()) {
        return Err(ModelError::NonFinite(format!(
            "logits of row {row} of a batch while sampling"
        )));
    }
    let tokens = ids
        .into_iter()
        .map(|id| u32::try_from(id).expect("a token id fits 32 bits"))
        .collect();
    Ok(Draws {
        tokens,
        logprobs: values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_inverts_the_distribution_and_skips_impossible_tokens() {
        let row: [f32; 4] = [
            f32::NEG_INFINITY,
            0.25_f32.ln(),
            f32::NEG_INFINITY,
            0.75_f32.ln(),
        ];
        let logits = Tensor::from_slice(&row).view([1, 4]).repeat([4, 1]);
        let draws = draw(&logits, 1.0, &[0.0, 0.2499, 0.2501, 1.0 - 1e-14]).unwrap();
        assert_eq!(draws.tokens, [1, 1, 3, 3]);
        assert!((draws.logprobs[0] - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(draw(&logits, 0.0, &[0.0; 4]).unwrap().tokens, [3; 4]);
    }

    #[test]
    fn temperature_sharpens_and_is_in_the_logprob() {
        let logits = Tensor::from_slice(&[1.0_f32, 2.0]).view([1, 2]);
        let cold = draw(&logits, 0.5, &[0.999]).unwrap();
        assert_eq!(cold.tokens, [1]);
        assert!((cold.logprobs[0] - -(1.0 + (-2.0_f32).exp()).ln()).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let logits = Tensor::from_slice(&[f32::NAN, 0.0]).view([1, 2]);
        assert!(matches!(
            draw(&logits, 1.0, &[0.5]),
            Err(ModelError::NonFinite(_))
        ));
    }
}
