//! Matrix products with large weights, cut along the outputs for a team of threads.
//!
//! Where there is no team (in training), and for small weights, they are plain products. The cuts depend on the weight's shape
//! alone.
//!
//! Shapes: `t` tokens, `w` inputs, `n` outputs.

use tch::Tensor;

use crate::skinny;
use crate::team::{self, Job};

/// Elements of the smallest weight that is cut.
const WIDE: usize = 1 << 18;
/// Elements of a piece: much more work than handing it over.
const PIECE: usize = 1 << 17;
/// Pieces of a weight at most.
const PIECES: usize = 64;
/// Outputs of a piece are a multiple of this.
const OUTPUTS: i64 = 16;

/// `x * weight^T + bias`.
///
/// # Shapes
/// - `x_tw`: `[t, w]`; `weight_nw`: `[n, w]`; `bias_n`: `[n]`; returns `[t, n]`
pub(crate) fn linear(x_tw: &Tensor, weight_nw: &Tensor, bias_n: Option<&Tensor>) -> Tensor {
    let Some(pieces) = pieces(weight_nw) else {
        return x_tw.linear(weight_nw, bias_n);
    };
    product(x_tw, weight_nw, &pieces, |start, length| {
        bias_n.map(|bias| bias.narrow(0, start, length))
    })
}

/// `sum + x * weight^T`.
///
/// # Shapes
/// - `sum_tn`: `[t, n]`, and so is the result; `x_tw`: `[t, w]`; `weight_nw`: `[n, w]`
pub(crate) fn add_linear(sum_tn: &Tensor, x_tw: &Tensor, weight_nw: &Tensor) -> Tensor {
    let Some(pieces) = pieces(weight_nw) else {
        return sum_tn.addmm(x_tw, &weight_nw.tr());
    };
    product(x_tw, weight_nw, &pieces, |start, length| {
        Some(sum_tn.narrow(1, start, length))
    })
}

/// Products of the pieces of a weight, with what `add` gives for a piece's outputs.
fn product(
    x_tw: &Tensor,
    weight_nw: &Tensor,
    pieces: &[(i64, i64)],
    add: impl Fn(i64, i64) -> Option<Tensor>,
) -> Tensor {
    let options = (x_tw.kind(), x_tw.device());
    let out = Tensor::empty([x_tw.size()[0], weight_nw.size()[0]], options);
    let skinny = skinny::fits(x_tw, weight_nw);
    let job = |(start, length): &(i64, i64)| {
        let (start, length) = (*start, *length);
        let (x, out) = (x_tw.shallow_clone(), out.narrow(1, start, length));
        let weight = weight_nw.narrow(0, start, length);
        let add = add(start, length);
        Box::new(move || {
            if skinny {
                skinny::product_into(&out, &x, &weight, add.as_ref());
            } else {
                drop(match add {
                    Some(add) => add.addmm_out(&out, &x, &weight.tr()),
                    None => x.mm_out(&out, &weight.tr()),
                });
            }
        }) as Job
    };
    team::run(pieces.iter().map(job).collect());
    out
}

/// First output and number of outputs of each piece of a weight; none for one that is not cut.
fn pieces(weight_nw: &Tensor) -> Option<Vec<(i64, i64)>> {
    let elements = weight_nw.numel();
    if elements < WIDE || !team::is_at_hand() || weight_nw.device().is_cuda() {
        return None;
    }
    let outputs = weight_nw.size()[0];
    let count = (elements / PIECE).clamp(2, PIECES) as i64;
    let length = (outputs + count - 1) / count;
    let length = (length + OUTPUTS - 1) / OUTPUTS * OUTPUTS;
    let starts = (0..outputs).step_by(usize::try_from(length).unwrap_or(1));
    Some(
        starts
            .map(|start| (start, length.min(outputs - start)))
            .collect(),
    )
}

/// `work` on parts of the rows of equal sizes, joined; on all of them at once where a row's `weight`, in elements that are read, is
/// small. Rows must not depend on each other.
pub(crate) fn by_rows<T: Send + 'static>(
    rows: i64,
    weight: usize,
    inputs: impl Fn(i64, i64) -> T,
    work: fn(T) -> Tensor,
) -> Tensor {
    let total = usize::try_from(rows).unwrap_or(0) * weight;
    if rows < 2 || total < WIDE || !team::is_at_hand() {
        return work(inputs(0, rows));
    }
    let count = ((total / PIECE) as i64).clamp(2, rows.min(PIECES as i64));
    let length = (rows + count - 1) / count;
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut jobs: Vec<Job> = Vec::new();
    let mut start = 0;
    while start < rows {
        let input = inputs(start, length.min(rows - start));
        let (sender, place) = (sender.clone(), jobs.len());
        jobs.push(Box::new(move || {
            // The receiver outlives the jobs.
            drop(sender.send((place, work(input))));
        }));
        start += length;
    }
    drop(sender);
    team::run(jobs);
    let mut parts: Vec<(usize, Tensor)> = receiver.into_iter().collect();
    parts.sort_unstable_by_key(|(place, _)| *place);
    let parts: Vec<Tensor> = parts.into_iter().map(|(_, part)| part).collect();
    Tensor::cat(&parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Team;
    use tch::Kind;

    fn normal(stream: u64, size: &[i64]) -> Tensor {
        let count = usize::try_from(size.iter().product::<i64>()).unwrap();
        let mut values = vec![0.0_f32; count];
        crate::philox::fill_normal(stream, 1.0, &mut values);
        Tensor::from_slice(&values).view(size)
    }

    fn largest_gap(left: &Tensor, right: &Tensor) -> f64 {
        (left - right).abs().max().double_value(&[])
    }

    #[test]
    fn products_are_the_same_on_any_number_of_threads() {
        tch::set_num_threads(1);
        let weight = normal(1, &[1000, 530]);
        let bias = normal(2, &[1000]);
        for tokens in [1, 5, 40] {
            let x = normal(3, &[tokens, 530]);
            let sum = normal(4, &[tokens, 1000]);
            let all = || {
                [
                    linear(&x, &weight, None),
                    linear(&x, &weight, Some(&bias)),
                    add_linear(&sum, &x, &weight),
                ]
            };
            let plain = all();
            let (one, three) = (Team::new(1).enter(all), Team::new(3).enter(all));
            for ((plain, one), three) in plain.iter().zip(&one).zip(&three) {
                assert!(one.equal(three));
                assert!(largest_gap(plain, one) < 1e-3);
            }
        }
    }

    #[test]
    fn rows_come_back_in_their_order() {
        let x = Tensor::arange(300 * 2000, (Kind::Float, tch::Device::Cpu)).view([300, 2000]);
        let doubled = || {
            by_rows(
                300,
                2000,
                |start, length| x.narrow(0, start, length),
                |part| part * 2,
            )
        };
        let cut = Team::new(2).enter(doubled);
        assert!(cut.equal(&doubled()) && cut.equal(&(&x * 2)));
    }
}
