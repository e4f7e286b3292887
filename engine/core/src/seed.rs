//! Derivation of random streams. Nothing in the system draws from a shared or time-seeded generator.

/// Identity of a prompt in the counter-based generator: what a prompt samples depends on its id, not on its place.
#[must_use]
pub fn prompt_stream(prompt_id: &str) -> u64 {
    truncated(blake3::hash(prompt_id.as_bytes()))
}

/// A seed of its own for one purpose (for example `shuffle`, `step 12`) under a stage's seed.
#[must_use]
pub fn derive(seed: u64, purpose: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose.as_bytes());
    truncated(hasher.finalize())
}

/// A permutation of `0..len` that depends on the seed alone.
#[must_use]
pub fn permutation(seed: u64, len: usize) -> Vec<usize> {
    let mut keyed: Vec<(u64, usize)> = (0..len)
        .map(|index| (derive(seed, &format!("permutation {index}")), index))
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, index)| index).collect()
}

fn truncated(hash: blake3::Hash) -> u64 {
    let bytes = hash.as_bytes();
    u64::from_le_bytes([
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
    ])
}
