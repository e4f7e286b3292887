//! Digests of rows, whatever the batches, parts, row groups or compression; and of datasets, which are rows and a schema.
//!
//! Each row has a hash of 128 bits over its values and over the names and types of the columns ([`row_hashes`]). The
//! digest of some rows is their number and, in each of two lanes, a polynomial over the Mersenne prime p = 2^61 - 1 with
//! the halves of the hashes as coefficients:
//!
//! ```text
//! lane(h1 ... hn) = h1 x^(n-1) + h2 x^(n-2) + ... + hn   (mod p), with a fixed x for each lane
//! lane(A then B)  = lane(A) x^rows(B) + lane(B)          (mod p)
//! ```
//!
//! So digests of parts compose in order, and nothing is read again to digest a dataset that is made of known parts.
//!
//! It is made for speed and safe against accidents: rows that differ by chance or by mistake share a digest once in about
//! 2^120 pairs. It is *not* safe against an adversary, who can construct rows with a given digest. Where content is named
//! (objects of the store, models, media, keys) the name is a blake3 digest.

mod row_hash;
mod row_size;
mod schema;
#[cfg(test)]
mod tests;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::{Digest, RowsDigest};

pub use row_hash::row_hashes;
pub(crate) use row_size::row_sizes;

use crate::{Result, StoreError};

/// The Mersenne prime 2^61 - 1.
const PRIME: u64 = (1 << 61) - 1;
/// Where the polynomials are evaluated, by lane.
const POINTS: [u64; 2] = [0x0bd3_96e1_7a5c_42f9, 0x1747_c55f_0e62_9d3b];
/// Rows that are taken in at once: so many products of 64 by 61 bits have room in 128.
const BLOCK: usize = 4;
/// Powers of the points.
const POWERS: [[u64; BLOCK + 1]; 2] = [powers(POINTS[0]), powers(POINTS[1])];
/// Hexadecimal digits of each of the three numbers of a digest.
const DIGITS: usize = 16;

/// Computes the digest of rows batch by batch, or of parts one after the other.
#[derive(Clone, Debug, Default)]
pub struct RowsHasher {
    seed: Option<row_hash::Seed>,
    rows: u64,
    lanes: [u64; 2],
}

impl RowsHasher {
    /// A hasher for rows of this schema.
    ///
    /// # Errors
    /// When the schema has a type that cannot be stored.
    pub fn try_new(schema: &SchemaRef) -> Result<Self> {
        Ok(Self {
            seed: Some(row_hash::Seed::try_new(schema)?),
            ..Self::default()
        })
    }

    /// A hasher that has seen the rows of a digest.
    ///
    /// # Errors
    /// When the text is no digest of rows.
    pub fn from_digest(digest: &RowsDigest) -> Result<Self> {
        let text = digest.0.as_str();
        let number = |index: usize| {
            text.get(index * DIGITS..(index + 1) * DIGITS)
                .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        };
        match (number(0), number(1), number(2)) {
            (Some(rows), Some(first), Some(second))
                if text.len() == 3 * DIGITS && first < PRIME && second < PRIME =>
            {
                Ok(Self {
                    seed: None,
                    rows,
                    lanes: [first, second],
                })
            }
            _ => Err(StoreError::Rows(format!("`{text}` is no digest of rows"))),
        }
    }

    /// Adds rows. All batches have the same columns; nullability does not count.
    ///
    /// # Errors
    /// When a column has a type that cannot be stored.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<()> {
        let seed = match self.seed {
            Some(seed) => seed,
            None => *self
                .seed
                .insert(row_hash::Seed::try_new(batch.schema_ref())?),
        };
        row_hash::each_block(batch, seed, |states| self.push(states))
    }

    /// Adds rows whose hashes are known.
    pub fn update_hashes(&mut self, hashes: &[u128]) {
        let states: Vec<[u64; 2]> = hashes
            .iter()
            .map(|hash| [*hash as u64, (*hash >> 64) as u64])
            .collect();
        self.push(&states);
    }

    /// Adds the rows of another hasher after the own ones.
    pub fn combine(&mut self, next: &Self) {
        for ((lane, next_lane), point) in self.lanes.iter_mut().zip(next.lanes).zip(POINTS) {
            *lane = add(multiply(*lane, power(point, next.rows)), next_lane);
        }
        self.rows += next.rows;
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Digest of all rows so far.
    #[must_use]
    pub fn digest(&self) -> RowsDigest {
        let [first, second] = self.lanes;
        RowsDigest(format!("{:016x}{first:016x}{second:016x}", self.rows))
    }

    fn push(&mut self, states: &[[u64; 2]]) {
        self.rows += states.len() as u64;
        let (blocks, rest) = states.as_chunks::<BLOCK>();
        for (lane, value) in self.lanes.iter_mut().enumerate() {
            for block in blocks {
                let mut sum = u128::from(*value) * u128::from(POWERS[lane][BLOCK]);
                for (place, state) in block.iter().enumerate() {
                    sum += u128::from(state[lane]) * u128::from(POWERS[lane][BLOCK - 1 - place]);
                }
                *value = reduce_wide(sum);
            }
            for state in rest {
                *value = add(multiply(*value, POINTS[lane]), reduce(state[lane]));
            }
        }
    }
}

/// Digest of rows that follow each other.
///
/// # Errors
/// When one of the texts is no digest of rows.
pub fn combine_digests<'a>(
    digests: impl IntoIterator<Item = &'a RowsDigest>,
) -> Result<RowsDigest> {
    Ok(combined(digests)?.digest())
}

/// Digest of a dataset: its schema, with nullability and without metadata, and the rows of its parts in order.
///
/// # Errors
/// When one of the texts is no digest of rows.
pub fn dataset_digest<'a>(
    schema: &Schema,
    parts: impl IntoIterator<Item = &'a RowsDigest>,
) -> Result<Digest> {
    let rows = combined(parts)?;
    let schema = schema::describe(schema);
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"metis-flow dataset 2\n");
    hasher.update(&(schema.len() as u64).to_le_bytes());
    hasher.update(schema.as_bytes());
    hasher.update(&rows.rows.to_le_bytes());
    for lane in rows.lanes {
        hasher.update(&lane.to_le_bytes());
    }
    Ok(hasher.finalize().into())
}

fn combined<'a>(digests: impl IntoIterator<Item = &'a RowsDigest>) -> Result<RowsHasher> {
    let mut all = RowsHasher::default();
    for digest in digests {
        all.combine(&RowsHasher::from_digest(digest)?);
    }
    Ok(all)
}

/// A number modulo the prime.
const fn reduce(number: u64) -> u64 {
    let folded = (number & PRIME) + (number >> 61);
    if folded >= PRIME {
        folded - PRIME
    } else {
        folded
    }
}

const fn reduce_wide(number: u128) -> u64 {
    let folded = (number & PRIME as u128) + (number >> 61);
    reduce((folded as u64 & PRIME) + (folded >> 61) as u64)
}

const fn add(left: u64, right: u64) -> u64 {
    reduce(left + right)
}

const fn multiply(left: u64, right: u64) -> u64 {
    reduce_wide(left as u128 * right as u128)
}

const fn powers(point: u64) -> [u64; BLOCK + 1] {
    let mut powers = [1; BLOCK + 1];
    let mut exponent = 1;
    while exponent <= BLOCK {
        powers[exponent] = multiply(powers[exponent - 1], point);
        exponent += 1;
    }
    powers
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = multiply(result, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    result
}
