//! The part `overlong`: soft punishment of completions that come near the limit of their length.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Faults;

/// 0 up to `max-tokens` less `cache-tokens`, from there in a straight line down to -1 at `max-tokens`, -1 beyond.
///
/// # Source
/// DAPO (arXiv 2503.14476), equation 13, with 20480 and 4096 and rewards of 1 and -1. With rewards of 1 and 0 a weight of
/// 0.5 keeps the proportion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Overlong {
    /// Weight of the part: the largest punishment.
    pub weight: f64,
    /// Tokens from which on the punishment is whole.
    pub max_tokens: u32,
    /// Tokens below `max-tokens` over which the punishment grows.
    pub cache_tokens: u32,
}

impl Overlong {
    pub(super) fn check(&self, faults: &mut Faults) {
        faults.finite("overlong.weight", self.weight);
        if self.max_tokens == 0 {
            faults.range("overlong.max-tokens", "is 0");
        }
        if self.cache_tokens == 0 || self.cache_tokens > self.max_tokens {
            let message = format!(
                "is {} and must be between 1 and `max-tokens`, which is {}",
                self.cache_tokens, self.max_tokens
            );
            faults.range("overlong.cache-tokens", message);
        }
    }

    pub(super) fn value(&self, tokens: usize) -> f64 {
        let free = (self.max_tokens - self.cache_tokens) as usize;
        if tokens <= free {
            0.0
        } else if tokens > self.max_tokens as usize {
            -1.0
        } else {
            -((tokens - free) as f64 / f64::from(self.cache_tokens))
        }
    }
}
