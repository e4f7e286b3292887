//! The language model: a stack of attention and gated linear units over a flat list of tokens.
//!
//! Shapes: `t` tokens, `w` model width, `v` vocabulary.

use tch::Tensor;

use super::attention::Attend;
use super::rope::Rope;
use crate::config::{ModelConfig, TextConfig};
use crate::layout;
use crate::lora::Adapter;
use crate::parameters::Parameters;
use crate::wide;

/// The weights of one layer. `h` query heads, `k` key heads, `d` head width, `i` width of the gated unit.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[w]`
    pub(crate) input_norm: Tensor,
    /// Queries, keys and values: `[(h + 2 k) * d, w]`.
    pub(crate) qkv_weight: Tensor,
    /// `[(h + 2 k) * d]`
    pub(crate) qkv_bias: Option<Tensor>,
    /// `[d]`, for every query head.
    pub(crate) q_norm: Option<Tensor>,
    /// `[d]`, for every key head.
    pub(crate) k_norm: Option<Tensor>,
    /// `[w, h * d]`
    pub(crate) out: Tensor,
    /// `[w]`
    pub(crate) mlp_norm: Tensor,
    /// Gate and up: `[2 i, w]`.
    pub(crate) gate_up: Tensor,
    /// `[w, i]`
    pub(crate) down: Tensor,
    pub(crate) qkv_adapter: Option<Adapter>,
    pub(crate) out_adapter: Option<Adapter>,
    pub(crate) gate_up_adapter: Option<Adapter>,
    pub(crate) down_adapter: Option<Adapter>,
}

impl Layer {
    /// Whether a weight of it is trained, or an adapter.
    pub(crate) fn learns(&self) -> bool {
        let weights = [
            Some(&self.input_norm),
            Some(&self.qkv_weight),
            self.qkv_bias.as_ref(),
            self.q_norm.as_ref(),
            self.k_norm.as_ref(),
            Some(&self.out),
            Some(&self.mlp_norm),
            Some(&self.gate_up),
            Some(&self.down),
        ];
        let adapters = [
            &self.qkv_adapter,
            &self.out_adapter,
            &self.gate_up_adapter,
            &self.down_adapter,
        ];
        (weights.into_iter().flatten()).any(Tensor::requires_grad)
            || adapters.into_iter().any(Option::is_some)
    }
}

/// Features of images that are added to some tokens after the first layers (Qwen3-VL).
#[derive(Debug)]
pub(crate) struct Additions {
    /// Rows of the tokens, `[m]`.
    pub(crate) rows: Tensor,
    /// `[m, w]` for each of the first layers.
    pub(crate) layers: Vec<Tensor>,
}

/// The language model's weights.
#[derive(Debug)]
pub(crate) struct Language {
    pub(crate) config: TextConfig,
    /// `[v, w]`
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    /// `[w]`
    pub(crate) norm: Tensor,
    /// `[v, w]`; the embedding table itself when the two are tied.
    pub(crate) head: Tensor,
}

impl Language {
    pub(crate) fn new(config: &ModelConfig, weights: &Parameters) -> Self {
        let layers = (0..config.text.layers)
            .map(|index| {
                let prefix = layout::language_layer(index);
                let get = |name: &str| weights.get(&format!("{prefix}{name}"));
                let adapter = |name: &str| weights.adapter(&format!("{prefix}{name}"));
                let get_if = |is_there: bool, name: &str| is_there.then(|| get(name));
                Layer {
                    input_norm: get("input_layernorm.weight"),
                    qkv_weight: get("self_attn.qkv_proj.weight"),
                    qkv_bias: get_if(config.text.qkv_bias, "self_attn.qkv_proj.bias"),
                    q_norm: get_if(config.text.qk_norm, "self_attn.q_norm.weight"),
                    k_norm: get_if(config.text.qk_norm, "self_attn.k_norm.weight"),
                    out: get("self_attn.o_proj.weight"),
                    mlp_norm: get("post_attention_layernorm.weight"),
                    gate_up: get("mlp.gate_up_proj.weight"),
                    down: get("mlp.down_proj.weight"),
                    qkv_adapter: adapter("self_attn.qkv_proj.weight"),
                    out_adapter: adapter("self_attn.o_proj.weight"),
                    gate_up_adapter: adapter("mlp.gate_up_proj.weight"),
                    down_adapter: adapter("mlp.down_proj.weight"),
                }
            })
            .collect();
        let embedding = weights.get("model.embed_tokens.weight");
        let head = if config.tied {
            embedding.shallow_clone()
        } else {
            weights.get("lm_head.weight")
        };
        Self {
            config: config.text.clone(),
            embedding,
            layers,
            norm: weights.get("model.norm.weight"),
            head,
        }
    }

