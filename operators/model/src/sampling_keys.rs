//! The keys that narrow or bend the distribution that answers are sampled from: their defaults, which change nothing and are not
//! part of a stage's key, and their checks.

use crate::faults::ValueFaults;

/// The values of the keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SamplingKeys {
    pub(crate) top_k: u32,
    pub(crate) top_p: f64,
    pub(crate) min_p: f64,
    pub(crate) repetition_penalty: f64,
    pub(crate) presence_penalty: f64,
    pub(crate) frequency_penalty: f64,
    pub(crate) min_new_tokens: u32,
    pub(crate) stop: Vec<String>,
}

impl Default for SamplingKeys {
    fn default() -> Self {
        Self {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_new_tokens: 0,
            stop: Vec::new(),
        }
    }
}

impl SamplingKeys {
    /// Whether tokens can be left out.
    pub(crate) fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Collects every value that cannot be used.
    pub(crate) fn check(&self, temperature: f64, max_new_tokens: u32, faults: &mut ValueFaults) {
        for (key, value) in [("top-p", self.top_p), ("min-p", self.min_p)] {
            if !(0.0..=1.0).contains(&value) {
                faults.fault(
                    key,
                    format!("`{key}` is {value} and must be between 0 and 1"),
                );
            }
        }
        faults.positive("repetition-penalty", self.repetition_penalty);
        let penalties = [
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ];
        for (key, value) in penalties {
            if !(-2.0..=2.0).contains(&value) {
                faults.fault(
                    key,
                    format!("`{key}` is {value} and must be between -2 and 2"),
                );
            }
        }
        if self.min_new_tokens > max_new_tokens {
            faults.fault(
                "min-new-tokens",
                format!(
                    "`min-new-tokens` is {} and must not be above `max-new-tokens: {max_new_tokens}`",
                    self.min_new_tokens
                ),
            );
        }
        if self.stop.iter().any(String::is_empty) {
            faults.fault(
                "stop",
                "a text of `stop` is empty and would end every answer: take it away".to_owned(),
            );
        }
        let truncations = [
            ("top-k", self.top_k > 0),
            ("top-p", self.top_p < 1.0),
            ("min-p", self.min_p > 0.0),
        ];
        for (key, is_set) in truncations {
            if temperature == 0.0 && is_set {
                faults.fault(
                    key,
                    format!("`{key}` has no effect with `temperature: 0`, which takes the most likely token"),
                );
            }
        }
    }
}

/// Default of `top-p` and `repetition-penalty`.
pub(crate) fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_one(value: &f64) -> bool {
    *value == 1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_none(value: &u32) -> bool {
    *value == 0
}
