//! Where the tokens of a pass stand in the rows of an attention that has padding, and several copies of some tokens.
//!
//! Shapes: `t` tokens of the pass, `r` rows of the attention, `h` heads, `d` head width.

#[cfg(test)]
use tch::Kind;
use tch::{Device, Tensor};

use crate::device::upload;

/// The entry of `sources` for padding; that of a further copy of a token is `PADDING - 1 - token`.
const PADDING: i32 = -1;

/// Where tokens stand.
#[derive(Debug)]
pub(crate) struct Places {
    /// The first row of each token, `[t]`, 32 bits.
    pub(crate) rows: Tensor,
    /// What stands in each row, `[r]`, 32 bits: the token in its first row, as above in all others.
    pub(crate) sources: Tensor,
    pub(crate) copies: Option<Copies>,
    /// Rows with padding and copies.
    pub(crate) total: i64,
}

/// Further rows of tokens.
#[derive(Debug)]
pub(crate) struct Copies {
    /// Where those of each token begin, `[t + 1]`, 32 bits.
    pub(crate) starts: Tensor,
    /// `[r]` at most, 32 bits.
    pub(crate) rows: Tensor,
}

/// The same on the host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lists {
    rows: Vec<i32>,
    sources: Vec<i32>,
    starts: Vec<i32>,
    copies: Vec<i32>,
}

impl Places {
    /// From the token that stands in each row, none for padding. Every one of the tokens stands somewhere.
    pub(crate) fn new(standing: &[Option<i64>], tokens: i64, device: Device) -> Self {
        let lists = Lists::new(standing, usize::try_from(tokens).unwrap_or(0));
        let on_device = |values: &[i32]| upload(values, device);
        Self {
            rows: on_device(&lists.rows),
            sources: on_device(&lists.sources),
            copies: (!lists.copies.is_empty()).then(|| Copies {
                starts: on_device(&lists.starts),
                rows: on_device(&lists.copies),
            }),
            total: standing.len() as i64,
        }
    }
}

impl Lists {
    fn new(standing: &[Option<i64>], tokens: usize) -> Self {
        let mut all: Vec<Vec<i32>> = vec![Vec::new(); tokens];
        let mut lists = Self::default();
        for (row, token) in standing.iter().enumerate() {
            let Some(token) = token else {
                lists.sources.push(PADDING);
                continue;
            };
            let rows = &mut all[usize::try_from(*token).unwrap_or(usize::MAX)];
            let token = *token as i32;
            lists.sources.push(if rows.is_empty() {
                token
            } else {
                PADDING - 1 - token
            });
            rows.push(row as i32);
        }
        for rows in all {
            debug_assert!(!rows.is_empty(), "every token stands somewhere");
            lists.starts.push(lists.copies.len() as i32);
            lists.rows.extend(rows.first());
            lists.copies.extend(rows.iter().skip(1));
        }
        lists.starts.push(lists.copies.len() as i32);
        lists
    }
}

/// What the kernels do, by plain operations.
#[cfg(test)]
impl Places {
    /// Token of each row with padding as token 0, and whether the row is none, as a factor `[r, 1, 1]`.
    fn tokens(&self, kind: Kind) -> (Tensor, Tensor) {
        let sources = self.sources.to_kind(Kind::Int64);
        let copies = i64::from(PADDING - 1) - &sources;
        let tokens = sources.where_self(&sources.ge(0), &copies);
        let is_there = sources.ne(i64::from(PADDING));
        (tokens.clamp_min(0), is_there.to_kind(kind).view([-1, 1, 1]))
    }

    /// Tokens in all their rows, zeros in padding: `[t, h, d]` -> `[r, h, d]`.
    pub(crate) fn spread(&self, x: &Tensor) -> Tensor {
        let (tokens, is_there) = self.tokens(x.kind());
        x.index_select(0, &tokens) * is_there
    }

    /// Sums over the rows of each token: `[r, h, d]` -> `[t, h, d]`.
    pub(crate) fn summed(&self, x: &Tensor) -> Tensor {
        let (tokens, is_there) = self.tokens(x.kind());
        let mut size = x.size();
        size[0] = self.rows.size()[0];
        Tensor::zeros(size, (x.kind(), x.device())).index_add(0, &tokens, &(x * is_there))
    }

    /// Tokens in their first rows, zeros elsewhere: `[t, h, d]` -> `[r, h, d]`.
    pub(crate) fn placed(&self, x: &Tensor) -> Tensor {
        let mut size = x.size();
        size[0] = self.total;
        Tensor::zeros(size, (x.kind(), x.device())).index_copy(
            0,
            &self.rows.to_kind(Kind::Int64),
            x,
        )
    }

    /// The first row of each token: `[r, h, d]` -> `[t, h, d]`.
    pub(crate) fn lifted(&self, x: &Tensor) -> Tensor {
        x.index_select(0, &self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_know_their_rows_and_rows_their_tokens() {
        // Two copies of tokens 0 and 1, one row of the others, padding after each.
        let [zero, one, two, three] = [0, 1, 2, 3].map(Some);
        let lists = Lists::new(&[zero, one, three, None, zero, one, two, None], 4);
        assert_eq!(
            lists,
            Lists {
                rows: vec![0, 1, 6, 2],
                sources: vec![0, 1, 3, -1, -2, -3, 2, -1],
                starts: vec![0, 1, 2, 2, 2],
                copies: vec![4, 5],
            }
        );
    }

    #[test]
    fn what_is_spread_comes_back_once_for_each_row() {
        let standing = [Some(1), Some(0), None, Some(1), Some(1)];
        let places = Places::new(&standing, 2, Device::Cpu);
        let x = Tensor::from_slice(&[3.0, 5.0]).view([2, 1, 1]);
        let values = |x: &Tensor| Vec::<f64>::try_from(x.flatten(0, -1)).unwrap();
        assert_eq!(values(&places.spread(&x)), [5.0, 3.0, 0.0, 5.0, 5.0]);
        assert_eq!(values(&places.placed(&x)), [5.0, 3.0, 0.0, 0.0, 0.0]);
        let rows = Tensor::from_slice(&[1.0, 2.0, 100.0, 4.0, 8.0]).view([5, 1, 1]);
        assert_eq!(values(&places.summed(&rows)), [2.0, 13.0]);
        assert_eq!(values(&places.lifted(&rows)), [2.0, 1.0]);
    }
}
