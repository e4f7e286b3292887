//! Inversion of the cumulative distribution of a row.
//!
//! Sums run over the tokens in their order, in 64 bits, one addition after the other: their rounding is part of the result.

/// Tokens between two sums that are kept.
const STRIDE: usize = 256;
/// Rows whose sums run side by side: an addition waits for the one before it, but not for those of other rows.
const ROWS: usize = 4;

/// The first token of each row, of probabilities and a number in `[0, 1)`, whose cumulative sum is above that share of the
/// whole. Its probability is above zero.
pub(super) fn tokens(rows: &[(&[f32], f64)]) -> Vec<usize> {
    let mut tokens = Vec::with_capacity(rows.len());
    let (groups, rest) = rows.as_chunks::<ROWS>();
    for group in groups {
        let sums = running_sums(group.map(|(probs, _)| probs));
        let found = group.iter().zip(&sums);
        tokens.extend(found.map(|((probs, uniform), sums)| find(probs, sums, *uniform)));
    }
    for (probs, uniform) in rest {
        let [sums] = running_sums([probs]);
        tokens.push(find(probs, &sums, *uniform));
    }
    tokens
}

/// The same among some tokens, in their order, and the sum of their probabilities.
pub(super) fn token_among(probs: &[f32], kept: &[u32], uniform: f64) -> (usize, f64) {
    let kept: Vec<usize> = kept.iter().map(|token| *token as usize).collect();
    let total = kept
        .iter()
        .fold(0.0, |sum, token| sum + f64::from(probs[*token]));
    let target = uniform * total;
    let mut sum = 0.0;
    let found = kept.iter().find(|token| {
        sum += f64::from(probs[**token]);
        sum > target
    });
    (found.or(kept.last()).copied().unwrap_or(0), total)
}

/// Sums before every `STRIDE`th token, and the whole sum at the end.
fn running_sums<const N: usize>(rows: [&[f32]; N]) -> [Vec<f64>; N] {
    let length = rows[0].len();
    let mut sums = rows.map(|_| Vec::with_capacity(length / STRIDE + 2));
    let mut running = [0.0_f64; N];
    let mut start = 0;
    while start < length {
        let end = (start + STRIDE).min(length);
        for (sums, running) in sums.iter_mut().zip(running) {
            sums.push(running);
        }
        let parts = rows.map(|row| &row[start..end]);
        for place in 0..end - start {
            for (running, part) in running.iter_mut().zip(parts) {
                *running += f64::from(part[place]);
            }
        }
        start = end;
    }
    for (sums, running) in sums.iter_mut().zip(running) {
        sums.push(running);
    }
    sums
}

fn find(probs: &[f32], sums: &[f64], uniform: f64) -> usize {
    let target = uniform * sums.last().copied().unwrap_or(0.0);
    let stretch = sums.partition_point(|sum| *sum <= target).saturating_sub(1);
    let (start, mut sum) = (stretch * STRIDE, sums[stretch]);
    let found = probs[start.min(probs.len())..].iter().position(|prob| {
        sum += f64::from(*prob);
        sum > target
    });
    found.map_or(probs.len() - 1, |place| start + place)
}
