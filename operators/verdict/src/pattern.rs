//! Regular expressions, in linear time and bounded memory.

use regex::{Regex, RegexBuilder};

use crate::outcome::GoldError;

/// Most bytes that are searched; what is longer is `timed-out`.
pub(crate) const MAX_SEARCHED: usize = 1 << 20;

/// Most bytes of a compiled pattern, and of the tables that are made while it is searched for.
const MAX_PATTERN: usize = 1 << 20;

/// Compiles a pattern in which `{gold}` stands for the gold answer.
pub(crate) fn compile(pattern: &str, gold: &str) -> Result<Regex, GoldError> {
    let literal = regex::escape(gold.trim());
    let pattern = pattern.replace("{gold}", &literal);
    RegexBuilder::new(&pattern)
        .size_limit(MAX_PATTERN)
        .dfa_size_limit(MAX_PATTERN)
        .nest_limit(60)
        .build()
        .map_err(|error| GoldError::Pattern(error.to_string()))
}
