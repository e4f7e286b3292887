//! Attention over packed sequences, forward and backward by hand: sequences lie one after the other without padding, none sees
//! another, and memory is linear in their tokens.
//!
//! A sequence attends to itself; completions that share a prompt also attend to the prompt, which is there once. The two parts of
//! such an attention are joined by their log-sum-exps, and the backward pass of each part is that of the whole when it is given the
//! joined output and log-sum-exp (Dao 2023, FlashAttention-2, section 3.1; Liu et al. 2023, Ring Attention).
//!
//! Shapes: `t` tokens, `h` query heads, `k` key heads, `g` query heads for each, `d` head width.

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::batches::Batches;
use super::flash::Flash;
use super::kernel::Kernel;
use super::long::Long;
use super::pieces::{Take, pieces, unfold};
use crate::fused::{Fused, Places};

/// Consecutive tokens of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: i64,
    pub(crate) length: i64,
}

/// Which tokens see which.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// Sequences that attend to themselves, each token to those before it: every token of the pass, in order.
    pub(crate) own: Vec<Span>,
    /// Tokens that also attend to all of a prompt, and the prompt. Neither queries nor prompts have gaps between them.
    pub(crate) shared: Vec<(Span, Span)>,
}

/// Heads of the language model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) query: i64,
    pub(crate) key: i64,
    pub(crate) width: i64,
}

/// What the backward pass needs of a layer's attention beside queries, keys and values.
#[derive(Debug)]
pub(crate) struct Attended {
    /// `[t, h, d]`
    pub(crate) out: Tensor,
    /// Log of the sum of each query's exponentials, in 32 bits at least: `[t, h, 1]` in pieces, `[h, t]` packed.
    pub(super) logsumexp: Tensor,
    /// State of a GPU's kernels.
    pub(super) state: Vec<Tensor>,
}

/// Gradients of queries `[t, h, d]`, keys and values `[t, k, d]`, in the rows of the attention.
#[derive(Debug)]
pub(crate) enum Flows {
    /// Side by side, `[t, h + 2 k, d]`.
    Together(Tensor),
    Apart([Tensor; 3]),
}

impl Flows {
    pub(crate) fn together(self) -> Tensor {
        match self {
            Self::Together(whole) => whole,
            Self::Apart(parts) => Tensor::cat(&parts, 1),
        }
    }

    pub(crate) fn apart(self, heads: Heads) -> [Tensor; 3] {
        match self {
            Self::Together(whole) => heads.split(&whole),
            Self::Apart(parts) => parts,
        }
    }
}

impl Heads {
    /// Queries, keys and values of a layer.
    ///
    /// # Shapes
    /// - `qkv`: `[t, h + 2 k, d]`; returns `[t, h, d]`, `[t, k, d]`, `[t, k, d]`
    fn split(self, qkv: &Tensor) -> [Tensor; 3] {
        let Self { query, key, .. } = self;
        [
            qkv.narrow(1, 0, query),
            qkv.narrow(1, query, key),
            qkv.narrow(1, query + key, key),
        ]
    }
}

/// Rows that the attention of a pass may have, in hundredths of its tokens.
pub(crate) fn most_rows(heads: Heads, kind: Kind, device: Device) -> i64 {
    Long::most_rows(heads, kind, device)
}

/// The attention of a pass, the same for every layer.
#[derive(Debug)]
pub(crate) struct Packing {
    heads: Heads,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Piece by piece, on any device.
    Pieces {
        own: Vec<Take>,
        shared: Vec<(Take, Take)>,
        kernel: Kernel,
    },
    /// All at once on a GPU.
    Packed(Flash),
    /// Padded to a few lengths on a GPU, with copies of shared prompts.
    Long(Long),
}

impl Packing {
    /// Plans the attention of a pass; `has_kernels` if there are some that put tokens among padding.
    ///
    /// # Errors
    /// When libtorch lacks a function.
    pub(crate) fn new(
        spans: &Spans,
        heads: Heads,
        kind: Kind,
        device: Device,
        has_kernels: bool,
    ) -> Result<Self, ModelError> {
        let can_copy = has_kernels && Long::supports(heads, kind, device);
        let batches = can_copy.then(|| Batches::new(spans)).flatten();
        let way = if let Some(batches) = batches {
            Way::Long(Long::new(spans, batches, device)?)
        } else if Flash::supports(heads, kind, device) {
            Way::Packed(Flash::new(spans, device)?)
        } else {
            let whole = |span: &Span| Take::Range(*span, 1);
            Way::Pieces {
                own: pieces(&spans.own, device),
                shared: (spans.shared.iter())
                    .map(|(queries, keys)| (whole(queries), whole(keys)))
                    .collect(),
                kernel: Kernel::for_device(device),
            }
        };
        Ok(Self { heads, way })
    }

    /// Where tokens stand in the attention, if that has padding or copies.
    pub(crate) fn places(&self) -> Option<&Places> {
        match &self.way {
            Way::Long(long) => long.places(),
            Way::Packed(_) | Way::Pieces { .. } => None,
        }
    }

