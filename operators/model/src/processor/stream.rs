//! Text of a completion while its tokens still come: whole characters only, and nothing of a stop string.

use std::ops::Range;

use super::Processor;

/// What a decoder writes for bytes that are no text, or not yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Tokens that may pass before a character is whole, less the last: a character has four bytes at most, and tokens of
/// one byte are the shortest.
const CHARACTER_TOKENS: usize = 3;

/// Tokens decoded together at most. Only a run of bytes that never become text gets this long.
const WINDOW_TOKENS: usize = 64;

/// Turns token ids into text, one at a time. A character whose bytes are spread over several tokens comes with the last
/// of them, so what is returned is always valid text. All pieces joined are what [`Processor::decode`] makes of all tokens.
#[derive(Debug)]
pub struct TextStream<'a> {
    processor: &'a Processor,
    /// The tokens of the last text that was returned, because decoders look at the token before, and those after it.
    window: Vec<u32>,
    /// How many tokens of the window have been returned in full.
    settled: usize,
    /// The part of the window's text that has been returned.
    returned: String,
}

impl<'a> TextStream<'a> {
    /// A stream at the beginning of a completion.
    #[must_use]
    pub fn new(processor: &'a Processor) -> Self {
        Self {
            processor,
            window: Vec::new(),
            settled: 0,
            returned: String::new(),
        }
    }

    /// Takes the next token and returns the text that it completes, which may be empty. Special tokens have no text.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails; a lower-case fragment.
    pub fn push(&mut self, token: u32) -> Result<String, String> {
        if self.processor.is_silent(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let text = self.processor.decode(&self.window)?;
        let pending = self.window.len() - self.settled;
        let certain = if self.window.len() >= WINDOW_TOKENS {
            text.len()
        } else if pending <= CHARACTER_TOKENS {
            text.trim_end_matches(REPLACEMENT).len()
        } else {
            // Only the bytes at the very end can still become a character.
            text.strip_suffix(REPLACEMENT).unwrap_or(&text).len()
        };
        let delta = self.rest(&text[..certain]);
        self.returned.push_str(&delta);
        if certain == text.len() {
            if !delta.is_empty() {
                self.window.drain(..self.settled);
                self.returned = self.processor.decode(&self.window)?;
            }
            self.settled = self.window.len();
        }
        Ok(delta)
    }

    /// The text that was held back: bytes at the end that never became a character.
    #[must_use]
    pub fn finish(self) -> String {
        // It was decoded after the last token, so it can be decoded now.
        let text = self.processor.decode(&self.window).unwrap_or_default();
        self.rest(&text)
    }

    /// What of the window's text has not been returned.
    fn rest(&self, text: &str) -> String {
        match text.strip_prefix(&self.returned) {
            Some(rest) => rest.to_owned(),
            // A decoder that judges a run of bytes as a whole took a character back; it stays as it was returned.
            None => text.chars().skip(self.returned.chars().count()).collect(),
        }
    }
}

/// Texts that end a completion.
///
/// The match that is complete first counts, and of several that end together the longest: then the outcome does not depend
/// on how the text is cut into tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<String>,
}

impl StopStrings {
    /// Empty strings are left out: they would end everything.
    #[must_use]
    pub fn new(strings: Vec<String>) -> Self {
        let strings = strings.into_iter().filter(|stop| !stop.is_empty());
        Self {
            strings: strings.collect(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Where the text must be cut: the byte at which the first stop string begins.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<usize> {
        self.find_range(text).map(|range| range.start)
    }

    /// The bytes of the first stop string.
    #[must_use]
    pub fn find_range(&self, text: &str) -> Option<Range<usize>> {
        let matches = self.strings.iter().filter_map(|stop| {
            let start = text.find(stop.as_str())?;
            Some(start..start + stop.len())
        });
        matches.min_by_key(|range| (range.end, range.start))
    }

    /// How many bytes of a text without a match can be passed on: all but the longest end that a stop string may begin with.
    #[must_use]
    pub fn releasable(&self, text: &str) -> usize {
        let held = self.strings.iter().map(|stop| {
            let prefixes = stop.char_indices().map(|(end, _)| &stop[..end]).rev();
            let held = prefixes
                .map(str::len)
                .find(|len| text.ends_with(&stop[..*len]));
            held.unwrap_or(0)
        });
        text.len() - held.max().unwrap_or(0)
    }
}

/// Passes text on while it has no stop string in it, and holds back what may become one.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stops: StopStrings,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter at the beginning of a completion.
    #[must_use]
    pub fn new(stops: StopStrings) -> Self {
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece of text and returns what can be passed on. After a stop string nothing comes any more.
    pub fn push(&mut self, delta: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(delta);
        let end = match self.stops.find(&self.held) {
            Some(start) => {
                self.stopped = true;
                start
            }
            None => self.stops.releasable(&self.held),
        };
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has come.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back, for a completion that ended otherwise.
    #[must_use]
    pub fn finish(self) -> String {
        if self.stopped {
            String::new()
        } else {
            self.held
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
