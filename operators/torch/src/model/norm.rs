//! Root-mean-square norms in the backward pass: computed again, and their gradients.
//!
//! Shapes: `t` tokens, `d` values that a norm is over, `..` axes between them (heads).

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use crate::fused::Fused;

/// A norm that was computed again.
#[derive(Debug)]
pub(crate) struct Norm<'a> {
    /// `[t, .., d]`
    pub(crate) out: Tensor,
    way: Way<'a>,
}

#[derive(Debug)]
enum Way<'a> {
    /// Few operations: what was normalised, in 32 bits at least, what it was scaled by, `[t, .., 1]`, and the scale.
    Formula {
        normalised: Tensor,
        inverse: Tensor,
        scale: Tensor,
    },
    /// Our kernel, and what the norm was given.
    Fused {
        fused: &'a Fused,
        x: Tensor,
        scale: Tensor,
        eps: f64,
    },
}

impl<'a> Norm<'a> {
    /// `x / rms(x) * scale`; the scale is `[d]`, or has the axes between too where there are no kernels.
    pub(crate) fn again(x: &Tensor, scale: &Tensor, eps: f64, fused: Option<&'a Fused>) -> Self {
        match fused {
            Some(fused) => Self {
                out: forward(x, scale, eps),
                way: Way::Fused {
                    fused,
                    x: x.shallow_clone(),
                    scale: scale.detach(),
                    eps,
                },
            },
            None => Self::by_formula(x, scale, eps),
        }
    }

    fn by_formula(x: &Tensor, scale: &Tensor, eps: f64) -> Self {
        let kind = if x.kind() == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        };
        let wide = x.to_kind(kind);
        let inverse = (wide
            .square()
            .mean_dim(-1, true, None::<Kind>)
            .g_add_scalar_(eps))
        .rsqrt_();
        let normalised = wide * &inverse;
        let scale = scale.detach();
        let out = normalised.to_kind(x.kind()) * &scale;
        Self {
            out,
            way: Way::Formula {
                normalised,
                inverse,
                scale: scale.to_kind(kind),
            },
        }
    }

    /// Gradients of what was normalised, plus `residual`, and of the scale, in 32 bits at least.
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn backward(
        self,
        gradient: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor), ModelError> {
        match self.way {
            Way::Fused {
                fused,
                x,
                scale,
                eps,
            } => fused.norm_backward(&x, (&scale, eps), gradient, residual),
            Way::Formula {
                normalised,
                inverse,
                scale,
            } => {
                let kind = gradient.kind();
                let gradient = gradient.to_kind(normalised.kind());
                let product = &gradient * &normalised;
                let along = (&product * &scale).mean_dim(-1, true, None::<Kind>);
                let d_x = ((gradient * scale - normalised * along) * inverse).to_kind(kind);
                let d_x = match residual {
                    Some(residual) => d_x + residual,
                    None => d_x,
                };
                Ok((d_x, product.sum_dim_intlist(0, false, None::<Kind>)))
            }
        }
    }
}

/// The norm of the forward pass.
pub(crate) fn forward(x: &Tensor, scale: &Tensor, eps: f64) -> Tensor {
    if scale.dim() == 1 {
        x.rms_norm(scale.size(), Some(scale), eps)
    } else {
        let width = *scale.size().last().expect("a scale has an axis");
        x.rms_norm([width], None::<&Tensor>, eps) * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_is_what_the_graph_gives() {
        for (size, scale) in [(vec![7, 12], vec![12]), (vec![5, 3, 8], vec![3, 8])] {
            let normal = |stream: u64, size: &[i64]| {
                let count = usize::try_from(size.iter().product::<i64>()).unwrap();
                let mut values = vec![0.0_f32; count];
                crate::philox::fill_normal(stream, 1.0, &mut values);
                Tensor::from_slice(&values).view(size).to_kind(Kind::Double)
            };
            let leaf = |x: Tensor| x.set_requires_grad(true);
            let (x, scale) = (leaf(normal(1, &size)), leaf(normal(3, &scale)));
            let (gradient, residual) = (normal(2, &size), normal(4, &size));
            let out = forward(&x, &scale, 1e-6);
            let value = (&out * &gradient).sum(None::<Kind>) + (&x * &residual).sum(None::<Kind>);
            let graph = Tensor::run_backward(&[&value], &[&x, &scale], false, false);
            let norm = Norm::again(&x.detach(), &scale, 1e-6, None);
            let again = norm.out.copy();
            let (d_x, d_scale) = norm.backward(&gradient, Some(&residual)).unwrap();
            for (one, two) in [(&again, &out), (&d_x, &graph[0]), (&d_scale, &graph[1])] {
                assert!((one - two).abs().max().double_value(&[]) < 1e-12);
            }
        }
    }
}
