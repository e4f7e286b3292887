//! Which weights are trained, at which share of the learning rate, and which of them share a buffer.

use engine_core::error::ModelError;
use engine_core::policy::TrainOptions;

use crate::layout::{Parameter, Part, canonical};
use crate::parameters::padded;

/// Largest buffer in elements, except for a single weight that is larger.
const BUCKET_LIMIT: i64 = 1 << 27;

/// Weights that share a buffer.
#[derive(Debug)]
pub(crate) struct Group {
    /// Indices into the list of weights, in the order of the buffer.
    pub(crate) members: Vec<usize>,
    /// Whether they are trained.
    pub(crate) trained: bool,
    /// Whether they are matrices.
    pub(crate) matrices: bool,
    /// Factor of the learning rate.
    pub(crate) factor: f64,
}

impl Group {
    /// Elements of the buffer.
    pub(crate) fn length(&self, list: &[Parameter]) -> i64 {
        self.members
            .iter()
            .map(|member| padded(list[*member].numel()))
            .sum()
    }
}

/// A prefix that fits no weight is a slip that would train what was meant to stay as it is.
///
/// # Errors
/// [`ModelError::Input`] with the prefix.
pub(crate) fn check_freeze(list: &[Parameter], freeze: &[String]) -> Result<(), ModelError> {
    let mut names = list.iter().flat_map(|parameter| &parameter.parts);
    let idle = freeze
        .iter()
        .find(|prefix| !names.clone().any(|part| begins(part, prefix)));
    match (idle, names.next()) {
        (Some(prefix), Some(first)) => Err(ModelError::Input(format!(
            "`freeze` has `{prefix}`, with which no weight's name begins; names are like {}",
            first.name
        ))),
        _ => Ok(()),
    }
}

/// Whether a weight's name begins so, on disk or in memory: `visual.` is the tower of every family.
pub(crate) fn begins(part: &Part, prefix: &str) -> bool {
    part.name.starts_with(prefix) || canonical(&part.name).starts_with(prefix)
}

/// Whether a weight is trained where these prefixes are frozen.
///
/// # Errors
/// [`ModelError::Input`] when parts of it are and others are not.
pub(crate) fn is_trained(parameter: &Parameter, freeze: &[String]) -> Result<bool, ModelError> {
    let frozen = |part: &Part| freeze.iter().any(|prefix| begins(part, prefix));
    let count = parameter.parts.iter().filter(|part| frozen(part)).count();
    if count != 0 && count != parameter.parts.len() {
        return Err(ModelError::Input(format!(
            "freeze all or none of {}",
            names(parameter)
        )));
    }
    Ok(count == 0)
}

/// Factor of the learning rate of each weight; that of weights that are not trained has no meaning.
///
/// # Errors
/// [`ModelError::Input`] for a factor that is no rate, a prefix that fits nothing that is trained, and parts of one weight
/// in memory with different factors.
pub(crate) fn factors(
    list: &[Parameter],
    trained: &[bool],
    options: &TrainOptions,
) -> Result<Vec<f64>, ModelError> {
    let learnt = || {
        let learnt = list.iter().zip(trained).filter(|(_, trained)| **trained);
        learnt.flat_map(|(parameter, _)| &parameter.parts)
    };
    for (prefix, factor) in &options.learning_rates {
        if !factor.is_finite() || *factor < 0.0 {
            return Err(ModelError::Input(format!(
                "`learning_rates` has the factor {factor} for `{prefix}`; it must be 0 or more"
            )));
        }
        if !learnt().any(|part| begins(part, prefix)) {
            let example = learnt().next().map_or("none", |part| part.name.as_str());
            return Err(ModelError::Input(format!(
                "`learning_rates` has `{prefix}`, with which no trained weight's name begins; names are like {example}"
            )));
        }
    }
    let of_part = |part: &Part| {
        let fitting = (options.learning_rates.iter()).filter(|(prefix, _)| begins(part, prefix));
        fitting
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(1.0, |(_, factor)| *factor)
    };
    let of_weight = |parameter: &Parameter| {
        let mut factors = parameter.parts.iter().map(of_part);
        let first = factors.next().unwrap_or(1.0);
        if factors.any(|factor| factor.to_bits() != first.to_bits()) {
            return Err(ModelError::Input(format!(
                "give one learning rate to all of {}",
                names(parameter)
            )));
        }
        Ok(first)
    };
    list.iter()
        .zip(trained)
        .map(|(parameter, trained)| {
            if *trained {
                of_weight(parameter)
            } else {
                Ok(1.0)
            }
        })
        .collect()
}

fn names(parameter: &Parameter) -> String {
    let names: Vec<&str> = parameter
        .parts
        .iter()
        .map(|part| part.name.as_str())
        .collect();
    names.join(", ")
}

/// Puts weights of one kind together, up to the size limit of a buffer.
pub(crate) fn plan(list: &[Parameter], trained: &[bool], factors: &[f64]) -> Vec<Group> {
    let mut plan = Vec::new();
    for (is_trained, matrices) in [(true, true), (true, false), (false, true), (false, false)] {
        let fits =
            |index: usize| trained[index] == is_trained && list[index].is_matrix() == matrices;
        let mut rates: Vec<f64> = Vec::new();
        for index in (0..list.len()).filter(|index| fits(*index)) {
            if !rates.iter().any(|rate| same(*rate, factors[index])) {
                rates.push(factors[index]);
            }
        }
        for factor in rates {
            let group = |members| Group {
                members,
                trained: is_trained,
                matrices,
                factor,
            };
            let mut members = Vec::new();
            let mut length = 0;
            for (index, parameter) in list.iter().enumerate() {
                if !fits(index) || !same(factors[index], factor) {
                    continue;
                }
                if !members.is_empty() && length + padded(parameter.numel()) > BUCKET_LIMIT {
                    plan.push(group(std::mem::take(&mut members)));
                    length = 0;
                }
                length += padded(parameter.numel());
                members.push(index);
            }
            plan.push(group(members));
        }
    }
    plan
}

fn same(left: f64, right: f64) -> bool {
    left.to_bits() == right.to_bits()
}
