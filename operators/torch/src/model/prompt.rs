//! Prompts through the model: validation, images in place of placeholders, and one pass over a padded batch.
//!
//! Shapes: `p` prompts, `l` tokens of the longest, `m` merged patches, `w` model width.

use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{PatchedImage, TokenizedPrompt};
use tch::Tensor;

use super::attention::{KeyValue, Prefill};
use super::language::Additions;
use super::position::{Positions, assign, plain};
use super::rope::language_rope;
use super::tower::{Features, Vision};
use super::{Model, indices};

/// Patches that go through the tower together; bounds its memory.
const TOWER_PATCHES: usize = 1 << 15;

/// A batch of prompts after their pass.
#[derive(Debug)]
pub(crate) struct Prefilled {
    /// Outputs of the last norm, `[p * l, w]`.
    pub(crate) hidden: Tensor,
    /// Tokens of the longest prompt.
    pub(crate) padded: i64,
    /// Tokens of each prompt.
    pub(crate) lengths: Vec<i64>,
    /// Position of the first token after each prompt.
    pub(crate) next: Vec<i64>,
    /// Keys and values of each layer.
    pub(crate) layers: Vec<KeyValue>,
}

impl Prefilled {
    /// Row of `hidden` that predicts the first token after prompt `prompt`.
    pub(crate) fn last_row(&self, prompt: usize) -> i64 {
        prompt as i64 * self.padded + self.lengths[prompt] - 1
    }
}

impl Model {
    /// Checks a prompt against the model and gives its positions.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an empty prompt, an unknown token, images that do not fit their placeholders or the model, or a
    /// prompt that leaves no room for `room` more tokens.
    pub(crate) fn check_prompt(
        &self,
        prompt: &TokenizedPrompt,
        room: usize,
    ) -> Result<Positions, ModelError> {
        if prompt.token_ids.is_empty() {
            return Err(ModelError::Input("the prompt has no tokens".to_owned()));
        }
        self.check_tokens(&prompt.token_ids)?;
        let limit = self.config.text.max_positions;
        if prompt.token_ids.len() + room > limit {
            return Err(ModelError::Input(format!(
                "a prompt of {} tokens and {room} more do not fit the {limit} positions of the model",
                prompt.token_ids.len()
            )));
        }
        match &self.vision {
            Some(vision) => {
                let grids = prompt
                    .images
                    .iter()
                    .map(|image| vision.merged_grid(image))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(ModelError::Input)?;
                assign(&prompt.token_ids, vision.config.image_token_id, &grids)
                    .map_err(ModelError::Input)
            }
            None if prompt.images.is_empty() => Ok(plain(prompt.token_ids.len())),
            None => Err(ModelError::Input(format!(
                "the prompt has {} images, but `{}` is a model of text alone",
                prompt.images.len(),
                self.config.family.name()
            ))),
        }
    }

    /// Checks that every token has a row in the embedding table.
    ///
    /// # Errors
    /// [`ModelError::Input`] with the first that has none.
    pub(crate) fn check_tokens(&self, ids: &[u32]) -> Result<(), ModelError> {
        match ids
            .iter()
            .find(|id| i64::from(**id) >= self.config.text.vocab)
        {
            Some(id) => Err(ModelError::Input(format!(
                "token {id} is not below vocab_size {}; the tokenizer belongs to another model",
                self.config.text.vocab
            ))),
            None => Ok(()),
        }
    }

    /// Runs prompts, padded on the right. `positions` are those of [`Model::check_prompt`].
    pub(crate) fn prefill(
        &self,
        prompts: &[Arc<TokenizedPrompt>],
        positions: &[Positions],
    ) -> Prefilled {
        let longest = prompts
            .iter()
            .map(|prompt| prompt.token_ids.len())
            .max()
            .unwrap_or(0);
        let mut ids = Vec::with_capacity(prompts.len() * longest);
        let mut places = Vec::with_capacity(prompts.len() * longest);
        for (prompt, positions) in prompts.iter().zip(positions) {
            ids.extend(prompt.token_ids.iter().map(|id| i64::from(*id)));
            places.extend_from_slice(&positions.tokens);
            // What stands in the padding is never attended to.
            let end = ids.len().next_multiple_of(longest);
            ids.resize(end, 0);
            places.resize(end, [0; 3]);
        }
        let rope = language_rope(&self.config.text, &places, self.kind, self.device);
        let embedded = self.language.embed(&indices(&ids, self.device));
        let (x, additions) = self.splice_images(embedded, prompts, longest);
        let mut attend = Prefill::new(prompts.len() as i64);
        let hidden = self
            .language
            .run_with(x, &rope, &mut attend, additions.as_ref());
        Prefilled {
            hidden,
            padded: longest as i64,
            lengths: prompts
                .iter()
                .map(|prompt| prompt.token_ids.len() as i64)
                .collect(),
            next: positions.iter().map(|positions| positions.next).collect(),
            layers: attend.kept,
        }
    }

    /// Puts image features where the placeholders are, and says what is to be added to them after the first layers.
    ///
    /// # Shapes
    /// - `x_tw`: `[p * l, w]`, prompt `i` from row `i * padded` on; and so is the result
    pub(crate) fn splice_images(
        &self,
        x_tw: Tensor,
        prompts: &[Arc<TokenizedPrompt>],
        padded: usize,
    ) -> (Tensor, Option<Additions>) {
        let Some(vision) = &self.vision else {
            return (x_tw, None);
        };
        let mut unique: Vec<Arc<PatchedImage>> = Vec::new();
        let mut starts: Vec<i64> = Vec::new();
        let mut encoded = 0;
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        for (row, prompt) in prompts.iter().enumerate() {
            let placeholders = prompt.token_ids.iter().enumerate();
            let placeholders = placeholders.filter(|(_, id)| **id == vision.config.image_token_id);
            targets.extend(placeholders.map(|(place, _)| (row * padded + place) as i64));
            for image in &prompt.images {
                let known = unique.iter().position(|other| Arc::ptr_eq(other, image));
                let known = known.unwrap_or_else(|| {
                    unique.push(Arc::clone(image));
                    starts.push(encoded);
                    encoded += vision.merged_patches(image);
                    unique.len() - 1
                });
                sources.extend(starts[known]..starts[known] + vision.merged_patches(image));
            }
        }
        if unique.is_empty() {
            return (x_tw, None);
        }
        let mut features = self.encode_images(vision, &unique);
        if sources
            .iter()
            .enumerate()
            .any(|(place, source)| place as i64 != *source)
        {
            features = features.select(&indices(&sources, self.device));
        }
        let rows = indices(&targets, self.device);
        let x = x_tw.index_copy(0, &rows, &features.embeddings);
        let layers = features.deep;
        let additions = (!layers.is_empty()).then_some(Additions { rows, layers });
        (x, additions)
    }

    /// Features of images, one after the other, in passes of bounded size.
    fn encode_images(&self, vision: &Vision, images: &[Arc<PatchedImage>]) -> Features {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < images.len() {
            let mut end = start;
            let mut patches = 0;
            while end < images.len() && (end == start || patches < TOWER_PATCHES) {
                patches += images[end].grid_thw.iter().product::<usize>();
                end += 1;
            }
            parts.push(vision.encode(&images[start..end], self.kind, self.device));
            start = end;
        }
        if parts.len() == 1 {
            parts.swap_remove(0)
        } else {
            Features::cat(&parts)
        }
    }
}
