//! Ways to attend in generation: over a prompt, and one step at a time over the key-value cache. All of them get queries, keys and
//! values of a flat list of tokens. Training has its own in `packed.rs`.
//!
//! Shapes: `t` tokens, `b` sequences, `l` tokens of a padded sequence, `h` query heads, `k` key heads, `g` query heads
//! that share a key head, `d` head width.

use tch::Tensor;

/// One layer's attention, between the projections.
pub(crate) trait Attend {
    /// Attends in layer `layer`.
    ///
    /// # Shapes
    /// - `q_thd`: `[t, h, d]`; `k_tkd`, `v_tkd`: `[t, k, d]`; returns `[t, h * d]`
    fn attend(&mut self, layer: usize, q_thd: &Tensor, k_tkd: &Tensor, v_tkd: &Tensor) -> Tensor;
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct KeyValue {
    /// `[b, l, k, d]`
    pub(crate) keys: Tensor,
    /// `[b, l, k, d]`
    pub(crate) values: Tensor,
}

/// Causal attention over right-padded prompts; keeps keys and values for what follows.
#[derive(Debug)]
pub(crate) struct Prefill {
    /// Number of sequences.
    pub(crate) batch: i64,
    /// Keys and values of the layers so far.
    pub(crate) kept: Vec<KeyValue>,
}

impl Prefill {
    pub(crate) fn new(batch: i64) -> Self {
        Self {
            batch,
            kept: Vec::new(),
        }
    }
}

impl Attend for Prefill {
    fn attend(&mut self, _layer: usize, q_thd: &Tensor, k_tkd: &Tensor, v_tkd: &Tensor) -> Tensor {
        let (queries, keys, values) = (
            sequences(q_thd, self.batch),
            sequences(k_tkd, self.batch),
            sequences(v_tkd, self.batch),
        );
        let out = causal(&queries, &keys, &values);
        self.kept.push(KeyValue { keys, values });
        out
    }
}

/// `[b * l, h, d]` -> `[b, l, h, d]`
fn sequences(x_thd: &Tensor, batch: i64) -> Tensor {
    let size = x_thd.size();
    x_thd.reshape([batch, -1, size[1], size[2]])
}

/// Causal attention with fewer key heads than query heads.
///
/// # Shapes
/// - `q_blhd`: `[b, l, h, d]`; `k_blkd`, `v_blkd`: `[b, l, k, d]`; returns `[b * l, h * d]`
fn causal(q_blhd: &Tensor, k_blkd: &Tensor, v_blkd: &Tensor) -> Tensor {
    let [batch, length, heads, width] = q_blhd.size()[..] else {
        unreachable!("queries have four axes")
    };
    let share = heads / k_blkd.size()[2];
    // [b, l, k, d] -> [b, h, l, d], each key head repeated for the query heads that share it.
    let repeated = |x: &Tensor| {
        let x = x.transpose(1, 2);
        if share == 1 {
            x
        } else {
            x.repeat_interleave_self_int(share, 1, None)
        }
    };
    let (keys, values) = (repeated(k_blkd), repeated(v_blkd));
    let queries = q_blhd.transpose(1, 2);
    let out = Tensor::scaled_dot_product_attention(
        &queries,
        &keys,
        &values,
        None::<&Tensor>,
        0.0,
        true,
        None,
        false,
    );
    // [b, h, l, d] -> [b * l, h * d]
    out.transpose(1, 2).reshape([batch * length, heads * width])
}

/// Attention of every query to every key; all `[s, h, l, d]`.
pub(crate) fn attend_all(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(
        queries,
        keys,
        values,
        None::<&Tensor>,
        0.0,
        false,
        None,
        false,
    )
}
