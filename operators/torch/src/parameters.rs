//! The weights in memory: views of a few flat buffers.
//!
//! Weights of one kind (trained or frozen, matrix or vector) share a buffer up to a size limit. The optimizer then
//! works on a handful of long vectors instead of hundreds of small tensors.

use std::collections::BTreeMap;
use std::path::Path;

use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use crate::layout::{Parameter, Part, canonical};
use crate::weights::WeightFiles;

/// Largest buffer in elements, except for a single weight that is larger.
const BUCKET_LIMIT: i64 = 1 << 27;
/// Weights start at multiples of this many elements, so that vector loads are aligned.
const ALIGNMENT: i64 = 16;

/// A flat buffer and the weights that lie in it.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// All values, padding included.
    pub(crate) flat: Tensor,
    /// Indices into [`Parameters::list`], in the order of the buffer.
    pub(crate) members: Vec<usize>,
    /// Whether the weights are trained.
    pub(crate) trained: bool,
    /// Whether they are matrices.
    pub(crate) matrices: bool,
}

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) list: Vec<Parameter>,
    /// One tensor for each of `list`; trained ones require gradients.
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) buckets: Vec<Bucket>,
    index: BTreeMap<String, usize>,
}

/// Elements that a weight takes in its buffer.
pub(crate) fn padded(numel: i64) -> i64 {
    (numel + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

impl Parameters {
    /// Reads the weights of a folder. `freeze` is `None` for a model that is not trained.
    ///
    /// # Errors
    /// When a weight is missing, extra or misshaped, or a joined weight would be frozen in part.
    pub(crate) fn load(
        list: Vec<Parameter>,
        folder: &Path,
        freeze: Option<&[String]>,
        kind: Kind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let files = WeightFiles::open(folder)?;
        files.check(&list)?;
        check_freeze(&list, freeze.unwrap_or_default())?;
        let trained = list
            .iter()
            .map(|parameter| is_trained(parameter, freeze))
            .collect::<Result<Vec<_>, _>>()?;
        let mut tensors: Vec<Option<Tensor>> = list.iter().map(|_| None).collect();
        let mut buckets = Vec::new();
        for (members, trained, matrices) in plan(&list, &trained) {
            let length = members
                .iter()
                .map(|member| padded(list[*member].numel()))
                .sum::<i64>();
            let mut flat = Tensor::zeros([length], (kind, Device::Cpu));
            let mut offset = 0;
            for member in &members {
                let mut start = offset;
                for part in &list[*member].parts {
                    files.copy(part, &mut flat.narrow(0, start, part.numel()))?;
                    start += part.numel();
                }
                offset += padded(list[*member].numel());
            }
            flat = flat.to_device(device);
            offset = 0;
            for member in &members {
                let parameter = &list[*member];
                let view = flat
                    .narrow(0, offset, parameter.numel())
                    .view(parameter.shape.as_slice())
                    .detach();
                tensors[*member] = Some(if trained {
                    view.set_requires_grad(true)
                } else {
                    view
                });
                offset += padded(parameter.numel());
            }
            buckets.push(Bucket {
                flat,
                members,
                trained,
                matrices,
            });
        }
        let tensors = tensors
            .into_iter()
            .map(|tensor| tensor.expect("the plan covers every weight"))
            .collect();
        let index = list
            .iter()
            .enumerate()
            .map(|(index, parameter)| (parameter.name.clone(), index))
            .collect();
        Ok(Self {
            list,
            tensors,
            buckets,
            index,
        })
    }

    /// The same weights for another thread: tensors can be sent, but not shared by reference.
    pub(crate) fn share(&self) -> Self {
        let bucket = |bucket: &Bucket| Bucket {
            flat: bucket.flat.shallow_clone(),
            members: bucket.members.clone(),
            trained: bucket.trained,
            matrices: bucket.matrices,
        };
        Self {
            list: self.list.clone(),
            tensors: self.tensors.iter().map(Tensor::shallow_clone).collect(),
            buckets: self.buckets.iter().map(bucket).collect(),
            index: self.index.clone(),
        }
    }

    /// The weight with this name in memory.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        let index = self
            .index
            .get(name)
            .expect("the layout and the model name the same weights");
        self.tensors[*index].shallow_clone()
    }

    /// Number of weights.
    pub(crate) fn count(&self) -> u64 {
        self.list
            .iter()
            .map(|parameter| parameter.numel().unsigned_abs())
            .sum()
    }

    /// Indices of the trained weights, in the order of the buffers.
    pub(crate) fn trained(&self) -> Vec<usize> {
        self.buckets
            .iter()
            .filter(|bucket| bucket.trained)
            .flat_map(|bucket| bucket.members.iter().copied())
            .collect()
    }
}

/// A prefix that fits no weight is a slip that would train what was meant to stay as it is.
fn check_freeze(list: &[Parameter], freeze: &[String]) -> Result<(), ModelError> {
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
fn begins(part: &Part, prefix: &str) -> bool {
    part.name.starts_with(prefix) || canonical(&part.name).starts_with(prefix)
}

fn is_trained(parameter: &Parameter, freeze: Option<&[String]>) -> Result<bool, ModelError> {
    let Some(freeze) = freeze else {
        return Ok(false);
    };
    let frozen = |part: &Part| freeze.iter().any(|prefix| begins(part, prefix));
    let count = parameter.parts.iter().filter(|part| frozen(part)).count();
    if count != 0 && count != parameter.parts.len() {
        let names: Vec<&str> = parameter
            .parts
            .iter()
            .map(|part| part.name.as_str())
            .collect();
        return Err(ModelError::Input(format!(
            "freeze all or none of {}",
            names.join(", ")
        )));
    }
    Ok(count == 0)
}

/// Members of each buffer, with whether they are trained and whether they are matrices.
fn plan(list: &[Parameter], trained: &[bool]) -> Vec<(Vec<usize>, bool, bool)> {
    let mut plan = Vec::new();
    for (is_trained, matrices) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut members = Vec::new();
        let mut length = 0;
        for (index, parameter) in list.iter().enumerate() {
            if trained[index] != is_trained || parameter.is_matrix() != matrices {
                continue;
            }
            if !members.is_empty() && length + padded(parameter.numel()) > BUCKET_LIMIT {
                plan.push((std::mem::take(&mut members), is_trained, matrices));
                length = 0;
            }
            length += padded(parameter.numel());
            members.push(index);
        }
        if !members.is_empty() {
            plan.push((members, is_trained, matrices));
        }
    }
    plan
}
