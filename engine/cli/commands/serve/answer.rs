//! One answer while it comes: tokens on one side, text that can be shown on the other.

use engine_core::policy::{FinishReason, SessionToken};
use operators_model::processor::{Processor, StopFilter, StopStrings, TextStream};

/// A token with what is told about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenInfo {
    pub(super) id: u32,
    pub(super) logprob: f32,
    pub(super) top: Vec<(u32, f32)>,
    /// The character of the answer's text at which its own text begins.
    pub(super) offset: usize,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    stream: Option<TextStream<'a>>,
    filter: Option<StopFilter>,
    /// Tokens that were not told yet.
    fresh: Vec<TokenInfo>,
    /// Tokens so far.
    pub(super) tokens: usize,
    characters: usize,
    pub(super) finish: Option<FinishReason>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(processor: &'a Processor, stops: &StopStrings) -> Self {
        Self {
            stream: Some(TextStream::new(processor)),
            filter: Some(StopFilter::new(stops.clone())),
            fresh: Vec::new(),
            tokens: 0,
            characters: 0,
            finish: None,
        }
    }

    /// Takes a token and returns the text that can be shown now. The answer may have ended then, at a stop string too.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails; a lower-case fragment.
    pub(super) fn push(&mut self, token: SessionToken) -> Result<String, String> {
        self.fresh.push(TokenInfo {
            id: token.token,
            logprob: token.logprob,
            top: token.top,
            offset: self.characters,
        });
        self.tokens += 1;
        let (Some(stream), Some(filter)) = (&mut self.stream, &mut self.filter) else {
            return Ok(String::new());
        };
        // The token that ended it is no part of what was said.
        let is_end = token.finish == Some(FinishReason::Stop);
        let mut text = String::new();
        if !is_end {
            let said = stream.push(token.token)?;
            self.characters += said.chars().count();
            text = filter.push(&said);
        }
        if filter.is_stopped() {
            self.finish = Some(FinishReason::Stop);
        } else if token.finish.is_some() {
            let last = self.stream.take().map(TextStream::finish);
            text.push_str(&filter.push(&last.unwrap_or_default()));
            // The held-back bytes at its end may have completed a stop string.
            self.finish = if filter.is_stopped() {
                Some(FinishReason::Stop)
            } else {
                token.finish
            };
        }
        if self.finish.is_some() {
            self.stream = None;
            text.push_str(
                &self
                    .filter
                    .take()
                    .map(StopFilter::finish)
                    .unwrap_or_default(),
            );
        }
        Ok(text)
    }

    /// The tokens since the last call.
    pub(super) fn take_fresh(&mut self) -> Vec<TokenInfo> {
        std::mem::take(&mut self.fresh)
    }
}
