//! Prompts of a running stage, tokenised side by side; every distinct image is preprocessed once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine_core::policy::{PatchedImage, TokenizedPrompt};
use engine_core::{OperatorError, StageView};
use rayon::prelude::*;

use super::Processor;
use crate::prompt_rows::PromptRow;

/// Patches kept for prompts to come, in bytes. Above it, they are preprocessed again when needed.
const CACHED_PATCH_BYTES: usize = 1 << 30;

/// Tokenises prompts and remembers their images.
#[derive(Debug)]
pub struct PromptEncoder {
    processor: Arc<Processor>,
    images: HashMap<String, Arc<PatchedImage>>,
    cached_bytes: usize,
}

impl PromptEncoder {
    /// An encoder without remembered images.
    #[must_use]
    pub fn new(processor: impl Into<Arc<Processor>>) -> Self {
        Self {
            processor: processor.into(),
            images: HashMap::new(),
            cached_bytes: 0,
        }
    }

    /// The processor it uses.
    #[must_use]
    pub fn processor(&self) -> &Arc<Processor> {
        &self.processor
    }

    /// Tokenises prompts, in their order.
    ///
    /// # Errors
    /// When an image or a conversation cannot be used; the message names the prompt.
    pub fn encode(
        &mut self,
        rows: &[&PromptRow],
        view: &dyn StageView,
    ) -> Result<Vec<Arc<TokenizedPrompt>>, OperatorError> {
        self.encode_each(rows, view)?.into_iter().collect()
    }

    /// Tokenises prompts, in their order, each with a result of its own: an image or a conversation that cannot be used
    /// spoils no other prompt. The error of a prompt names it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn encode_each(
        &mut self,
        rows: &[&PromptRow],
        view: &dyn StageView,
    ) -> Result<Vec<Result<Arc<TokenizedPrompt>, OperatorError>>, OperatorError> {
        let refused = self.load_images(rows, view)?;
        let tokenise = |row: &&PromptRow| {
            let image = |digest: &str| match self.images.get(digest) {
                Some(image) => Ok(Arc::clone(image)),
                None => {
                    let reason = refused.get(digest).map_or("not loaded", String::as_str);
                    Err(row.fault(&format!("image {digest}: {reason}")))
                }
            };
            let images: Vec<Arc<PatchedImage>> =
                row.image_digests().map(image).collect::<Result<_, _>>()?;
            let prompt = self.processor.tokenize(&row.messages, images);
            prompt.map(Arc::new).map_err(|message| row.fault(&message))
        };
        Ok(rows.par_iter().map(tokenise).collect())
    }

    /// Preprocesses the images that are not known yet. Returns why some could not be, by digest.
    fn load_images(
        &mut self,
        rows: &[&PromptRow],
        view: &dyn StageView,
    ) -> Result<BTreeMap<String, String>, OperatorError> {
        if self.cached_bytes > CACHED_PATCH_BYTES {
            self.images.clear();
            self.cached_bytes = 0;
        }
        let wanted: BTreeSet<&str> = rows
            .iter()
            .flat_map(|row| row.image_digests())
            .filter(|digest| !self.images.contains_key(*digest))
            .collect();
        let files: Vec<(&str, Vec<u8>)> = wanted
            .into_iter()
            .map(|digest| Ok((digest, view.media(digest)?)))
            .collect::<Result<_, OperatorError>>()?;
        let patched: Vec<(&str, Result<PatchedImage, String>)> = files
            .par_iter()
            .map(|(digest, bytes)| (*digest, self.processor.patches(bytes)))
            .collect();
        let mut refused = BTreeMap::new();
        for (digest, image) in patched {
            match image {
                Ok(image) => {
                    self.cached_bytes += image.patches.len() * size_of::<f32>();
                    self.images.insert(digest.to_owned(), Arc::new(image));
                }
                Err(reason) => {
                    refused.insert(digest.to_owned(), reason);
                }
            }
        }
        Ok(refused)
    }
}
