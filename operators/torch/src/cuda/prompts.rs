//! Prompts through the layers, packed into chunks of a fixed number of rows.
//!
//! A chunk has a fixed number of rows, chosen from the length of its prompts alone, because the low bits of a matrix product
//! depend on how many rows it has; what else is in a chunk does not sway them. A prompt that is longer than the largest chunk goes
//! through in several, each over the keys and values of those before it.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::Gpu;
use super::aten::Packed;
use super::driver::address;
use super::forward::Products;
use super::kernels::PAGE;
use super::memory::{CHUNK, Memory};
use super::sequence::Prompt;
use super::upload::Uploads;
use crate::device::upload;
use crate::model::language::Additions;
use crate::model::{Model, indices};

/// Rows of the smallest chunk.
const SMALLEST_CHUNK: usize = 512;
/// Prompts that a chunk has room for, at least, when they are shorter than the largest chunk allows.
const PROMPTS_IN_CHUNK: usize = 4;

/// Rows of the chunks that a prompt of this length goes through in.
pub(super) fn chunk_rows(tokens: usize) -> usize {
    (tokens.next_power_of_two() * PROMPTS_IN_CHUNK).clamp(SMALLEST_CHUNK, CHUNK as usize)
}

/// Groups of prompts that go through in one chunk: those of equal chunk size, in their order.
pub(super) fn pack(lengths: &[(usize, usize)]) -> Vec<(usize, Vec<usize>)> {
    let mut groups: Vec<(usize, usize, Vec<usize>)> = Vec::new();
    for (prompt, tokens) in lengths {
        let rows = chunk_rows(*tokens);
        let open = groups
            .iter_mut()
            .find(|(size, used, _)| *size == rows && used + tokens <= rows);
        match open {
            Some((_, used, members)) => {
                *used += tokens;
                members.push(*prompt);
            }
            None => groups.push((rows, *tokens, vec![*prompt])),
        }
    }
    groups
        .into_iter()
        .map(|(rows, _, members)| (rows, members))
        .collect()
}

/// Keys and values of the earlier chunks of a long prompt, layer by layer.
struct Past {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

/// A piece of a prompt in a chunk.
struct Piece<'a> {
    prompt: &'a Prompt,
    start: usize,
    tokens: usize,
}

impl Gpu {
    /// Runs prompts whose pages are taken; gives the state that predicts the first token of each, `[p, w]`.
    ///
    /// # Errors
    /// On a device error.
    pub(super) fn run_prompts(
        &mut self,
        model: &Model,
        memory: &Memory,
        uploads: &mut Uploads,
        rows: usize,
        prompts: &[&Prompt],
    ) -> Result<Tensor, ModelError> {
        let products = self.prepare(&model.config.text, rows as i64)?;
        let embedded: Vec<(Tensor, Option<Additions>)> =
            prompts.iter().map(|prompt| embed(model, prompt)).collect();
        if let ([prompt], [(rows_of_prompt, additions)]) = (prompts, &embedded[..])
            && prompt.source.token_ids.len() > rows
        {
            return self.run_long(
                model,
                memory,
                uploads,
                &products,
                prompt,
                (rows_of_prompt, additions.as_ref()),
            );
        }
        let mut start = 0;
        let mut additions = Vec::new();
        for (prompt, (rows_of_prompt, extra)) in prompts.iter().zip(&embedded) {
            let tokens = prompt.source.token_ids.len() as i64;
            memory.x.narrow(0, start, tokens).copy_(rows_of_prompt);
            additions.extend(extra.as_ref().map(|extra| (start, extra)));
            start += tokens;
        }
        let pieces: Vec<Piece<'_>> = prompts
            .iter()
            .map(|prompt| Piece {
                prompt,
                start: 0,
                tokens: prompt.source.token_ids.len(),
            })
            .collect();
        self.run_chunk(model, memory, uploads, &products, &pieces, &additions, None)
    }

