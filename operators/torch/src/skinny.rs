//! Products of a few tokens with a large weight on x86-64: the weight is read once, straight from memory. A general product packs it
//! first, which for few tokens takes longer than the product.
//!
//! Shapes: `t` tokens, `w` inputs, `n` outputs.

use tch::{Kind, Tensor};

/// Tokens above which a general product is as fast.
const TOKENS: i64 = 48;

/// Whether [`product_into`] can take these.
pub(crate) fn fits(x_tw: &Tensor, weight_nw: &Tensor) -> bool {
    is_supported()
        && x_tw.size()[0] <= TOKENS
        && x_tw.kind() == Kind::Float
        && weight_nw.kind() == Kind::Float
        && weight_nw.is_contiguous()
}

#[cfg(target_arch = "x86_64")]
fn is_supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_supported() -> bool {
    false
}

/// `out = x * weight^T`, or plus `add`, which has one row or as many as `x`. All are 32-bit floats on the CPU.
///
/// # Shapes
/// - `x_tw`: `[t, w]`; `weight_nw`: `[n, w]`; `add`: `[n]` or `[t, n]`; `out_tn`: `[t, n]`; the last axes without gaps
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "the memory of tensors is reached by address, and the processor's instructions are chosen at run time"
)]
pub(crate) fn product_into(
    out_tn: &Tensor,
    x_tw: &Tensor,
    weight_nw: &Tensor,
    add: Option<&Tensor>,
) {
    let x = x_tw.contiguous();
    let length = |value: i64| usize::try_from(value).expect("sizes are positive");
    let [tokens, width] = [0, 1].map(|axis| length(x.size()[axis]));
    let outputs = length(weight_nw.size()[0]);
    let out_stride = length(out_tn.stride()[0]);
    let add = add.map(|add| {
        let stride = if add.dim() == 1 {
            0
        } else {
            length(add.stride()[0])
        };
        (add.data_ptr().cast::<f32>().cast_const(), stride)
    });
    let out = out_tn.data_ptr().cast::<f32>();
    // SAFETY: `x` and `weight` are contiguous floats of these sizes, and both live until the end of this function.
    let (x, weight) = unsafe {
        (
            std::slice::from_raw_parts(x.data_ptr().cast::<f32>().cast_const(), tokens * width),
            std::slice::from_raw_parts(
                weight_nw.data_ptr().cast::<f32>().cast_const(),
                outputs * width,
            ),
        )
    };
    let mut put = |output: usize, token: usize, value: f32| {
        let more = match add {
            // SAFETY: `add` has an element for every output of every token.
            Some((add, stride)) => unsafe { *add.add(token * stride + output) },
            None => 0.0,
        };
        // SAFETY: `out` has a place for every output of every token, which nobody else writes or reads meanwhile.
        unsafe { *out.add(token * out_stride + output) = value + more };
    };
    // SAFETY: `fits` has found that the processor has these instructions.
    unsafe { avx2::product(x, weight, width, &mut put) };
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn product_into(_: &Tensor, _: &Tensor, _: &Tensor, _: Option<&Tensor>) {
    unreachable!("`fits` is never true here")
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// Floats of a register.
    const LANES: usize = 8;
    /// Rows of the weight and tokens whose products are summed side by side: with what they read, they fill the registers.
    const OUTPUTS: usize = 4;
    const TOKENS: usize = 3;

    /// Gives the product of each row of `weight` with each row of `x` to `put`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn product(
        x: &[f32],
        weight: &[f32],
        width: usize,
        put: &mut impl FnMut(usize, usize, f32),
    ) {
        let rows: Vec<&[f32]> = x.chunks_exact(width).collect();
        let (groups, rest) = rows.as_chunks::<TOKENS>();
        let done = groups.len() * TOKENS;
        for (group, weight) in weight.chunks(width * OUTPUTS).enumerate() {
            let output = group * OUTPUTS;
            let outputs: Vec<&[f32]> = weight.chunks_exact(width).collect();
            let Ok(four) = <[&[f32]; OUTPUTS]>::try_from(outputs.as_slice()) else {
                for (place, weight) in outputs.into_iter().enumerate() {
                    for (token, row) in rows.iter().enumerate() {
                        let [[value]] = dots([weight], [*row]);
                        put(output + place, token, value);
                    }
                }
                continue;
            };
            let mut put_all = |token: usize, values: &[[f32; OUTPUTS]]| {
                for (row, values) in values.iter().enumerate() {
                    for (place, value) in values.iter().enumerate() {
                        put(output + place, token + row, *value);
                    }
                }
            };
            for (place, group) in groups.iter().enumerate() {
                put_all(place * TOKENS, &dots(four, *group));
            }
            match rest {
                [] => (),
                [one] => put_all(done, &dots(four, [*one])),
                [one, two, ..] => put_all(done, &dots(four, [*one, *two])),
            }
        }
    }

    /// Dot products of `J` rows of the weight with `R` tokens. The order of the additions is the same for all `J` and `R`.
    #[expect(unsafe_code, reason = "loads of a register's length go by address")]
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn dots<const J: usize, const R: usize>(weight: [&[f32]; J], x: [&[f32]; R]) -> [[f32; J]; R] {
        let width = x[0].len();
        let whole = width / LANES * LANES;
        // SAFETY: `place + LANES` is not above the length of the row.
        let load = |row: &[f32], place: usize| -> __m256 {
            unsafe { _mm256_loadu_ps(row.as_ptr().add(place)) }
        };
        let mut sums = [[_mm256_setzero_ps(); J]; R];
        let mut place = 0;
        while place < whole {
            let mut x_lanes = [_mm256_setzero_ps(); R];
            for row in 0..R {
                x_lanes[row] = load(x[row], place);
            }
            for output in 0..J {
                let weight_lanes = load(weight[output], place);
                for row in 0..R {
                    sums[row][output] =
                        _mm256_fmadd_ps(x_lanes[row], weight_lanes, sums[row][output]);
                }
            }
            place += LANES;
        }
        let mut values = [[0.0; J]; R];
        for row in 0..R {
            for output in 0..J {
                let mut lanes = [0.0_f32; LANES];
                // SAFETY: there is room for a register.
                unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[row][output]) };
                let rest = x[row][whole..].iter().zip(&weight[output][whole..]);
                values[row][output] =
                    lanes.iter().sum::<f32>() + rest.map(|(left, right)| left * right).sum::<f32>();
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(stream: u64, size: [i64; 2]) -> Tensor {
        let mut values = vec![0.0_f32; usize::try_from(size[0] * size[1]).unwrap()];
        crate::philox::fill_normal(stream, 1.0, &mut values);
        Tensor::from_slice(&values).view(size)
    }

    #[test]
    fn products_are_those_in_64_bits() {
        if !is_supported() {
            return;
        }
        for (tokens, width, outputs) in [
            (1, 576, 64),
            (2, 37, 13),
            (3, 8, 4),
            (16, 130, 30),
            (48, 64, 7),
        ] {
            let (x, weight) = (normal(1, [tokens, width]), normal(2, [outputs, width]));
            let sum = normal(3, [tokens, outputs + 5]).narrow(1, 2, outputs);
            let exact = x
                .to_kind(Kind::Double)
                .mm(&weight.to_kind(Kind::Double).tr());
            let wide = Tensor::zeros([tokens, outputs + 3], (Kind::Float, x.device()));
            let out = wide.narrow(1, 1, outputs);
            let gap = |expected: &Tensor| (&out - expected).abs().max().double_value(&[]);
            assert!(fits(&x, &weight));
            product_into(&out, &x, &weight, None);
            assert!(gap(&exact) < 1e-4);
            product_into(&out, &x, &weight, Some(&sum));
            assert!(gap(&(&exact + &sum)) < 1e-4);
            product_into(&out, &x, &weight, Some(&sum.get(0).contiguous()));
            assert!(gap(&(&exact + sum.get(0))) < 1e-4);
            // Nothing beside it is written.
            assert_eq!(wide.get(0).double_value(&[0]), 0.0);
            // What a token gets does not depend on the others.
            let alone = Tensor::zeros([1, outputs], (Kind::Float, x.device()));
            product_into(&out, &x, &weight, None);
            product_into(&alone, &x.narrow(0, tokens - 1, 1), &weight, None);
            assert!(alone.get(0).equal(&out.get(tokens - 1)));
        }
    }
}
