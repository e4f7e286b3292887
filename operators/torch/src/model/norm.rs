//! Root-mean-square norms in the backward pass: computed again, and their gradients.
//!
//! Shapes: `t` tokens, `d` values that a norm is over, `..` axes between them (heads).

use tch::{Kind, Tensor};

/// A norm that was computed again.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[t, .., d]`
    pub(crate) out: Tensor,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Few operations for a CPU: what was normalised, in 32 bits at least, what it was scaled by, `[t, .., 1]`, and the scale.
    Formula {
        normalised: Tensor,
        inverse: Tensor,
        scale: Tensor,
    },
    /// The fused kernels of a GPU: the graph's inputs.
    Graph { x: Tensor, scale: Tensor },
}

impl Norm {
    /// `x / rms(x) * scale`; the scale is `[d]` or has the axes between too.
    pub(crate) fn again(x: &Tensor, scale: &Tensor, eps: f64) -> Self {
        if x.device().is_cuda() {
            Self::by_graph(x, scale, eps)
        } else {
            Self::by_formula(x, scale, eps)
        }
    }

    fn by_graph(x: &Tensor, scale: &Tensor, eps: f64) -> Self {
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let (x, scale) = (leaf(x), leaf(scale));
        let out = tch::with_grad(|| forward(&x, &scale, eps));
        Self {
            out: out.shallow_clone(),
            way: Way::Graph { x, scale },
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

    /// Gradients of what was normalised and of the scale, in 32 bits at least on the CPU.
    pub(crate) fn backward(self, gradient: &Tensor) -> (Tensor, Tensor) {
        match self.way {
            Way::Graph { x, scale } => {
                let carrier = tch::with_grad(|| (self.out * gradient).sum(None::<Kind>));
                let mut parts =
                    Tensor::run_backward(&[carrier], &[&x, &scale], false, false).into_iter();
                let mut part = || parts.next().expect("a gradient for each input");
                (part(), part())
            }
            Way::Formula {
                normalised,
                inverse,
                scale,
            } => {
                let kind = gradient.kind();
                let gradient = gradient.to_kind(normalised.kind());
                let product = &gradient * &normalised;
                let along = (&product * &scale).mean_dim(-1, true, None::<Kind>);
                let d_x = (gradient * scale - normalised * along) * inverse;
                (
                    d_x.to_kind(kind),
                    product.sum_dim_intlist(0, false, None::<Kind>),
                )
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
    fn the_formula_and_the_graph_agree() {
        for (size, scale) in [(vec![7, 12], vec![12]), (vec![5, 3, 8], vec![3, 8])] {
            let normal = |stream: u64, size: &[i64]| {
                let count = usize::try_from(size.iter().product::<i64>()).unwrap();
                let mut values = vec![0.0_f32; count];
                crate::philox::fill_normal(stream, 1.0, &mut values);
                Tensor::from_slice(&values).view(size).to_kind(Kind::Double)
            };
            let (x, gradient, scale) = (normal(1, &size), normal(2, &size), normal(3, &scale));
            let all = |norm: Norm| {
                let out = norm.out.detach();
                let (one, two) = norm.backward(&gradient);
                [out, one, two]
            };
            let formula = all(Norm::by_formula(&x, &scale, 1e-6));
            for (one, two) in formula.iter().zip(all(Norm::by_graph(&x, &scale, 1e-6))) {
                assert!((one - two).abs().max().double_value(&[]) < 1e-12);
            }
        }
    }
}