    fn run_long(
        &self,
        model: &Model,
        memory: &Memory,
        uploads: &mut Uploads,
        products: &Products,
        prompt: &Prompt,
        (embedded, additions): (&Tensor, Option<&Additions>),
    ) -> Result<Tensor, ModelError> {
        let text = &model.config.text;
        let total = prompt.source.token_ids.len();
        let options = (Kind::BFloat16, model.device);
        let empty = || Tensor::empty([total as i64, text.key_heads, text.head_dim], options);
        let past = Past {
            keys: (0..text.layers).map(|_| empty()).collect(),
            values: (0..text.layers).map(|_| empty()).collect(),
        };
        let rows = products.qkv.rows as usize;
        let mut last = None;
        for start in (0..total).step_by(rows) {
            let tokens = rows.min(total - start);
            memory.x.narrow(0, 0, tokens as i64).copy_(&embedded.narrow(
                0,
                start as i64,
                tokens as i64,
            ));
            let part = additions.map(|all| within(all, start as i64, tokens as i64));
            let additions: Vec<(i64, &Additions)> = part.iter().map(|part| (0, part)).collect();
            let piece = Piece {
                prompt,
                start,
                tokens,
            };
            last = Some(self.run_chunk(
                model,
                memory,
                uploads,
                products,
                &[piece],
                &additions,
                Some(&past),
            )?);
        }
        last.ok_or_else(|| ModelError::Input("the prompt has no tokens".to_owned()))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one pass, each of another kind"
    )]
    fn run_chunk(
        &self,
        model: &Model,
        memory: &Memory,
        uploads: &mut Uploads,
        products: &Products,
        pieces: &[Piece<'_>],
        additions: &[(i64, &Additions)],
        past: Option<&Past>,
    ) -> Result<Tensor, ModelError> {
        let (stream, rows) = (&self.stream, products.qkv.rows);
        let used: i64 = pieces.iter().map(|piece| piece.tokens as i64).sum();
        uploads.words(
            stream,
            &memory.chunk_words,
            0,
            &chunk_words(pieces, rows as usize),
        )?;
        uploads.turn(stream)?;
        let positions = address(&memory.chunk_words);
        let places = positions + 4 * 3 * rows as u64;
        self.kernels.rotary_table(
            stream,
            rows,
            positions,
            [&memory.inverse, &memory.axes, &memory.turns],
        )?;
        let starts = Starts::of(pieces, model);
        let language = &model.language;
        let width = language.config.heads * language.config.head_dim;
        let mut in_stream = true;
        for (index, layer) in language.layers.iter().enumerate() {
            if in_stream {
                self.kernels.only_norm(
                    stream,
                    rows,
                    [&memory.x, &layer.input_norm, &memory.normed],
                )?;
            } else {
                let tensors = [&memory.added, &memory.x, &layer.input_norm, &memory.normed];
                self.kernels.add_norm(stream, rows, tensors)?;
            }
            self.project(products, layer, memory)?;
            self.kernels.rotate_store(
                stream,
                rows,
                [&memory.qkv, &memory.turns],
                [&memory.keys[index], &memory.values[index]],
                [&layer.qkv_bias, &layer.q_norm, &layer.k_norm],
                places,
            )?;
            let attended = self.attend_chunk(model, memory, &starts, (used, index), past)?;
            memory
                .attended
                .narrow(0, 0, used)
                .copy_(&attended.view_as(&memory.attended.narrow(0, 0, used)));
            debug_assert_eq!(attended.numel() as i64, used * width);
            self.mix(products, layer, memory)?;
            in_stream = add_features(memory, additions, index, used);
        }
        let last = [&memory.added, &memory.x, &language.norm, &memory.normed];
        if in_stream {
            self.kernels
                .only_norm(stream, rows, [last[1], last[2], last[3]])?;
        } else {
            self.kernels.add_norm(stream, rows, last)?;
        }
        Ok(memory.normed.index_select(0, &starts.last))
    }

    /// Attention of a chunk in layer `index`: `[used, h, d]`.
    fn attend_chunk(
        &self,
        model: &Model,
        memory: &Memory,
        starts: &Starts,
        (used, index): (i64, usize),
        past: Option<&Past>,
    ) -> Result<Tensor, ModelError> {
        let text = &model.config.text;
        let qkv = memory.qkv.narrow(0, 0, used);
        let queries = qkv.narrow(1, 0, text.heads);
        let keys = qkv.narrow(1, text.heads, text.key_heads);
        let values = qkv.narrow(1, text.heads + text.key_heads, text.key_heads);
        let (keys, values) = match past {
            None => (keys, values),
            Some(past) => {
                let end = starts.longest_key;
                let kept = |past: &Tensor, new: &Tensor| {
                    past.narrow(0, end - used, used).copy_(new);
                    past.narrow(0, 0, end)
                };
                (
                    kept(&past.keys[index], &keys),
                    kept(&past.values[index], &values),
                )
            }
        };
        self.aten.flash_attention(&Packed {
            queries: &queries,
            keys: &keys,
            values: &values,
            query_starts: &starts.queries,
            key_starts: &starts.keys,
            longest_query: starts.longest_query,
            longest_key: starts.longest_key,
        })
    }
}

