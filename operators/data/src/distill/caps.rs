//! Caps by source and in total: which examples are left out is drawn by the seed and the example, whatever else there is.

use std::collections::BTreeMap;

use engine_core::{Fault, seed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most examples by the source of their prompts, and in all. What is left out is drawn by the stage's seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Caps {
    /// Most examples in all.
    #[serde(default)]
    pub total: Option<u64>,
    /// Most examples of each source that `by-source` does not name.
    #[serde(default)]
    pub each_source: Option<u64>,
    /// Most examples of a source, by its name.
    #[serde(default)]
    pub by_source: BTreeMap<String, u64>,
}

/// An example that was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    /// Number among the candidates.
    pub(super) number: usize,
    pub(super) prompt: u32,
    pub(super) sample: u32,
}

impl Caps {
    pub(super) fn needs_sources(&self) -> bool {
        self.each_source.is_some() || !self.by_source.is_empty()
    }

    pub(super) fn is_any(&self) -> bool {
        self.total.is_some() || self.needs_sources()
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        (self.total == Some(0)).then(|| {
            let mut fault = Fault::at("wrong-value", "max", "`total` keeps no example at all");
            fault.path.push("total".to_owned());
            fault.with_help("write 1 or more, or leave it out")
        })
    }

    /// Which of the candidates are left of those that were chosen. `id` and `source` are those of a prompt.
    pub(super) fn kept<'a>(
        &self,
        seed: u64,
        chosen: Vec<Chosen>,
        candidates: usize,
        id: impl Fn(u32) -> &'a str,
        source: impl Fn(u32) -> &'a str,
    ) -> Vec<bool> {
        let mut drawn: Vec<(u64, Chosen)> = chosen
            .into_iter()
            .map(|chosen| {
                let name = format!("cap {} {}", id(chosen.prompt), chosen.sample);
                (seed::derive(seed, &name), chosen)
            })
            .collect();
        // A second key, for the case that two draws are equal.
        drawn.sort_unstable_by_key(|(draw, chosen)| (*draw, chosen.prompt, chosen.sample));
        let mut left = self.total.unwrap_or(u64::MAX);
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let mut kept = vec![false; candidates];
        for (_, chosen) in drawn {
            if left == 0 {
                break;
            }
            if self.needs_sources() {
                let source = source(chosen.prompt);
                let most = self.by_source.get(source).copied().or(self.each_source);
                let count = counts.entry(source).or_default();
                if most.is_some_and(|most| *count >= most) {
                    continue;
                }
                *count += 1;
            }
            kept[chosen.number] = true;
            left -= 1;
        }
        kept
    }
}
