//! The list of weights that a configuration asks for: names and shapes on disk, and how they are joined in memory.
//!
//! Matrices that multiply the same input (queries, keys and values; gate and up) are one matrix in memory, so that a
//! layer takes few large products. On disk they keep their published names.

use crate::config::{ModelConfig, TextConfig, VisionConfig};

/// How a weight is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    /// Normal around zero with this spread.
    Normal(f64),
    /// All zeros (biases).
    Zeros,
    /// All ones (scales of norms).
    Ones,
}

/// One weight on disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
}

impl Part {
    pub(crate) fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// One weight in memory: its parts stacked along the first axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) parts: Vec<Part>,
    pub(crate) shape: Vec<i64>,
    pub(crate) init: Init,
}

impl Parameter {
    pub(crate) fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Weight decay is for matrices.
    pub(crate) fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }
}

/// Every weight of the model, in a fixed order.
pub(crate) fn parameters(config: &ModelConfig) -> Vec<Parameter> {
    let mut list = Vec::new();
    vision(&config.vision, &mut list);
    language(&config.text, &mut list);
    if !config.tied {
        let shape = [config.text.vocab, config.text.hidden];
        single(
            &mut list,
            "lm_head.weight",
            &shape,
            Init::Normal(config.text.initializer_range),
        );
    }
    list
}

/// Prefix of a block of the tower.
pub(crate) fn vision_block(index: usize) -> String {
    format!("visual.blocks.{index}.")
}

/// Prefix of a layer of the language model.
pub(crate) fn language_layer(index: usize) -> String {
    format!("model.layers.{index}.")
}

fn vision(config: &VisionConfig, list: &mut Vec<Parameter>) {
    let normal = Init::Normal(config.initializer_range);
    let (width, inner) = (config.hidden, config.intermediate);
    let patch = [
        width,
        config.channels,
        config.temporal_patch,
        config.patch,
        config.patch,
    ];
    single(list, "visual.patch_embed.proj.weight", &patch, normal);
    for index in 0..config.depth {
        let block = vision_block(index);
        single(list, &format!("{block}norm1.weight"), &[width], Init::Ones);
        single(
            list,
            &format!("{block}attn.qkv.weight"),
            &[3 * width, width],
            normal,
        );
        single(
            list,
            &format!("{block}attn.qkv.bias"),
            &[3 * width],
            Init::Zeros,
        );
        single(
            list,
            &format!("{block}attn.proj.weight"),
            &[width, width],
            normal,
        );
        single(
            list,
            &format!("{block}attn.proj.bias"),
            &[width],
            Init::Zeros,
        );
        single(list, &format!("{block}norm2.weight"), &[width], Init::Ones);
        let mlp = format!("{block}mlp.");
        joined(
            list,
            &mlp,
            "gate_up_proj",
            &[("gate_proj", inner), ("up_proj", inner)],
            "weight",
            Some(width),
            normal,
        );
        joined(
            list,
            &mlp,
            "gate_up_proj",
            &[("gate_proj", inner), ("up_proj", inner)],
            "bias",
            None,
            Init::Zeros,
        );
        single(
            list,
            &format!("{mlp}down_proj.weight"),
            &[width, inner],
            normal,
        );
        single(list, &format!("{mlp}down_proj.bias"), &[width], Init::Zeros);
    }
    let merged = width * config.merge_unit();
    single(list, "visual.merger.ln_q.weight", &[width], Init::Ones);
    single(
        list,
        "visual.merger.mlp.0.weight",
        &[merged, merged],
        normal,
    );
    single(list, "visual.merger.mlp.0.bias", &[merged], Init::Zeros);
    single(
        list,
        "visual.merger.mlp.2.weight",
        &[config.out_hidden, merged],
        normal,
    );
    single(
        list,
        "visual.merger.mlp.2.bias",
        &[config.out_hidden],
        Init::Zeros,
    );
}

fn language(config: &TextConfig, list: &mut Vec<Parameter>) {
    let normal = Init::Normal(config.initializer_range);
    let (width, inner) = (config.hidden, config.intermediate);
    let keys = config.key_heads * config.head_dim;
    single(
        list,
        "model.embed_tokens.weight",
        &[config.vocab, width],
        normal,
    );
    for index in 0..config.layers {
        let layer = language_layer(index);
        let attention = format!("{layer}self_attn.");
        let qkv = [
            ("q_proj", config.heads * config.head_dim),
            ("k_proj", keys),
            ("v_proj", keys),
        ];
        single(
            list,
            &format!("{layer}input_layernorm.weight"),
            &[width],
            Init::Ones,
        );
        joined(
            list,
            &attention,
            "qkv_proj",
            &qkv,
            "weight",
            Some(width),
            normal,
        );
        joined(
            list,
            &attention,
            "qkv_proj",
            &qkv,
            "bias",
            None,
            Init::Zeros,
        );
        single(
            list,
            &format!("{attention}o_proj.weight"),
            &[width, config.heads * config.head_dim],
            normal,
        );
        single(
            list,
            &format!("{layer}post_attention_layernorm.weight"),
            &[width],
            Init::Ones,
        );
        let mlp = format!("{layer}mlp.");
        joined(
            list,
            &mlp,
            "gate_up_proj",
            &[("gate_proj", inner), ("up_proj", inner)],
            "weight",
            Some(width),
            normal,
        );
        single(
            list,
            &format!("{mlp}down_proj.weight"),
            &[width, inner],
            normal,
        );
    }
    single(list, "model.norm.weight", &[width], Init::Ones);
}

fn single(list: &mut Vec<Parameter>, name: &str, shape: &[i64], init: Init) {
    let part = Part {
        name: name.to_owned(),
        shape: shape.to_vec(),
    };
    list.push(Parameter {
        name: name.to_owned(),
        parts: vec![part],
        shape: shape.to_vec(),
        init,
    });
}

fn joined(
    list: &mut Vec<Parameter>,
    prefix: &str,
    name: &str,
    parts: &[(&str, i64)],
    suffix: &str,
    columns: Option<i64>,
    init: Init,
) {
    let shape = |rows: i64| std::iter::once(rows).chain(columns).collect::<Vec<_>>();
    let parts: Vec<Part> = parts
        .iter()
        .map(|(part, rows)| Part {
            name: format!("{prefix}{part}.{suffix}"),
            shape: shape(*rows),
        })
        .collect();
    let rows = parts.iter().map(|part| part.shape[0]).sum();
    list.push(Parameter {
        name: format!("{prefix}{name}.{suffix}"),
        parts,
        shape: shape(rows),
        init,
    });
}