    /// Attends.
    ///
    /// # Shapes
    /// - `qkv`: `[.., h + 2 k, d]`, in the rows of the attention; the output is in those of the pass, `[t, h, d]`
    pub(crate) fn forward(
        &self,
        qkv: &Tensor,
        fused: Option<&Fused>,
    ) -> Result<Attended, ModelError> {
        let parts = self.heads.split(qkv);
        match &self.way {
            Way::Long(long) => long.forward(qkv, self.heads, fused),
            Way::Packed(flash) => flash.forward(&parts, fused),
            Way::Pieces {
                own,
                shared,
                kernel,
            } => Ok(self.forward_pieces(&parts, own, shared, *kernel)),
        }
    }

    /// The gradient of queries, keys and values.
    ///
    /// # Shapes
    /// - `qkv`: as in [`Packing::forward`]; `gradient`: of the output, `[t, h, d]`
    ///
    /// # Errors
    /// When a GPU refuses.
    pub(crate) fn backward(
        &self,
        qkv: &Tensor,
        attended: &Attended,
        gradient: &Tensor,
        fused: Option<&Fused>,
    ) -> Result<Flows, ModelError> {
        let parts = self.heads.split(qkv);
        Ok(match &self.way {
            Way::Long(long) => {
                Flows::Apart(long.backward(qkv, self.heads, attended, gradient, fused)?)
            }
            Way::Packed(flash) => Flows::Apart(flash.backward(&parts, attended, gradient)),
            Way::Pieces {
                own,
                shared,
                kernel,
            } => {
                let whole = qkv.empty_like();
                let targets = self.heads.split(&whole);
                let pieces = own.iter().map(|take| (take, take, true));
                let shared = shared.iter().map(|(queries, keys)| (queries, keys, false));
                for (queries, keys, is_own) in pieces.chain(shared) {
                    self.piece_backward(
                        &parts, &targets, attended, gradient, queries, keys, is_own, *kernel,
                    );
                }
                Flows::Together(whole)
            }
        })
    }

    fn forward_pieces(
        &self,
        [queries, keys, values]: &[Tensor; 3],
        own: &[Take],
        shared: &[(Take, Take)],
        kernel: Kernel,
    ) -> Attended {
        let Heads { query, key, .. } = self.heads;
        let kind = if queries.kind() == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        };
        let out = queries.empty_like();
        let logsumexp = Tensor::empty([queries.size()[0], query, 1], (kind, queries.device()));
        for take in own {
            let (part, sums) = kernel.forward(
                &take.fold(queries, key),
                &take.fold_shared(keys, self.heads),
                &take.fold_shared(values, self.heads),
                true,
            );
            take.put(&out, &part, key);
            take.put(&logsumexp, &sums.unsqueeze(-1), key);
        }
        for (from, to) in shared {
            let (part, sums) = kernel.forward(
                &from.fold(queries, key),
                &to.fold_shared(keys, self.heads),
                &to.fold_shared(values, self.heads),
                false,
            );
            let (mut out, mut old) = (from.rows(&out), from.rows(&logsumexp));
            let (part, sums) = (unfold(&part, key), unfold(&sums.unsqueeze(-1), key));
            let joined = old.logaddexp(&sums);
            let mixed = &out * (&old - &joined).exp() + part * (sums - &joined).exp();
            out.copy_(&mixed);
            old.copy_(&joined);
        }
        Attended {
            out,
            logsumexp,
            state: Vec::new(),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the tensors of one attention and their gradients"
    )]
    fn piece_backward(
        &self,
        [queries, keys, values]: &[Tensor; 3],
        [d_queries, d_keys, d_values]: &[Tensor; 3],
        attended: &Attended,
        gradient: &Tensor,
        from: &Take,
        to: &Take,
        is_own: bool,
        kernel: Kernel,
    ) {
        let key = self.heads.key;
        let [d_query, d_key, d_value] = kernel.backward(
            &from.fold_gradient(gradient, key),
            &from.fold(queries, key),
            &to.fold_shared(keys, self.heads),
            &to.fold_shared(values, self.heads),
            &from.fold(&attended.out, key),
            &from.fold(&attended.logsumexp, key).squeeze_dim(-1),
            is_own,
        );
        // Query heads that share a key head add up.
        let summed = |x: Tensor| {
            if x.size()[1] == 1 {
                x
            } else {
                x.sum_dim_intlist(1, true, None::<Kind>)
            }
        };
        let (d_key, d_value) = (summed(d_key), summed(d_value));
        if is_own {
            // Every token is in one such piece.
            from.put(d_queries, &d_query, key);
            to.put(d_keys, &d_key, key);
            to.put(d_values, &d_value, key);
        } else {
            let add = |take: &Take, target: &Tensor, source: &Tensor| {
                drop(take.rows(target).g_add_(&unfold(source, key)));
            };
            add(from, d_queries, &d_query);
            add(to, d_keys, &d_key);
            add(to, d_values, &d_value);
        }
    }
}
