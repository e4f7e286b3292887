//! Prompts of a running stage, tokenised side by side; every distinct image is preprocessed once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use engine_core::policy::{PatchedImage, TokenizedPrompt};
use engine_core::{OperatorError, StageIo};
use rayon::prelude::*;

use super::Processor;
use crate::prompt_rows::PromptRow;

/// Patches kept for prompts to come, in bytes. Above it, they are preprocessed again when needed.
const CACHED_PATCH_BYTES: usize = 1 << 30;

/// Tokenises prompts and remembers their images.
#[derive(Debug)]
pub struct PromptEncoder {
    processor: Processor,
    images: HashMap<String, Arc<PatchedImage>>,
    cached_bytes: usize,
}

impl PromptEncoder {
    /// An encoder without remembered images.
    #[must_use]
    pub fn new(processor: Processor) -> Self {
        Self {
            processor,
            images: HashMap::new(),
            cached_bytes: 0,
        }
    }

    /// The processor it uses.
    #[must_use]
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Tokenises prompts, in their order.
    ///
    /// # Errors
    /// When an image or a conversation cannot be used; the message names the prompt.
    pub fn encode(
        &mut self,
        rows: &[&PromptRow],
        io: &dyn StageIo,
    ) -> Result<Vec<Arc<TokenizedPrompt>>, OperatorError> {
        self.load_images(rows, io)?;
        let tokenise = |row: &&PromptRow| {
            let images = row
                .image_digests()
                .map(|digest| Arc::clone(&self.images[digest]))
                .collect();
            let prompt = self.processor.tokenize(&row.messages, images);
            prompt.map(Arc::new).map_err(|message| row.fault(&message))
        };
        rows.par_iter().map(tokenise).collect()
    }

    fn load_images(&mut self, rows: &[&PromptRow], io: &dyn StageIo) -> Result<(), OperatorError> {
        if self.cached_bytes > CACHED_PATCH_BYTES {
            self.images.clear();
            self.cached_bytes = 0;
        }
        let mut wanted = BTreeSet::new();
        let mut files = Vec::new();
        for row in rows {
            for digest in row.image_digests() {
                if !self.images.contains_key(digest) && wanted.insert(digest) {
                    files.push((*row, digest, io.media(digest)?));
                }
            }
        }
        let patched: Result<Vec<(String, Arc<PatchedImage>)>, OperatorError> = files
            .par_iter()
            .map(|(row, digest, bytes)| {
                let image = self.processor.patches(bytes);
                let image =
                    image.map_err(|message| row.fault(&format!("image {digest}: {message}")))?;
                Ok(((*digest).to_owned(), Arc::new(image)))
            })
            .collect();
        for (digest, image) in patched? {
            self.cached_bytes += image.patches.len() * size_of::<f32>();
            self.images.insert(digest, image);
        }
        Ok(())
    }
}
