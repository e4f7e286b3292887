//! What is known of pass rates after some samples.

use std::collections::HashMap;

use engine_core::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Counts;
use super::beta::{self, Interval, interval};

/// A Beta distribution of the pass rate: the prior, and what is asked of it. The verdicts must all be of one model's rollouts,
/// which the table itself cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Posterior {
    /// Correct samples that the prior is worth: 1 for a uniform prior, 0.5 for Jeffreys'.
    pub alpha: f64,
    /// Samples that are not correct that the prior is worth.
    pub beta: f64,
    /// Probability of the credible interval, such as 0.95; as much is left out below as above.
    pub credible: f64,
    /// Gives the port `more`: prompts whose interval is wider than this, those without any sample included. A second rollout
    /// stage can then sample only these.
    #[serde(default)]
    pub more_if_wider_than: Option<f64>,
}

/// Credible intervals, computed once for each pair of counts: there are far fewer of these than prompts.
pub(super) struct Intervals {
    posterior: Option<Posterior>,
    known: HashMap<(u32, u32), Interval>,
}

impl Intervals {
    pub(super) fn new(posterior: Option<Posterior>) -> Self {
        Self {
            posterior,
            known: HashMap::new(),
        }
    }

    pub(super) fn get(&mut self, counts: Counts) -> Interval {
        let Some(posterior) = self.posterior else {
            return Interval::default();
        };
        *self
            .known
            .entry((counts.samples, counts.correct))
            .or_insert_with(|| {
                let alpha = posterior.alpha + f64::from(counts.correct);
                let beta = posterior.beta + f64::from(counts.samples - counts.correct);
                interval(alpha, beta, posterior.credible)
            })
    }
}

impl Posterior {
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |key: &str, value: f64, is_right: bool, help: &str| {
            if !is_right {
                let message = format!("`{key}` is {value}");
                let mut fault = Fault::at("wrong-value", "posterior", message).with_help(help);
                fault.path.push(key.to_owned());
                faults.push(fault);
            }
        };
        let is_weight = |value: f64| value > 0.0 && value <= beta::MOST_SAMPLES;
        let weight = "write a number above 0, such as 1 for a uniform prior";
        check("alpha", self.alpha, is_weight(self.alpha), weight);
        check("beta", self.beta, is_weight(self.beta), weight);
        let is_probability = self.credible > 0.0 && self.credible < 1.0;
        let help = "write a probability between 0 and 1, such as 0.95";
        check("credible", self.credible, is_probability, help);
        if let Some(width) = self.more_if_wider_than {
            let help = "write a width between 0 and 1, such as 0.4";
            check(
                "more-if-wider-than",
                width,
                width > 0.0 && width < 1.0,
                help,
            );
        }
        faults
    }
}
