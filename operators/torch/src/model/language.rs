//! The language model: a stack of attention and gated linear units over a flat list of tokens.
//!
//! Shapes: `t` tokens, `w` model width, `v` vocabulary.

use tch::Tensor;

use super::attention::Attend;
use super::rope::Rope;
use crate::config::{ModelConfig, TextConfig};
use crate::layout;
use crate::parameters::Parameters;

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out: Tensor,
    mlp_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

/// The language model's weights.
#[derive(Debug)]
pub(crate) struct Language {
    config: TextConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `[v, w]`; the embedding table itself when the two are tied.
    pub(crate) head: Tensor,
}

impl Language {
    pub(crate) fn new(config: &ModelConfig, weights: &Parameters) -> Self {
        let layers = (0..config.text.layers)
            .map(|index| {
                let prefix = layout::language_layer(index);
                let get = |name: &str| weights.get(&format!("{prefix}{name}"));
                Layer {
                    input_norm: get("input_layernorm.weight"),
                    qkv_weight: get("self_attn.qkv_proj.weight"),
                    qkv_bias: get("self_attn.qkv_proj.bias"),
                    out: get("self_attn.o_proj.weight"),
                    mlp_norm: get("post_attention_layernorm.weight"),
                    gate_up: get("mlp.gate_up_proj.weight"),
                    down: get("mlp.down_proj.weight"),
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
        let (heads, keys, width) = (
            self.config.heads,
            self.config.key_heads,
            self.config.head_dim,
        );
        let mut x = x_tw;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = self
                .normed(&x, &layer.input_norm)
                .linear(&layer.qkv_weight, Some(&layer.qkv_bias));
            let qkv = qkv.view([-1, heads + 2 * keys, width]);
            // Splits rather than slices: the gradient of a split is one concatenation.
            let parts = qkv.split_with_sizes([heads + keys, keys], 1);
            let qk = rope.apply(&parts[0]).split_with_sizes([heads, keys], 1);
            let attended = attend.attend(index, &qk[0], &qk[1], &parts[1]);
            x = x.addmm(&attended, &layer.out.tr());
            let gate_up = self
                .normed(&x, &layer.mlp_norm)
                .linear(&layer.gate_up, None::<&Tensor>)
                .chunk(2, 1);
            x = x.addmm(&(gate_up[0].silu() * &gate_up[1]), &layer.down.tr());
        }
        self.normed(&x, &self.norm)
    }

    /// Logits in 32 bits: `[t, w]` -> `[t, v]`.
    pub(crate) fn logits(&self, hidden_tw: &Tensor) -> Tensor {
        let logits = hidden_tw.linear(&self.head, None::<&Tensor>);
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
