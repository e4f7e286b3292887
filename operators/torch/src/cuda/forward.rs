//! The layers over the rows of a chunk of prompts or of a decoding step: matrix products and our kernels in turn.
//!
//! The residual stream has 32 bits, everything else 16.

use engine_core::error::ModelError;

use super::Gpu;
use super::gemm::Shape;
use super::memory::Memory;
use crate::config::TextConfig;
use crate::model::language::Layer;

/// Products of a pass over `rows` rows, in the order in which they are first used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Products {
    pub(super) qkv: Shape,
    pub(super) out: Shape,
    pub(super) gate_up: Shape,
    pub(super) down: Shape,
}

impl Products {
    pub(super) fn of(text: &TextConfig, rows: i64) -> Self {
        let shape = |outputs, inputs| Shape {
            rows,
            outputs,
            inputs,
            is_wide: false,
        };
        let heads = text.heads + 2 * text.key_heads;
        Self {
            qkv: shape(heads * text.head_dim, text.hidden),
            out: shape(text.hidden, text.heads * text.head_dim),
            gate_up: shape(2 * text.intermediate, text.hidden),
            down: shape(text.hidden, text.intermediate),
        }
    }
}

/// The product that gives logits.
pub(super) fn head_product(text: &TextConfig, rows: i64) -> Shape {
    Shape {
        rows,
        outputs: text.vocab,
        inputs: text.hidden,
        is_wide: true,
    }
}

impl Gpu {
    /// Chooses algorithms for a pass over some number of rows.
    ///
    /// # Errors
    /// When the library has none.
    pub(super) fn prepare(&mut self, text: &TextConfig, rows: i64) -> Result<Products, ModelError> {
        let products = Products::of(text, rows);
        for shape in [products.qkv, products.out, products.gate_up, products.down] {
            self.gemm.prepare(shape)?;
        }
        Ok(products)
    }

    /// Queries, keys and values of the normed rows, into `memory.qkv`.
    pub(super) fn project(
        &self,
        products: &Products,
        layer: &Layer,
        memory: &Memory,
    ) -> Result<(), ModelError> {
        let (weight, input) = (&layer.qkv_weight, &memory.normed);
        self.gemm
            .run(&self.stream, products.qkv, weight, input, &memory.qkv)
    }

    /// The second half: from `memory.attended` to `memory.added`, the output of the gated unit, which is not in the stream yet.
    pub(super) fn mix(
        &self,
        products: &Products,
        layer: &Layer,
        memory: &Memory,
    ) -> Result<(), ModelError> {
        let (stream, rows) = (&self.stream, products.qkv.rows);
        self.gemm.run(
            stream,
            products.out,
            &layer.out,
            &memory.attended,
            &memory.added,
        )?;
        self.kernels.add_norm(
            stream,
            rows,
            [&memory.added, &memory.x, &layer.mlp_norm, &memory.normed],
        )?;
        self.gemm.run(
            stream,
            products.gate_up,
            &layer.gate_up,
            &memory.normed,
            &memory.gate_up,
        )?;
        self.kernels
            .silu_gate(stream, rows, &memory.gate_up, &memory.gated)?;
        self.gemm.run(
            stream,
            products.down,
            &layer.down,
            &memory.gated,
            &memory.added,
        )
    }
}