/// Where the pieces of a chunk begin.
struct Starts {
    queries: Tensor,
    keys: Tensor,
    longest_query: i64,
    longest_key: i64,
    /// Last row of each piece.
    last: Tensor,
}

impl Starts {
    fn of(pieces: &[Piece<'_>], model: &Model) -> Self {
        let (mut queries, mut keys, mut last) = (vec![0_i32], vec![0_i32], Vec::new());
        let (mut row, mut key) = (0, 0);
        for piece in pieces {
            row += piece.tokens;
            key += piece.start + piece.tokens;
            queries.push(row as i32);
            keys.push(key as i32);
            last.push(row as i64 - 1);
        }
        let words = |values: &[i32]| upload(values, model.device);
        let longest =
            |length: fn(&Piece<'_>) -> usize| pieces.iter().map(length).max().unwrap_or(0) as i64;
        Self {
            queries: words(&queries),
            keys: words(&keys),
            longest_query: longest(|piece| piece.tokens),
            longest_key: longest(|piece| piece.start + piece.tokens),
            last: indices(&last, model.device),
        }
    }
}

/// Embedded tokens of a prompt with its images in place, `[t, w]`, and what is added after the first layers.
fn embed(model: &Model, prompt: &Prompt) -> (Tensor, Option<Additions>) {
    let ids: Vec<i64> = prompt
        .source
        .token_ids
        .iter()
        .map(|id| i64::from(*id))
        .collect();
    let rows = model.language.embed(&indices(&ids, model.device));
    if prompt.source.images.is_empty() {
        return (rows, None);
    }
    model.splice_images(rows, std::slice::from_ref(&prompt.source), ids.len())
}

/// Additions to some of the rows, counted from there.
fn within(all: &Additions, start: i64, tokens: i64) -> Additions {
    let inside = all
        .rows
        .ge(start)
        .logical_and(&all.rows.lt(start + tokens))
        .nonzero()
        .squeeze_dim(1);
    Additions {
        rows: all.rows.index_select(0, &inside) - start,
        layers: all
            .layers
            .iter()
            .map(|layer| layer.index_select(0, &inside))
            .collect(),
    }
}

/// Adds features of images after a layer; says whether the layer's output is in the stream now.
fn add_features(memory: &Memory, additions: &[(i64, &Additions)], layer: usize, used: i64) -> bool {
    let here: Vec<_> = additions
        .iter()
        .filter_map(|(start, all)| {
            Some((all.rows.shallow_clone() + *start, all.layers.get(layer)?))
        })
        .collect();
    if here.is_empty() {
        return false;
    }
    let mut x = memory.x.narrow(0, 0, used);
    x += &memory.added.narrow(0, 0, used);
    for (rows, features) in here {
        drop(x.index_add_(0, &rows, &features.to_kind(Kind::Float)));
    }
    true
}

/// Positions along the three axes and places in the cache of a chunk's rows, `[3, rows]` and `[rows]`.
fn chunk_words(pieces: &[Piece<'_>], rows: usize) -> Vec<i32> {
    let mut words = vec![0; 4 * rows];
    words[3 * rows..].fill(-1);
    let mut row = 0;
    for piece in pieces {
        for token in piece.start..piece.start + piece.tokens {
            for axis in 0..3 {
                words[axis * rows + row] = piece.prompt.positions.tokens[token][axis] as i32;
            }
            let page = piece.prompt.pages[token / PAGE];
            words[3 * rows + row] = page * PAGE as i32 + (token % PAGE) as i32;
            row += 1;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_packed_by_its_own_length() {
        assert_eq!(
            [chunk_rows(1), chunk_rows(128), chunk_rows(129)],
            [512, 512, 1024]
        );
        assert_eq!([chunk_rows(600), chunk_rows(40_000)], [2048, 2048]);
        let packed = pack(&[
            (0, 100),
            (1, 2000),
            (2, 128),
            (3, 128),
            (4, 128),
            (5, 100),
            (6, 5000),
        ]);
        assert_eq!(
            packed,
            [
                (512, vec![0, 2, 3, 4]),
                (2048, vec![1]),
                (512, vec![5]),
                (2048, vec![6])
            ]
        );
    }
}
