//! Attention of one piece with its backward pass: libtorch's on the CPU, plain operations elsewhere.
//!
//! Shapes: `b` sequences, `h` heads, `l` queries, `s` keys, `d` head width.

use tch::{Device, Kind, Tensor};

/// Queries whose products with the keys are held at a time by the plain operations.
const ROWS: i64 = 512;

/// How a piece is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// The kernel of libtorch for the CPU, which holds a block of products at a time.
    Cpu,
    /// Products and sums, for any device.
    Plain,
}

impl Kernel {
    pub(super) fn for_device(device: Device) -> Self {
        if device == Device::Cpu {
            Self::Cpu
        } else {
            Self::Plain
        }
    }

    /// The output `[b, h, l, d]` and the log-sum-exp of each query, `[b, h, l]`. With `causal` there are as many keys as queries.
    ///
    /// # Shapes
    /// - `queries`: `[b, h, l, d]`; `keys`, `values`: `[b, h, s, d]`
    pub(super) fn forward(
        self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        causal: bool,
    ) -> (Tensor, Tensor) {
        match self {
            Self::Cpu => Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
                queries,
                keys,
                values,
                0.0,
                causal,
                None::<&Tensor>,
                None::<f64>,
            ),
            Self::Plain => {
                let (mut outs, mut sums) = (Vec::new(), Vec::new());
                for (start, length) in chunks(queries) {
                    let scores = scores(queries, keys, start, length, causal);
                    let sum = scores.logsumexp(-1, true);
                    let shares = (scores - &sum).exp().to_kind(values.kind());
                    let seen = shares.size()[3];
                    outs.push(shares.matmul(&values.narrow(2, 0, seen)));
                    sums.push(sum.squeeze_dim(-1));
                }
                (Tensor::cat(&outs, 2), Tensor::cat(&sums, 2))
            }
        }
    }

    /// Gradients of queries, keys and values. `out` and `logsumexp` may be those of an attention to more keys than these.
    ///
    /// # Shapes
    /// - as in [`Kernel::forward`]; `gradient`, `out`: `[b, h, l, d]`; `logsumexp`: `[b, h, l]`
    #[expect(
        clippy::too_many_arguments,
        reason = "the tensors of one attention and the gradient of its output"
    )]
    pub(super) fn backward(
        self,
        gradient: &Tensor,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        out: &Tensor,
        logsumexp: &Tensor,
        causal: bool,
    ) -> [Tensor; 3] {
        match self {
            Self::Cpu => Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                gradient,
                queries,
                keys,
                values,
                out,
                logsumexp,
                0.0,
                causal,
                None::<&Tensor>,
                None::<f64>,
            )
            .into(),
            Self::Plain => {
                let width = queries.size()[3] as f64;
                let (mut d_queries, d_keys, d_values) = (
                    Vec::new(),
                    Tensor::zeros(keys.size(), (keys.kind(), keys.device())),
                    Tensor::zeros(values.size(), (values.kind(), values.device())),
                );
                for (start, length) in chunks(queries) {
                    let part = |x: &Tensor| x.narrow(2, start, length);
                    let gradient = part(gradient);
                    let scores = scores(queries, keys, start, length, causal);
                    let shares = (scores - part(logsumexp).unsqueeze(-1)).exp();
                    let seen = shares.size()[3];
                    let (keys, values) = (keys.narrow(2, 0, seen), values.narrow(2, 0, seen));
                    let row = (&gradient * part(out)).sum_dim_intlist(-1, true, shares.kind());
                    let d_shares = gradient.matmul(&values.transpose(2, 3));
                    let d_scores = ((d_shares - row) * &shares / width.sqrt()).to_kind(keys.kind());
                    let shares = shares.to_kind(values.kind());
                    d_queries.push(d_scores.matmul(&keys));
                    let add = |sum: &Tensor, part: Tensor| {
                        drop(sum.narrow(2, 0, seen).g_add_(&part));
                    };
                    add(&d_keys, d_scores.transpose(2, 3).matmul(&part(queries)));
                    add(&d_values, shares.transpose(2, 3).matmul(&gradient));
                }
                [Tensor::cat(&d_queries, 2), d_keys, d_values]
            }
        }
    }
}

/// First query and number of queries of each chunk.
fn chunks(queries: &Tensor) -> impl Iterator<Item = (i64, i64)> {
    let count = queries.size()[2];
    (0..(count + ROWS - 1) / ROWS).map(move |chunk| (chunk * ROWS, ROWS.min(count - chunk * ROWS)))
}

/// Scaled products of some queries with the keys that they may see, in 32 bits at least.
fn scores(queries: &Tensor, keys: &Tensor, start: i64, length: i64, causal: bool) -> Tensor {
    let seen = if causal {
        start + length
    } else {
        keys.size()[2]
    };
    let width = queries.size()[3] as f64;
    let products = queries
        .narrow(2, start, length)
        .matmul(&keys.narrow(2, 0, seen).transpose(2, 3));
    let kind = if products.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let scores = products.to_kind(kind) / width.sqrt();
    if !causal {
        return scores;
    }
    let options = (Kind::Int64, queries.device());
    let hidden = Tensor::arange(seen, options)
        .unsqueeze(0)
        .greater_tensor(&(Tensor::arange(length, options) + start).unsqueeze(1));
    scores.masked_fill(&hidden, f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_operations_and_the_cpu_kernel_agree() {
        tch::set_num_threads(1);
        for (keys, causal) in [(700, true), (37, false)] {
            let normal = |stream: u64, length: i64| {
                let mut values = vec![0.0_f32; usize::try_from(2 * 3 * length * 8).unwrap()];
                crate::philox::fill_normal(stream, 1.0, &mut values);
                Tensor::from_slice(&values)
                    .view([2, 3, length, 8])
                    .to_kind(Kind::Double)
            };
            let (queries, gradient) = (normal(1, 700), normal(2, 700));
            let (keys, values) = (normal(3, keys), normal(4, keys));
            let run = |kernel: Kernel| {
                let (out, sums) = kernel.forward(&queries, &keys, &values, causal);
                let [one, two, three] =
                    kernel.backward(&gradient, &queries, &keys, &values, &out, &sums, causal);
                [out, sums, one, two, three]
            };
            for (cpu, plain) in run(Kernel::Cpu).iter().zip(run(Kernel::Plain)) {
                let gap = (cpu - plain).abs().max().double_value(&[]);
                assert!(gap < 1e-10, "{causal}: {gap}");
            }
        }
    }
}
