//! Which layers get adapters: names are matched as in peft's `target_modules`.

use std::collections::BTreeSet;

use engine_core::error::ModelError;
use engine_core::policy::LoraOptions;

use crate::groups::begins;
use crate::layout::{Parameter, canonical, newer};

/// Matrices that are no linear layer of a module, or one whose output is not a layer's.
const OTHERS: [&str; 3] = [
    "model.embed_tokens.weight",
    "visual.pos_embed.weight",
    "lm_head.weight",
];

/// A linear layer as it is published.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Place of its weight in the list.
    pub(super) weight: usize,
    /// Which of the weight's parts it is.
    pub(super) part: usize,
}

/// What is to be adapted.
#[derive(Debug)]
pub(super) struct Found {
    /// In the order of the list.
    pub(super) modules: Vec<Target>,
    /// Names that tell peft to adapt the same modules.
    pub(super) names: Vec<String>,
    /// Whether the model has a tower.
    pub(super) nested: bool,
}

/// A matrix of a module: a layer that could be meant by a target.
struct Candidate {
    target: Target,
    /// What peft calls the module.
    name: String,
    /// As published and as in memory.
    others: [String; 2],
    is_linear: bool,
    is_language: bool,
    is_frozen: bool,
}

impl Candidate {
    fn fits(&self, target: &str) -> bool {
        let mut names = std::iter::once(&self.name).chain(&self.others);
        names.any(|name| {
            name.strip_suffix(target)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    fn last_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// Finds the layers that get adapters. Frozen ones get none.
///
/// # Errors
/// [`ModelError::Input`] when the options are no adapters or a target fits nothing; the message has what there is.
pub(super) fn find(
    list: &[Parameter],
    options: &LoraOptions,
    freeze: &[String],
) -> Result<Found, ModelError> {
    check(options)?;
    let candidates = candidates(list, freeze);
    let usable = |candidate: &&Candidate| candidate.is_linear && !candidate.is_frozen;
    for target in &options.targets {
        if !candidates.iter().filter(usable).any(|one| one.fits(target)) {
            let names: BTreeSet<&str> = candidates
                .iter()
                .filter(usable)
                .map(Candidate::last_name)
                .collect();
            let names: Vec<&str> = names.into_iter().collect();
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            return Err(ModelError::Input(format!(
                "`lora` has the target `{target}`, which fits no linear layer that is not frozen; there are {names}"
            )));
        }
    }
    let is_meant = |candidate: &Candidate| {
        if options.targets.is_empty() {
            candidate.is_language
        } else {
            options.targets.iter().any(|target| candidate.fits(target))
        }
    };
    let chosen: Vec<&Candidate> = (candidates.iter().filter(usable))
        .filter(|candidate| is_meant(candidate))
        .collect();
    if chosen.is_empty() {
        return Err(ModelError::Input(
            "`lora` has no layer to adapt: the language model is frozen".to_owned(),
        ));
    }
    let names = short_names(&candidates, &chosen);
    let nested = is_nested(list);
    let modules = chosen.into_iter().map(|one| Target { ..one.target });
    Ok(Found {
        names,
        nested,
        modules: modules.collect(),
    })
}

fn check(options: &LoraOptions) -> Result<(), ModelError> {
    let fault = |message: String| Err(ModelError::Input(message));
    if options.rank == 0 {
        return fault("`lora` has rank 0; it must be 1 or more".to_owned());
    }
    if !options.alpha.is_finite() || options.alpha <= 0.0 {
        return fault(format!(
            "`lora` has alpha {}; it must be above 0",
            options.alpha
        ));
    }
    match options
        .targets
        .iter()
        .find(|target| target.trim().is_empty())
    {
        Some(_) => fault("`lora` has an empty name among its targets".to_owned()),
        None => Ok(()),
    }
}

/// Whether the language model is beside a tower.
fn is_nested(list: &[Parameter]) -> bool {
    list.iter()
        .any(|parameter| parameter.name.starts_with("visual."))
}

/// The name of a module in transformers, which peft has: the newer one where there is a tower.
pub(super) fn module_name(published: &str, nested: bool) -> String {
    let name = canonical(published);
    if nested {
        newer(&name)
    } else {
        name.into_owned()
    }
}

fn candidates(list: &[Parameter], freeze: &[String]) -> Vec<Candidate> {
    let nested = is_nested(list);
    let mut candidates = Vec::new();
    for (weight, parameter) in list.iter().enumerate() {
        for (place, part) in parameter.parts.iter().enumerate() {
            let Some(module) = part.name.strip_suffix(".weight") else {
                continue;
            };
            if part.shape.len() < 2 {
                continue;
            }
            let in_memory = canonical(module).into_owned();
            candidates.push(Candidate {
                target: Target {
                    weight,
                    part: place,
                },
                name: module_name(module, nested),
                is_linear: part.shape.len() == 2
                    && !OTHERS.contains(&canonical(&part.name).as_ref()),
                is_language: in_memory.starts_with("model.layers."),
                is_frozen: freeze.iter().any(|prefix| begins(part, prefix)),
                others: [module.to_owned(), in_memory],
            });
        }
    }
    candidates
}

/// Last parts of the names of the chosen modules where they mean these alone, otherwise the whole names.
fn short_names(candidates: &[Candidate], chosen: &[&Candidate]) -> Vec<String> {
    let short: BTreeSet<&str> = chosen.iter().map(|one| one.last_name()).collect();
    let meant = candidates
        .iter()
        .filter(|one| short.contains(one.last_name()));
    if meant.count() == chosen.len() {
        short.into_iter().map(str::to_owned).collect()
    } else {
        chosen.iter().map(|one| one.name.clone()).collect()
    }
}
