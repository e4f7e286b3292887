//! Philox4x32-10, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//!
//! A draw is a pure function of key and counter, so what a sample gets does not depend on what was drawn before.

pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(crate) const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(crate) const ROUNDS: usize = 10;

/// Four random words for one counter under one key.
pub(crate) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            high(second) ^ counter[1] ^ key[0],
            low(second),
            high(first) ^ counter[3] ^ key[1],
            low(first),
        ];
        key = [
            key[0].wrapping_add(KEY_STEPS[0]),
            key[1].wrapping_add(KEY_STEPS[1]),
        ];
    }
    counter
}

/// The uniform number in `[0, 1)` that one sampled token uses.
///
/// It has 48 bits, so that its product with a sum of probabilities stays below that sum in double precision.
pub(crate) fn token_uniform(seed: u64, prompt_stream: u64, sample: u32, position: u32) -> f64 {
    let words = philox(
        [low(prompt_stream), high(prompt_stream), sample, position],
        [low(seed), high(seed)],
    );
    let bits = (u64::from(words[0]) << 16) | u64::from(words[1] >> 16);
    bits as f64 / (1_u64 << 48) as f64
}

/// Uniform numbers between `-bound` and `bound` for one purpose.
pub(crate) fn fill_uniform(stream: u64, bound: f64, values: &mut [f32]) {
    for (index, quad) in values.chunks_mut(4).enumerate() {
        let words = philox(
            [low(index as u64), high(index as u64), 0, 0],
            [low(stream), high(stream)],
        );
        for (value, word) in quad.iter_mut().zip(words) {
            let unit = (f64::from(word) + 0.5) / 4_294_967_296.0;
            *value = ((2.0 * unit - 1.0) * bound) as f32;
        }
    }
}

/// Standard normal numbers for one purpose, by the Box-Muller transform.
pub(crate) fn fill_normal(stream: u64, scale: f64, values: &mut [f32]) {
    for (index, quad) in values.chunks_mut(4).enumerate() {
        let words = philox(
            [low(index as u64), high(index as u64), 0, 0],
            [low(stream), high(stream)],
        );
        for (pair, words) in quad.chunks_mut(2).zip(words.chunks_exact(2)) {
            // The half keeps the logarithm away from zero.
            let radius = (-2.0 * ((f64::from(words[0]) + 0.5) / 4_294_967_296.0).ln()).sqrt();
            let angle = std::f64::consts::TAU * (f64::from(words[1]) / 4_294_967_296.0);
            let both = [radius * angle.cos(), radius * angle.sin()];
            for (value, normal) in pair.iter_mut().zip(both) {
                *value = (normal * scale) as f32;
            }
        }
    }
}

pub(crate) fn low(value: u64) -> u32 {
    (value & 0xFFFF_FFFF) as u32
}

pub(crate) fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_paper() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_are_uniform_and_differ_by_each_part_of_the_counter() {
        let mean = (0..4096)
            .map(|sample| token_uniform(1, 2, sample, 3))
            .sum::<f64>()
            / 4096.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let base = token_uniform(1, 2, 3, 4);
        for other in [
            token_uniform(9, 2, 3, 4),
            token_uniform(1, 9, 3, 4),
            token_uniform(1, 2, 9, 4),
        ] {
            assert!((base - other).abs() > 1e-9);
        }
        assert!((0.0..1.0).contains(&base));
    }

    #[test]
    fn uniforms_fill_their_interval() {
        let mut values = vec![0.0; 10_001];
        fill_uniform(5, 0.25, &mut values);
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / 10_001.0;
        let largest = values
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((0.249..=0.25).contains(&largest), "{largest}");
    }

    #[test]
    fn normals_have_mean_zero_and_the_asked_spread() {
        let mut values = vec![0.0; 10_001];
        fill_normal(5, 0.5, &mut values);
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / 10_001.0;
        let spread = (values
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            / 10_001.0)
            .sqrt();
        assert!(
            mean.abs() < 0.02 && (spread - 0.5).abs() < 0.02,
            "{mean} {spread}"
        );
    }
}