    /// Embeds token ids: `[t]` -> `[t, w]`.
    pub(crate) fn embed(&self, ids_t: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids_t, -1, false, false)
    }

    /// Runs the layers and the last norm.
    ///
    /// # Shapes
    /// - `x_tw`: `[t, w]`, and so is the result
    pub(crate) fn run(&self, x_tw: Tensor, rope: &Rope, attend: &mut dyn Attend) -> Tensor {
        self.run_with(x_tw, rope, attend, None)
    }

    /// As [`Language::run`], with image features that are added after the first layers.
    ///
    /// # Shapes
    /// - `x_tw`: `[t, w]`, and so is the result; in a layer: queries `[t, h, d]`, keys and values `[t, k, d]`, gate and up
    ///   `[t, i]` each
    pub(crate) fn run_with(
        &self,
        x_tw: Tensor,
        rope: &Rope,
        attend: &mut dyn Attend,
        additions: Option<&Additions>,
    ) -> Tensor {
        let (heads, keys, width) = (
            self.config.heads,
            self.config.key_heads,
            self.config.head_dim,
        );
        let mut x = x_tw;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = self.normed(&x, &layer.input_norm);
            let qkv = wide::linear(&normed, &layer.qkv_weight, layer.qkv_bias.as_ref());
            let qkv = qkv.view([-1, heads + 2 * keys, width]);
            // Splits rather than slices: the gradient of a split is one concatenation.
            let parts = qkv.split_with_sizes([heads + keys, keys], 1);
            let qk = match (&layer.q_norm, &layer.k_norm) {
                (Some(query), Some(key)) => rope.apply(&self.head_norms(&parts[0], query, key)),
                _ => rope.apply(&parts[0]),
            };
            let qk = qk.split_with_sizes([heads, keys], 1);
            let attended = attend.attend(index, &qk[0], &qk[1], &parts[1]);
            x = wide::add_linear(&x, &attended, &layer.out);
            let normed = self.normed(&x, &layer.mlp_norm);
            let gate_up = wide::linear(&normed, &layer.gate_up, None).chunk(2, 1);
            x = wide::add_linear(&x, &(gate_up[0].silu() * &gate_up[1]), &layer.down);
            if let Some(features) =
                additions.and_then(|all| Some((&all.rows, all.layers.get(index)?)))
            {
                x = x.index_add(0, features.0, features.1);
            }
        }
        self.normed(&x, &self.norm)
    }

    /// Norms of each head of queries and keys.
    ///
    /// # Shapes
    /// - `qk_thd`: `[t, h + k, d]`, and so is the result; `query`, `key`: `[d]`
    fn head_norms(&self, qk_thd: &Tensor, query: &Tensor, key: &Tensor) -> Tensor {
        let width = self.config.head_dim;
        let scales = Tensor::cat(
            &[
                query.expand([self.config.heads, width], false),
                key.expand([self.config.key_heads, width], false),
            ],
            0,
        );
        qk_thd.rms_norm([width], None::<&Tensor>, self.config.norm_eps) * scales
    }

    /// Logits in 32 bits: `[t, w]` -> `[t, v]`.
    pub(crate) fn logits(&self, hidden_tw: &Tensor) -> Tensor {
        let logits = wide::linear(hidden_tw, &self.head, None);
        if logits.kind() == tch::Kind::Double {
            logits
        } else {
            logits.to_kind(tch::Kind::Float)
        }
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        x.rms_norm(weight.size(), Some(weight), self.config.norm_eps)
    }
}
