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
        let starts: Vec<i64> = (0..prompts.len())
            .map(|row| (row * padded) as i64)
            .collect();
        let Some((vision, placed)) = self.place_images(prompts, &starts) else {
            return (x_tw, None);
        };
        let features = vision.encode_all(&placed.images, self.kind, self.device);
        placed.splice(&x_tw, &features)
    }

    /// Finds the images of prompts and where they go; `starts` are the rows of the prompts' first tokens. None without images.
    pub(crate) fn place_images(
        &self,
        prompts: &[Arc<TokenizedPrompt>],
        starts: &[i64],
    ) -> Option<(&Vision, PlacedImages)> {
        let vision = self.vision.as_ref()?;
        let mut images: Vec<Arc<PatchedImage>> = Vec::new();
        let mut firsts: Vec<i64> = Vec::new();
        let mut count = 0;
        let (mut rows, mut sources) = (Vec::new(), Vec::new());
        for (prompt, start) in prompts.iter().zip(starts) {
            let placeholders = prompt.token_ids.iter().enumerate();
            let placeholders = placeholders.filter(|(_, id)| **id == vision.config.image_token_id);
            rows.extend(placeholders.map(|(place, _)| start + place as i64));
            for image in &prompt.images {
                let known = images.iter().position(|other| Arc::ptr_eq(other, image));
                let known = known.unwrap_or_else(|| {
                    images.push(Arc::clone(image));
                    firsts.push(count);
                    count += vision.merged_patches(image);
                    images.len() - 1
                });
                sources.extend(firsts[known]..firsts[known] + vision.merged_patches(image));
            }
        }
        let is_plain = (sources.iter().enumerate()).all(|(place, source)| place as i64 == *source);
        let placed = PlacedImages {
            rows: indices(&rows, self.device),
            sources: (!is_plain).then(|| indices(&sources, self.device)),
            count,
            images,
        };
        (!placed.images.is_empty()).then_some((vision, placed))
    }
}

/// Images of some prompts and where they go.
#[derive(Debug)]
pub(crate) struct PlacedImages {
    /// Distinct ones.
    pub(crate) images: Vec<Arc<PatchedImage>>,
    /// Rows of the placeholders.
    rows: Tensor,
    /// Merged patch of each placeholder among those of the distinct images; None where they are in order, once each.
    sources: Option<Tensor>,
    /// Merged patches of the distinct images.
    count: i64,
}

impl PlacedImages {
    /// Puts features where the placeholders are, and says what is to be added to them after the first layers.
    pub(crate) fn splice(&self, x_tw: &Tensor, features: &Features) -> (Tensor, Option<Additions>) {
        let all;
        let features = match &self.sources {
            Some(sources) => {
                all = features.select(sources);
                &all
            }
            None => features,
        };
        let x = x_tw.index_copy(0, &self.rows, &features.embeddings);
        let additions = (!features.deep.is_empty()).then(|| Additions {
            rows: self.rows.shallow_clone(),
            layers: features.deep.iter().map(Tensor::shallow_clone).collect(),
        });
        (x, additions)
    }

    /// The gradient of the features for that of all rows.
    pub(crate) fn gathered(&self, d_x_tw: &Tensor) -> Tensor {
        let rows = d_x_tw.index_select(0, &self.rows);
        match &self.sources {
            Some(sources) => {
                Tensor::zeros([self.count, rows.size()[1]], (rows.kind(), rows.device()))
                    .index_add(0, sources, &rows)
            }
            None => rows,
        }
    }

    /// Takes the gradient away from rows whose embeddings were replaced.
    pub(crate) fn clear(&self, mut d_x_tw: Tensor) -> Tensor {
        d_x_tw.index_fill_(0, &self.rows, 0.0)
    }
}
