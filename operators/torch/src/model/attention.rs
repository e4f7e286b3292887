//! Ways to attend in the language model: over a prompt, over a completion after its prompt, and one step at a time
//! over the key-value cache. All of them get queries, keys and values of a flat list of tokens.
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

/// Attention of completions over their prompts and themselves.
///
/// Completion tokens come without padding; they are padded for the attention alone.
#[derive(Debug)]
pub(crate) struct Continue<'a> {
    /// Keys and values of the prompts, layer by layer.
    pub(crate) prompts: &'a [KeyValue],
    /// Prompt of each sequence.
    pub(crate) rows: Tensor,
    /// Token that stands at each place of the padded sequences, `[b * l]`; any token where there is padding.
    pub(crate) pad: Tensor,
    /// Place of each token in the padded sequences, `[t]`.
    pub(crate) unpad: Tensor,
    /// `[b, 1, g * l, prompt length + l]`: zero where a token is seen, minus infinity elsewhere.
    pub(crate) mask: Tensor,
}

impl Attend for Continue<'_> {
    fn attend(&mut self, layer: usize, q_thd: &Tensor, k_tkd: &Tensor, v_tkd: &Tensor) -> Tensor {
        let batch = self.rows.size()[0];
        let [_, heads, width] = q_thd.size()[..] else {
            unreachable!("queries have three axes")
        };
        let (key_heads, past) = (k_tkd.size()[1], &self.prompts[layer]);
        let padded = |x: &Tensor| sequences(&x.index_select(0, &self.pad), batch);
        // [b, s, k, d] -> [b, k, s, d]
        let joined = |past: &Tensor, own: &Tensor| {
            Tensor::cat(&[past.index_select(0, &self.rows), padded(own)], 1).transpose(1, 2)
        };
        let (keys, values) = (joined(&past.keys, k_tkd), joined(&past.values, v_tkd));
        // Query heads that share a key head stand one after the other along the token axis:
        // [b, l, k * g, d] -> [b, k, g, l, d] -> [b, k, g * l, d]
        let queries = padded(q_thd)
            .view([batch, -1, key_heads, heads / key_heads, width])
            .permute([0, 2, 3, 1, 4]);
        let length = queries.size()[3];
        let queries = queries.reshape([batch, key_heads, -1, width]);
        let out = Tensor::scaled_dot_product_attention(
            &queries,
            &keys,
            &values,
            Some(&self.mask),
            0.0,
            false,
            None,
            false,
        );
        // [b, k, g * l, d] -> [b, l, k, g, d] -> [b * l, h * d]
        let out = out
            .view([batch, key_heads, heads / key_heads, length, width])
            .permute([0, 3, 1, 2, 4]);
        out.reshape([batch * length, heads * width])
            .index_select(0, &self.unpad)
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
