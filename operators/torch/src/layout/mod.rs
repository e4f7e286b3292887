//! The list of weights that a configuration asks for: names and shapes on disk, and how they are joined in memory.
//!
//! Matrices that multiply the same input (queries, keys and values; gate and up) are one matrix in memory, so that a
//! layer takes few large products. On disk they keep their published names. In memory the families share the names of
//! what they share: `model.` is the language model, `visual.` the tower.

mod language;
mod qwen2_5_vl;
pub(crate) mod qwen3_vl;

use std::borrow::Cow;

use crate::config::{Family, ModelConfig, TowerConfig};

pub(crate) use language::layer as language_layer;

/// Bases of names, in memory and in the published files of the newer vision-language models.
const PUBLISHED_BASES: [(&str, &str); 2] = [
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
];

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
    let mut list = List::default();
    if let Some(vision) = &config.vision {
        match &vision.tower {
            TowerConfig::Windowed { .. } => qwen2_5_vl::tower(vision, &mut list),
            TowerConfig::Deepstack { table_side, taps } => {
                qwen3_vl::tower(vision, *table_side, taps.len(), &mut list);
            }
        }
    }
    language::language(&config.text, &mut list);
    if !config.tied {
        let shape = [config.text.vocab, config.text.hidden];
        let normal = Init::Normal(config.text.initializer_range);
        list.single("lm_head.weight", &shape, normal);
    }
    let mut list = list.0;
    if config.family == Family::Qwen3Vl {
        for part in list.iter_mut().flat_map(|parameter| &mut parameter.parts) {
            part.name = newer(&part.name);
        }
    }
    list
}

/// Prefix of a block of the tower.
pub(crate) fn vision_block(index: usize) -> String {
    format!("visual.blocks.{index}.")
}

/// The name in memory of a weight on disk: newer files have the tower and the language model below `model.`.
pub(crate) fn canonical(name: &str) -> Cow<'_, str> {
    PUBLISHED_BASES
        .iter()
        .find_map(|(ours, theirs)| {
            Some(Cow::Owned(format!("{ours}{}", name.strip_prefix(theirs)?)))
        })
        .unwrap_or(Cow::Borrowed(name))
}

pub(crate) fn newer(name: &str) -> String {
    PUBLISHED_BASES
        .iter()
        .find_map(|(ours, theirs)| Some(format!("{theirs}{}", name.strip_prefix(ours)?)))
        .unwrap_or_else(|| name.to_owned())
}

/// Weights in the order in which they are named.
#[derive(Debug, Default)]
struct List(Vec<Parameter>);

impl List {
    /// A weight that is the same in memory and on disk.
    fn single(&mut self, name: &str, shape: &[i64], init: Init) {
        let part = Part {
            name: name.to_owned(),
            shape: shape.to_vec(),
        };
        self.0.push(Parameter {
            name: name.to_owned(),
            parts: vec![part],
            shape: shape.to_vec(),
            init,
        });
    }

    /// A matrix `[rows, columns]` with a bias.
    fn linear(&mut self, name: &str, rows: i64, columns: i64, init: Init) {
        self.single(&format!("{name}.weight"), &[rows, columns], init);
        self.single(&format!("{name}.bias"), &[rows], Init::Zeros);
    }

    /// A norm with scale and shift.
    fn layer_norm(&mut self, name: &str, width: i64) {
        self.single(&format!("{name}.weight"), &[width], Init::Ones);
        self.single(&format!("{name}.bias"), &[width], Init::Zeros);
    }

    /// Several weights on disk, given by name and rows, that are one in memory: matrices with this many columns, or vectors.
    fn joined(
        &mut self,
        base: &str,
        name: &str,
        parts: &[(&str, i64)],
        columns: Option<i64>,
        init: Init,
    ) {
        let suffix = if columns.is_some() { "weight" } else { "bias" };
        let shape = |rows: i64| std::iter::once(rows).chain(columns).collect::<Vec<_>>();
        let parts: Vec<Part> = parts
            .iter()
            .map(|(part, rows)| Part {
                name: format!("{base}{part}.{suffix}"),
                shape: shape(*rows),
            })
            .collect();
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        self.0.push(Parameter {
            name: format!("{base}{name}.{suffix}"),
            parts,
            shape: shape(rows),
            init,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_names_are_read_as_the_published_ones() {
        assert_eq!(
            canonical("model.visual.merger.ln_q.weight"),
            "visual.merger.ln_q.weight"
        );
        assert_eq!(
            canonical("model.language_model.norm.weight"),
            "model.norm.weight"
        );
        assert_eq!(canonical("lm_head.weight"), "lm_head.weight");
        for name in [
            "visual.pos_embed.weight",
            "model.norm.weight",
            "lm_head.weight",
        ] {
            assert_eq!(canonical(&newer(name)), name);
        }
    }
}
